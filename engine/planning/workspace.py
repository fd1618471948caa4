"""The workspace of a step: the tensors that the network allocates beside weights and cache, one by one.

It follows model/network.py, model/attention.py, model/parallel.py and engine/runner.py line by line. If these change,
tests/engine/planning/test_plan.py fails, in which torch counts what a step allocates. A run on meta tensors would not
count most of it: they have no kernels, no collectives, and none of CUDA's attention. A width is a number of elements
per row.
"""

from dataclasses import dataclass

from engine.planning.deployment import Deployment
from engine.runner import LOGIT_ROWS
from model.checkpoint import compute_dtype
from model.network import Block, Network
from quant.tensor_cores import COPIED_OUTPUTS, COPY_BYTES

_COPY_BYTES = COPIED_OUTPUTS * COPY_BYTES  # per input, of the float copies of a weight


@dataclass(frozen=True, slots=True)
class Workspace:
    """Bytes of a block, of the logits after the blocks, and of tables that stay.

    On a CPU the C library's heap `keeps` most of a block's memory while logits are computed. A GPU's allocator uses one
    pool for both.
    """

    block_bytes: int
    logits_bytes: int
    tables_bytes: int
    keeps: bool

    @property
    def num_bytes(self) -> int:
        """The peak in bytes."""
        both = self.block_bytes, self.logits_bytes
        return (sum(both) if self.keeps else max(both)) + self.tables_bytes


def workspace(deployment: Deployment, rank: int, network: Network) -> Workspace:
    """The workspace of the largest step of a rank with this network."""
    d, kind = deployment, deployment.devices[rank].kind
    size = compute_dtype(kind).itemsize
    hidden = 2 * d.largest_step * d.architecture.hidden_size * size  # all rows are wanted: copied once
    return Workspace(
        block_bytes=_block_bytes(d, rank, network),
        logits_bytes=hidden + _logits_bytes(d, rank, network.vocabulary.span[1], kind),
        tables_bytes=_rotary_bytes(d, size),
        keeps=kind == "cpu",
    )


def _block_bytes(d: Deployment, rank: int, network: Network) -> int:
    """The most that a block has allocated: in attention, at either end of it, or in the MLP."""
    a, device, block = d.architecture, d.devices[rank], network.transformer.layers[0]
    assert isinstance(block, Block)
    kind, width, rows = device.kind, a.hidden_size, d.largest_step
    size = compute_dtype(kind).itemsize
    heads, q, k = block.attention.heads, block.attention.heads * a.head_dim, block.attention.kv_heads * a.head_dim
    inner = block.mlp.dense_4h_to_h.in_features
    scheme = block.mlp.dense_4h_to_h.scheme
    qkv = q + 2 * k + (q + k if a.rotary else 0)  # the rotated ones too
    gathered = q + 2 * k
    # The sum over ranks of what each has: padded, exchanged, added and given to all; gloo has a copy of its own.
    summed = (3 + (kind == "cpu")) * width + width // d.ranks if d.ranks > 2 else 0
    # What was before the block, the norm's, the branch's, and the block's own.
    held = 2 * width if a.residual == "post" else 4 * width
    activated = (1 + a.gated + _activation_width(a.activation, kind)) * inner
    # A mask of booleans, and the one of numbers that attention makes of it; contexts see themselves only.
    mask = rows * d.tokens * (1 + (a.local is not None))  # and one of the near tokens
    scores = rows * d.tokens * size
    if kind == "cuda" and k < q:
        scores += 2 * rows * d.tokens * heads * 4  # no fused kernel shares keys under a mask: float32 scores, twice
    copies = 0
    if scheme.copies_weight(device.capability, rows):
        copies = _COPY_BYTES * max(width, inner)
    # Keys or values on their way from int8: codes, and the floats that become a GPU's float16.
    decoded = k * (5 if kind == "cuda" else 1) if d.kv_cache_type == "int8" else 0
    phases = (
        ((2 * width + qkv + gathered + 2 * q) * size + decoded) * rows + scores,
        ((2 * width + qkv + q + width + summed) * size + scheme.activation_bytes(q, kind)) * rows + copies,
        (held + activated) * size * rows,
        ((held + inner + width + summed) * size + scheme.activation_bytes(inner, kind)) * rows + copies,
    )
    return max(phases) + mask


def _activation_width(activation: str, kind: str) -> int:
    """Temporary tensors of the activation's width that are alive at once beside its input (model/network.py)."""
    if activation == "gelu_tanh":
        return 1 if kind == "cpu" else 4
    return {"gelu": 3, "geglu": 3, "geglu_first": 3, "swiglu": 2}[activation]


def _logits_bytes(d: Deployment, rank: int, own: int, kind: str) -> int:
    """Of a few rows: logits, their logarithms and the rows handed on, beside those of the rows before."""
    whole = d.architecture.vocab_size
    numbers = 4 * whole if d.ranks == 1 else 5 * own + (3 * whole if rank == 0 else 0)
    return LOGIT_ROWS * (4 * numbers + (2 * own if kind == "cuda" else 0))


def _rotary_bytes(d: Deployment, size: int) -> int:
    """The cosines and sines of all positions (model/rotary.py), of each of the layers' kinds."""
    a = d.architecture
    kinds = {a.rotary_of(layer) for layer in range(a.num_layers)}
    pairs = sum(rotary.size // rotary.axes // 2 for rotary in kinds if rotary is not None)
    return 2 * (a.max_sequence_length + 1) * pairs * size

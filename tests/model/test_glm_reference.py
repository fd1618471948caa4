"""Our GLM against SwissArmyTransformer's: the same log-probabilities, however its rows are fed.

The goldens are made by `tests/golden/make_glm_sat.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from model.attention import Attend, DenseAttention, KVCache, PagedAttention, Span, part_b_start, visible
from model.config import GLMConfig
from model.glm import GLM

GOLDEN = Path(__file__).parents[1] / "golden" / "glm_sat.safetensors"
CASES = ("part_a", "one_span", "three_spans", "gmask")
# SAT's plain softmax and ours sum in other orders; the exact GELU, or a bias forgotten, is off by far more.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Case:
    """A laid-out sequence and the reference's log-probabilities [rows, vocab_size]."""

    token_ids: Tensor
    positions: Tensor
    block_positions: Tensor
    context_len: int
    logprobs: Tensor

    def __len__(self) -> int:
        return len(self.token_ids)


def golden(prefix: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(f"{prefix}.")]  # noqa: SIM118
        return {name.removeprefix(f"{prefix}."): file.get_tensor(name) for name in names}


@pytest.fixture(scope="module")
def model() -> GLM:
    with safe_open(GOLDEN, framework="pt") as file:
        config = GLMConfig(**json.loads(file.metadata()["config"]))
    network = GLM(config)
    network.load_state_dict(golden("weights"))
    return network.eval().requires_grad_(False)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    tensors = golden(request.param)
    return Case(**(tensors | {"context_len": int(tensors["context_len"])}))


def cache_for(model: GLM, block_size: int, num_blocks: int = 40) -> KVCache:
    c = model.config
    cache = KVCache(
        c.num_layers,
        num_blocks,
        block_size,
        c.num_attention_heads,
        c.head_dim,
        torch.float32,
        torch.device("cpu"),
    )
    cache.keys.fill_(1e4)  # what an earlier sequence left there must not matter
    cache.values.fill_(1e4)
    return cache


def steps(case: Case, block_size: int, part_b_rows: int) -> list[list[tuple[slice, Span]]]:
    """Part A in one step, then part B `part_b_rows` rows a step, over blocks in no order; 0 means all at once."""
    first = part_b_start(case.context_len, block_size)
    num_blocks = -(-(first + len(case) - case.context_len) // block_size)
    blocks = tuple(torch.randperm(40, generator=torch.Generator().manual_seed(1))[:num_blocks].tolist())
    part_a = slice(0, case.context_len), Span(case.context_len, 0, case.context_len, blocks)
    pieces = []
    for row in range(case.context_len, len(case), part_b_rows or len(case)):
        rows = slice(row, min(len(case), row + (part_b_rows or len(case))))
        start = first + row - case.context_len
        pieces.append((rows, Span(rows.stop - rows.start, start, case.context_len, blocks)))
    return [[part_a, *pieces]] if part_b_rows == 0 else [[part_a], *([piece] for piece in pieces)]


def logprobs(model: GLM, case: Case, rows: Tensor, attend: Attend) -> Tensor:
    hidden = model(case.token_ids[rows], case.positions[rows], case.block_positions[rows], attend)
    return torch.log_softmax(model.logits(hidden), dim=-1)


def test_whole_sequences_give_the_reference_log_probabilities(model: GLM, case: Case) -> None:
    attend = DenseAttention(visible(len(case), torch.tensor([case.context_len])))
    hidden = model(case.token_ids[None], case.positions[None], case.block_positions[None], attend)
    ours = torch.log_softmax(model.logits(hidden), dim=-1)[0]
    torch.testing.assert_close(ours, case.logprobs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("part_b_rows", [0, 1, 3], ids=["one_step", "token_by_token", "three_a_step"])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_rows_over_permuted_cache_blocks_give_the_reference_log_probabilities(
    model: GLM, case: Case, block_size: int, part_b_rows: int
) -> None:
    cache = cache_for(model, block_size)
    ours = torch.full_like(case.logprobs, torch.nan)
    for step in steps(case, block_size, part_b_rows):
        rows = torch.cat([torch.arange(piece.start, piece.stop) for piece, _ in step])
        ours[rows] = logprobs(model, case, rows, PagedAttention(cache, [span for _, span in step]))
    torch.testing.assert_close(ours, case.logprobs, rtol=0, atol=TOLERANCE)


def test_an_int8_network_stays_near_the_reference(model: GLM, case: Case) -> None:
    from quant.linear import Linear
    from quant.schemes import Int8

    quantized = GLM(model.config, Int8())
    floats = dict(model.named_parameters())
    for path, module in quantized.named_modules():
        if isinstance(module, Linear):
            stored = module.scheme.quantize(floats[f"{path}.weight"])
            for name, tensor in stored.items():
                getattr(module, name).data = tensor
            module.bias.data = floats[f"{path}.bias"]
        else:
            for name, parameter in module.named_parameters(recurse=False):
                parameter.data = floats[f"{path}.{name}"]
    attend = DenseAttention(visible(len(case), torch.tensor([case.context_len])))
    with torch.inference_mode():
        ours = logprobs(quantized, case, torch.arange(len(case))[None], attend)[0]
    divergence = (case.logprobs.exp() * (case.logprobs - ours)).sum(-1)
    assert divergence.max() < 0.01  # nats a row

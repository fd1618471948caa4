"""Makes `glm130b_sat*.safetensors`: what SwissArmyTransformer's GLM130B answers to hand-laid-out sequences.

SwissArmyTransformer 0.4.12 (Apache-2.0, THUDM) has the model that GLM-130B was published with. A 2-layer one with
random weights, all of them exact in float16, runs in float32 on a CPU: for this the device that it asks for is "cpu",
its attention's conversion to float16 is left out, and its mask is made boolean. Three files:

glm130b_sat.safetensors
    `weights.NAME` float32, under the names of the published checkpoint as one rank; `rotary_emb.inv_freq` is float16
    there and ignored by every loader. For each case `CASE.token_ids`, `CASE.positions`, `CASE.block_positions` (0: the
    model has none), `CASE.context_len`, and log-probabilities [rows, vocab_size] by the precision of the angles:
    `CASE.logprobs` float32, as SAT 0.4.12 computes them, `CASE.logprobs_fp16_angles` with frequencies, angles, cosines
    and sines in float16, as SAT 0.2.x did, which the model was published with (the line that rounds the frequencies
    is still there, commented out). Everything else is float32 in both. `greedy.*`: see making.py; behind a [gMASK],
    float32 angles.
glm130b_sat_quantized.safetensors
    The same weights by GLM-130B's own quantization (tools/convert_tp.py, quantization/layers.py): `int8.NAME` int8
    [out, in], `int4.NAME` int8 [out, in / 2], high nibble first, `int8.NAME_scale` and `int4.NAME_scale` float16 [out]
    of the four linears of a layer; the rest is as in the first file. `CASE.logprobs_int8`, `CASE.logprobs_int4` by the
    products q * scale in float32; `CASE.logprobs_int8_fp16`, `CASE.logprobs_int4_fp16` by those products rounded to
    float16, as its CUDA kernel has them. Angles float32. No `long`.
glm130b_sat_shards.safetensors
    The same weights in float16 (exact) as 2 and 4 model-parallel ranks, by the rules of tools/convert_tp.py:
    `mp2.0.NAME`, `mp2.1.NAME`, `mp4.0.NAME`, ... `--split FOLDER` writes them as checkpoint folders besides,
    FOLDER/mp2/latest, FOLDER/mp2/49300/mp_rank_00_model_states.pt and so on.

Knows nothing of this repository's code. To rerun, in the repository root (the venv: see make_glm_sat.py):

    /tmp/sat/bin/python tests/golden/make_glm130b_sat.py [--split FOLDER]
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from making import Case, greedy, named, randomise, rows, save, tokens, visible
from sat.model.official import glm130B_model
from sat.model.position_embedding import RotaryEmbedding
from torch import Tensor

CONFIG = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "inner_hidden_size": 88,
    "vocab_size": 120,
    "max_sequence_length": 256,
    "layernorm_epsilon": 1e-5,
}
EOS, FIRST, LAST = 2, 5, 109
MASK, GMASK, SMASK, EOD, SOP, EOP = range(110, 116)
LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
REPLICATED = ("layernorm.weight", "layernorm.bias", "attention.dense.bias", "mlp.dense_4h_to_h.bias", "inv_freq")


def reference() -> glm130B_model.GLM130B:
    args = argparse.Namespace(
        **CONFIG,
        hidden_size_per_attention_head=None,
        layernorm_order="pre",
        model_parallel_size=1,
        skip_init=False,
        use_gpu_initialization=False,
        fp16=False,
        no_glu=False,
        position_encoding_2d=False,
    )
    mixin = glm130B_model.RotaryEmbeddingMixin
    forward = mixin.attention_forward
    mixin.attention_forward = lambda self, hidden, mask, **kw: forward(self, hidden, mask.bool(), **kw)
    torch.cuda.current_device = lambda: "cpu"
    model = glm130B_model.GLM130B(args).float().eval()
    randomise(model.named_parameters(), seed=20221005)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float16).float()
    return model


def half_angles(
    self: RotaryEmbedding, x: Tensor, seq_dim: int = 1, seq_len: int | None = None
) -> tuple[Tensor, Tensor]:
    """SAT 0.2's RotaryEmbedding.forward."""
    frequencies = self.inv_freq.to(torch.float16)
    angles = torch.einsum("i,j->ij", torch.arange(int(seq_len), dtype=torch.float16), frequencies)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


@torch.inference_mode()
def logprobs(model: glm130B_model.GLM130B, case: Case, fp16_angles: bool = False) -> Tensor:
    hidden = visible(case) == 0  # True where hidden
    forward = half_angles if fp16_angles else RotaryEmbedding.forward
    with mock.patch.object(torch.Tensor, "half", lambda x: x), mock.patch.object(RotaryEmbedding, "forward", forward):
        logits, *_ = model(case["token_ids"][None], case["positions"][None], hidden[None, None])
    return torch.log_softmax(logits[0].float(), dim=-1)


def published(model: glm130B_model.GLM130B) -> dict[str, Tensor]:
    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    frequencies = model.mixins["rotary-embedding"].rotary_emb.inv_freq.to(torch.float16)
    return weights | {f"transformer.layers.{i}.attention.rotary_emb.inv_freq": frequencies for i in range(2)}


def lay_out(context: Sequence[int], spans: Sequence[tuple[int, Sequence[int]]]) -> Case:
    """Part A, and part B's spans in order, each (index of its mask in part A, tokens)."""
    ids, positions = list(context), list(range(len(context)))
    for mask, span in spans:
        first = len(positions)  # behind a [gMASK] positions count on
        positions += range(first, first + len(span) + 1) if context[mask] == GMASK else [mask] * (len(span) + 1)
        ids += [SOP, *span]
    return rows(ids, positions, [0] * len(ids), len(context))


CASES = {
    "part_a": lay_out([15, 7, 33, 80, 15, 15, 99, EOS], []),
    "one_span": lay_out([11, 40, MASK, 62, 9, 33, EOS], [(2, [25, 71, 8, 104])]),
    "two_spans": lay_out([MASK, 14, 52, MASK, 77, 6, 36, 20, EOS], [(3, [31, 31, 87]), (0, [60, 12])]),
    "gmask": lay_out([70, 28, 19, 4, 55, 12, 66, 41, GMASK], [(8, list(range(10, 60, 5)))]),
    "long": lay_out([*tokens(1, 104, FIRST, LAST), GMASK], [(104, tokens(2, 12, FIRST, LAST))]),
    "long_pinned": lay_out([*tokens(3, 18, FIRST, LAST), MASK, *tokens(4, 90, FIRST, LAST), EOS], [(18, [9, 8, 9])]),
}
SHORT = ("part_a", "one_span", "two_spans", "gmask")


def quantize(weight: Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """GLM-130B's arithmetic, in float16: q of each weight, and each row's scale."""
    w = weight.numpy().astype(np.float16)
    scale = (np.abs(w).max(axis=-1).astype(np.float32) / (2 ** (bits - 1) - 1)).astype(np.float16)
    return np.round(w / scale[:, None]).astype(np.int8), scale


def pack(q: np.ndarray) -> np.ndarray:
    return (q[:, 0::2] << 4 | (q[:, 1::2] & 15)).astype(np.int8)


def unpack(packed: np.ndarray) -> np.ndarray:
    low = (packed << 4).astype(np.int8) >> 4
    return np.stack([packed >> 4, low], axis=-1).reshape(len(packed), -1)


@contextmanager
def dequantized(model: glm130B_model.GLM130B, stored: dict[str, Tensor], rounded: bool) -> Iterator[None]:
    """The model with the products q * scale for weights."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].data for name in stored if not name.endswith("_scale")}
    for name, weight in kept.items():
        q = stored[name].numpy()
        q = q if q.shape == weight.shape else unpack(q)
        product = q.astype(np.float32) * stored[f"{name}_scale"].numpy().astype(np.float32)[:, None]
        parameters[name].data = torch.from_numpy(product.astype(np.float16).astype(np.float32) if rounded else product)
    yield
    for name, weight in kept.items():
        parameters[name].data = weight


def quantized(model: glm130B_model.GLM130B) -> dict[str, Tensor]:
    weights, tensors = published(model), {}
    for bits in (8, 4):
        stored = {}
        for name in (name for name in weights if name.endswith(tuple(f"{linear}.weight" for linear in LINEARS))):
            q, scale = quantize(weights[name], bits)
            if bits == 4:
                assert (unpack(pack(q)) == q).all()
                q = pack(q)
            stored |= {name: torch.from_numpy(q), f"{name}_scale": torch.from_numpy(scale)}
        tensors |= named(f"int{bits}", stored)
        for suffix, rounded in (("", False), ("_fp16", True)):
            with dequantized(model, stored, rounded):
                answers = {f"{case}.logprobs_int{bits}{suffix}": logprobs(model, CASES[case]) for case in SHORT}
            tensors |= answers
    return tensors


def split(weights: dict[str, Tensor], ranks: int) -> list[dict[str, Tensor]]:
    """tools/convert_tp.py's create_checkpoint, of one rank into `ranks`."""

    def shares(name: str, weight: Tensor) -> Sequence[Tensor]:
        if name.endswith(REPLICATED):
            return [weight] * ranks
        if "dense_h_to_4h" in name:  # each rank has [its x1; its x2]
            chunks = weight.chunk(2 * ranks)
            return [torch.cat([chunks[rank], chunks[ranks + rank]]) for rank in range(ranks)]
        return weight.chunk(ranks, dim=1 if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")) else 0)

    parts = {name: shares(name, weight.to(torch.float16)) for name, weight in weights.items()}
    return [{name: part[rank].clone() for name, part in parts.items()} for rank in range(ranks)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--split", type=Path, help="a folder for the model-parallel checkpoints")
    folder = parser.parse_args().split
    model = reference()
    weights = published(model)
    tensors = named("weights", weights)
    for name, case in CASES.items():
        answers = {"logprobs": logprobs(model, case), "logprobs_fp16_angles": logprobs(model, case, fp16_angles=True)}
        print(name, "fp16 angles change at most", (answers["logprobs"] - answers["logprobs_fp16_angles"]).abs().max())
        tensors |= named(name, case | answers)
    written = greedy(
        lambda seed: [*tokens(seed, 24, FIRST, LAST), GMASK],
        lambda context, span: lay_out(context, [(len(context) - 1, span)]),
        lambda case: logprobs(model, case),
        range(FIRST, LAST + 1),
    )
    tensors |= named("greedy", written)
    facts = {"angles": "logprobs: float32; logprobs_fp16_angles: frequencies, angles, cosines and sines in float16"}
    config = {"model_type": "glm-130b"} | CONFIG
    save(__file__, "glm130b_sat.safetensors", tensors, config=config, **facts)
    save(__file__, "glm130b_sat_quantized.safetensors", quantized(model), config=config, angles="float32")
    shards = {ranks: split(weights, ranks) for ranks in (2, 4)}
    names = {f"mp{ranks}.{rank}": s for ranks, of in shards.items() for rank, s in enumerate(of)}
    save(
        __file__,
        "glm130b_sat_shards.safetensors",
        {f"{prefix}.{name}": tensor for prefix, shard in names.items() for name, tensor in shard.items()},
        config=config,
    )
    for ranks, of in shards.items() if folder else ():
        checkpoint = folder / f"mp{ranks}" / "49300"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (folder / f"mp{ranks}" / "latest").write_text("49300")
        for rank, shard in enumerate(of):
            torch.save({"module": shard}, checkpoint / f"mp_rank_{rank:02}_model_states.pt")


if __name__ == "__main__":
    main()

"""Makes `chatglm_sat.safetensors`: what SwissArmyTransformer's ChatGLMModel answers to hand-laid-out sequences.

SwissArmyTransformer 0.4.12 (Apache-2.0, THUDM) has ChatGLM-6B's architecture. A 2-layer model with random weights
runs in float32 on a CPU, with two corrections towards the published model:

- DeepNorm's alpha: SAT takes sqrt(2 * num_layers); the published code never tells its blocks their number, so that
  every size has sqrt(2 * 28) (modeling_chatglm.py, GLMBlock's default). 28 is set here.
- SAT keeps the rows of query_key_value in thirds. The file has the published order, head by head.

The file holds `weights.NAME` float32 under the published names, lm_head.weight equal to the embedding and the float16
`rotary_emb.inv_freq` that loaders ignore included. For each case `CASE.token_ids`, `CASE.positions`,
`CASE.block_positions`, `CASE.context_len`, and log-probabilities [rows, vocab_size] by the precision of the angles:

- `CASE.logprobs`: float32, as SAT 0.4.12 computes them;
- `CASE.logprobs_fp16_frequencies`: frequencies rounded to float16, the rest float32, as the published code after
  `.float()`;
- `CASE.logprobs_fp16_angles`: frequencies, angles, cosines and sines in float16, as the published code in float16
  (everything else remains float32 here).

The blocks of the published modeling_chatglm.py (@8b7d335 of greensheng/chatglm-6b, a mirror of the hub repository)
gave the last two within 2e-5, and `greedy.tokens`, when this was made. `greedy.*`: see making.py; float32 angles.
Metadata `config` is the config.json. Positions of the cases with one mask to fill are asserted to be those which SAT
computes itself. Knows nothing of this repository's code. To rerun, in the repository root (the venv: see
make_glm_sat.py):

    /tmp/sat/bin/python tests/golden/make_chatglm_reference.py
"""

import argparse
import math
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from making import Case, greedy, named, quieten, randomise, rows, save, tokens, visible
from sat.model.official.chatglm_model import ChatGLMModel
from sat.model.position_embedding.rotary_embeddings import RotaryEmbedding
from torch import Tensor

PAD, FIRST, LAST = 3, 5, 103
MASK, GMASK, SMASK, _, SOP, EOP = range(104, 110)
SIZES = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "inner_hidden_size": 160,
    "vocab_size": 112,
    "max_sequence_length": 256,
    "layernorm_epsilon": 1e-5,
}
CONFIG = SIZES | {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "position_encoding_2d": True,
    "bos_token_id": SOP,
    "eos_token_id": EOP,
    "mask_token_id": MASK,
    "gmask_token_id": GMASK,
    "pad_token_id": PAD,
    "torch_dtype": "float32",
}
PUBLISHED_LAYERS = 28


def reference() -> ChatGLMModel:
    args = argparse.Namespace(
        **SIZES,
        hidden_size_per_attention_head=None,
        layernorm_order="post",
        model_parallel_size=1,
        skip_init=False,
        use_gpu_initialization=False,
        params_dtype=torch.float32,
        bos_token_id=SOP,
        mask_token_id=MASK,
        gmask_token_id=GMASK,
        pad_token_id=PAD,
    )
    model = ChatGLMModel(args).float().eval()
    randomise(model.named_parameters(), seed=20230314, spread=0.3, outputs=1.6)
    quieten(model.transformer.word_embeddings.weight, LAST + 1)
    model.mixins["chatglm-final"].lm_head.weight.data = model.transformer.word_embeddings.weight.data.clone()
    assert model.mixins["chatglm-layer"].num_layers == SIZES["num_layers"]
    model.mixins["chatglm-layer"].num_layers = PUBLISHED_LAYERS
    return model


def published(model: ChatGLMModel) -> dict[str, Tensor]:
    weights = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.data
        if ".query_key_value." in name:  # [3, heads, head_dim] rows → [heads, 3, head_dim]
            by_head = tensor.reshape(3, SIZES["num_attention_heads"], -1, *tensor.shape[1:]).transpose(0, 1)
            tensor = by_head.reshape(tensor.shape)
        weights[name.replace("mixins.chatglm-final.", "")] = tensor
    frequencies = model.mixins["chatglm-attn"].rotary_emb.inv_freq.to(torch.float16)
    for layer in range(SIZES["num_layers"]):
        weights[f"transformer.layers.{layer}.attention.rotary_emb.inv_freq"] = frequencies
    return weights


def published_angles(then: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    """The published RotaryEmbedding.forward: float16 frequencies, everything after them in `then`."""

    def forward(
        self: RotaryEmbedding, x: Tensor, seq_dim: int = 1, seq_len: int | None = None
    ) -> tuple[Tensor, Tensor]:
        frequencies = self.inv_freq.to(torch.float16).to(then)
        angles = torch.einsum("i,j->ij", torch.arange(int(seq_len), dtype=then), frequencies)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()

    return forward


ANGLES = {
    "logprobs": RotaryEmbedding.forward,
    "logprobs_fp16_frequencies": published_angles(torch.float32),
    "logprobs_fp16_angles": published_angles(torch.float16),
}


@torch.inference_mode()
def logprobs(model: ChatGLMModel, case: Case, angles: str = "logprobs") -> Tensor:
    positions = torch.stack([case["positions"], case["block_positions"]])[None]
    with mock.patch.object(RotaryEmbedding, "forward", ANGLES[angles]):
        logits, *_ = model(case["token_ids"][None], positions, visible(case)[None, None])  # 1 where visible
    return torch.log_softmax(logits[0].float(), dim=-1)


def lay_out(context: Sequence[int], spans: Sequence[tuple[int, Sequence[int]]]) -> Case:
    """Part A, and part B's spans in order, each (index of its mask in part A, tokens)."""
    ids, positions, blocks = list(context), list(range(len(context))), [0] * len(context)
    for mask, span in spans:
        ids += [SOP, *span]
        positions += [mask] * (len(span) + 1)
        blocks += range(1, len(span) + 2)
    return rows(ids, positions, blocks, len(context))


CASES = {
    "part_a": lay_out([17, 5, 88, 30, 30, 61, GMASK], []),
    "chat": lay_out([4, 67, 70, 12, 33, 4, 95, 18, 41, 103, 76, GMASK], [(11, [50, 21, 21, 4, 99, 8, 64, 35])]),
    "mask": lay_out([44, 80, MASK, 62, 9, 33, 27], [(2, [25, 71, 8])]),
    "mask_and_gmask": lay_out([44, MASK, 62, 9, 33, 90, GMASK], [(6, [25, 71, 8, 13])]),
    "two_spans": lay_out([MASK, 14, 52, 83, MASK, 77, 6, 36], [(4, [31, 31, 87]), (0, [60, 12])]),
    "long": lay_out([*tokens(1, 104, FIRST, LAST), GMASK], [(104, tokens(2, 16, FIRST, LAST))]),
}


def main() -> None:
    model = reference()
    tensors = named("weights", published(model))
    for name, case in CASES.items():
        if name not in ("part_a", "two_spans"):
            mask, positions = model.get_inputs(case["token_ids"][None])
            assert torch.equal(mask[0, 0], visible(case)), name
            assert torch.equal(positions[0], torch.stack([case["positions"], case["block_positions"]])), name
        answers = {angles: logprobs(model, case, angles) for angles in ANGLES}
        for angles, answer in answers.items():
            print(name, angles, "differ from float32 by at most", (answer - answers["logprobs"]).abs().max().item())
        tensors |= named(name, case | answers)
    written = greedy(
        lambda seed: [*tokens(seed, 24, FIRST, LAST), GMASK],
        lambda context, span: lay_out(context, [(len(context) - 1, span)]),
        lambda case: logprobs(model, case),
        range(FIRST, LAST + 1),
    )
    tensors |= named("greedy", written)
    save(
        __file__,
        "chatglm_sat.safetensors",
        tensors,
        config=CONFIG,
        alpha=math.sqrt(2 * PUBLISHED_LAYERS),
        angles="logprobs: float32; logprobs_fp16_frequencies: frequencies rounded to float16; logprobs_fp16_angles: "
        "frequencies, angles, cosines and sines in float16",
    )


if __name__ == "__main__":
    main()

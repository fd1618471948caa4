"""Makes `proteinglm_mlm.safetensors` and `proteinglm_clm.safetensors`: ProteinGLM's blocks by SwissArmyTransformer.

ProteinGLM (xTrimoPGLM) has GLM-130B's blocks: DeepNorm's residual, GeGLU by the error function, rows of
query_key_value head by head, rotary halves over the whole head. SwissArmyTransformer 0.4.12 (Apache-2.0, THUDM) has
them, see make_glm130b_sat.py. Two things are ProteinGLM's own: a head with weights of its own (the last norm's answer
is taken, and multiplied by it here), and what a token sees: all of the text (`mlm`), or what is before it (`clm`). A
2-layer model with random weights runs in float32 on a CPU.

Each file holds `weights.NAME` under the published names, `rotary_emb.inv_freq` included, which loaders ignore. For each
case `CASE.token_ids`, `CASE.positions`, `CASE.block_positions` (0), `CASE.context_len` (all rows, or 0) and
`CASE.logprobs` [rows, vocab_size]. The masked model's `fill.parallel` and `fill.left_to_right` are the ids of the case
`fill` with its masks filled from one pass, and one after the other; `pll.logprobs` are those of the residues of
`pll.token_ids` without <eos>, each masked in turn. The causal model's `greedy.*`: see making.py. Metadata `config` is
config.json.

The forward pass of the published modeling_proteinglm.py, typed out, gave the same log-probabilities within 4e-6 when
this was made. Knows nothing of this repository's code. To rerun, in the repository root (the venv: see
make_glm_sat.py):

    /tmp/sat/bin/python tests/golden/make_proteinglm_sat.py
"""

import argparse
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from making import Case, greedy, named, quieten, randomise, rows, save, tokens, visible
from sat.model.official import glm130B_model
from torch import Tensor, nn

PAD, FIRST, LAST = 0, 1, 27
MASK, GMASK, SMASK, EOD, SOP, EOP, EOS, UNK = range(28, 36)
SIZES: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "layernorm_epsilon": 1e-5}
INNER, ROWS, LENGTH = 64, 128, 256
CONFIG = SIZES | {
    "model_type": "ProteinGLM",
    "architectures": ["ProteinGLMModel"],
    "kv_channels": 8,
    "ffn_hidden_size": INNER,
    "padded_vocab_size": ROWS,
    "vocab_size": ROWS,
    "seq_length": LENGTH,
    "deepnorm": True,
    "apply_residual_connection_post_layernorm": True,
    "apply_query_key_layer_scaling": True,
    "glu_activation": "geglu",
    "rmsnorm": False,
    "post_layer_norm": True,
    "add_bias_linear": True,
    "add_qkv_bias": True,
    "multi_query_attention": False,
    "multi_query_group_num": 1,
    "rotary_embedding_2d": False,
    "fp32_residual_connection": False,
    "use_pytorch_sdpa": True,
    "untie_head": False,
    "head_num": 1,
    "moe": False,
    "torch_dtype": "float32",
}


def on_a_cpu() -> None:
    """As in make_glm130b_sat.py; and the last norm's answer instead of its product with the embedding."""
    mixin = glm130B_model.RotaryEmbeddingMixin
    forward = mixin.attention_forward
    mixin.attention_forward = lambda self, hidden, mask, **kw: forward(self, hidden, mask.bool(), **kw)
    glm130B_model.FinalForwardMixin.final_forward = lambda self, hidden, **kw: hidden.transpose(0, 1)
    torch.cuda.current_device = lambda: "cpu"


class Reference(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        args = argparse.Namespace(
            **SIZES,
            inner_hidden_size=INNER,
            vocab_size=ROWS,
            max_sequence_length=LENGTH,
            hidden_size_per_attention_head=None,
            layernorm_order="pre",
            model_parallel_size=1,
            skip_init=False,
            use_gpu_initialization=False,
            fp16=False,
            no_glu=False,
            position_encoding_2d=False,
        )
        self.blocks = glm130B_model.GLM130B(args).float().eval()
        self.output_layer = nn.Linear(SIZES["hidden_size"], ROWS, bias=False)
        randomise(self.named_parameters(), seed)
        quieten(self.output_layer.weight, LAST + 1)

    @torch.inference_mode()
    def logprobs(self, case: Case) -> Tensor:
        hidden = visible(case) == 0  # True where hidden
        with mock.patch.object(torch.Tensor, "half", lambda x: x):
            last, *_ = self.blocks(case["token_ids"][None], case["positions"][None], hidden[None, None])
        return torch.log_softmax(self.output_layer(last.reshape(-1, SIZES["hidden_size"])).float(), dim=-1)

    def published(self) -> dict[str, Tensor]:
        weights = {"transformer.output_layer.weight": self.output_layer.weight.data}
        for name, parameter in self.blocks.named_parameters():
            new = name.replace("transformer.word_embeddings", "transformer.embedding.word_embeddings")
            new = new.replace("transformer.layers", "transformer.encoder.layers").replace(
                ".attention.", ".self_attention."
            )
            weights[new.replace("transformer.final", "transformer.encoder.final")] = parameter.data
        frequencies = 1 / 10000 ** (torch.arange(0, 8, 2) / 8)
        for i in range(SIZES["num_layers"]):
            weights[f"transformer.encoder.layers.{i}.self_attention.rotary_emb.inv_freq"] = frequencies
        return weights


def text(ids: Sequence[int]) -> Case:
    return rows(ids, range(len(ids)), [0] * len(ids), len(ids))


def prompt(ids: Sequence[int], written: Sequence[int] = ()) -> Case:
    count = len(ids) + len(written)
    return rows([*ids, *written], range(count), [0] * count, 0)


def filled(model: Reference, ids: Sequence[int], one_by_one: bool) -> list[int]:
    ids = list(ids)
    while MASK in ids:
        best = model.logprobs(text(ids))[:, FIRST : LAST + 1].argmax(-1) + FIRST
        places = [n for n, token in enumerate(ids) if token == MASK]
        for place in places[:1] if one_by_one else places:
            ids[place] = int(best[place])
    return ids


def masked() -> None:
    model = Reference(20240601)
    ids = {
        "single": [5, 19, MASK, 22, 1, 1, 7, MASK, MASK, 12, EOS],
        "fill": [MASK, 3, 17, MASK, MASK, 20, 9, 9, 14, MASK, 2, EOS],
        "long": [*tokens(1, 59, FIRST, LAST), EOS],
    }
    tensors = named("weights", model.published())
    for name, own in ids.items():
        tensors |= named(name, text(own) | {"logprobs": model.logprobs(text(own))})
    for name, one_by_one in (("parallel", False), ("left_to_right", True)):
        tensors[f"fill.{name}"] = torch.tensor(filled(model, ids["fill"], one_by_one))
    whole = tokens(2, 12, FIRST, LAST)
    turns = [text([*whole[:n], MASK, *whole[n + 1 :], EOS]) for n in range(len(whole))]
    found = [model.logprobs(turn)[n, whole[n]] for n, turn in enumerate(turns)]
    tensors |= named("pll", {"token_ids": torch.tensor([*whole, EOS]), "logprobs": torch.stack(found)})
    save(__file__, "proteinglm_mlm.safetensors", tensors, config=CONFIG | {"is_causal": False})


def causal() -> None:
    model = Reference(20240602)
    cases = {
        "plain": prompt([5, 19, 8, 22, 1, 1, 7]),
        "prefixed": prompt([GMASK, SOP, EOS, 17, 4, 20, 9, 9, 14]),
        "long": prompt([GMASK, SOP, EOS, *tokens(1, 57, FIRST, LAST)]),
    }
    tensors = named("weights", model.published())
    for name, case in cases.items():
        tensors |= named(name, case | {"logprobs": model.logprobs(case)})
    written = greedy(
        lambda number: [GMASK, SOP, EOS, *tokens(number, 20, FIRST, LAST)],
        prompt,
        model.logprobs,
        range(FIRST, LAST + 1),
        distinct=8,
    )
    save(
        __file__, "proteinglm_clm.safetensors", tensors | named("greedy", written), config=CONFIG | {"is_causal": True}
    )


if __name__ == "__main__":
    on_a_cpu()
    masked()
    causal()

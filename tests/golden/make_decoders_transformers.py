"""Makes llama, qwen2, starcoder2 and iglm.safetensors: transformers' models that fill in the middle.

transformers 5.24 (Apache-2.0, Hugging Face) has the architectures of Code Llama and DeepSeek-Coder (llama), of
Qwen2.5-Coder (qwen2), of StarCoder2 and of IgLM (gpt2). 2-layer models with random weights run in float32 on a CPU,
with eager attention.

Each file holds `weights.NAME` under transformers' own names and, for each case, `CASE.token_ids`, `CASE.positions`,
`CASE.block_positions` (0), `CASE.context_len` (0: the models are causal) and `CASE.logprobs` [rows, vocab_size].
`greedy.*`: see making.py; its context is prefix and suffix between the sentinels, as on the models' cards (IgLM's: a
mask between them, a separator behind them). Metadata:
`config`, config.json as transformers 5 writes it.

Knows nothing of this repository's code. To rerun, in the repository root (the venv: see make_glm_sat.py, where
transformers was 5.24.0):

    /tmp/sat/bin/python tests/golden/make_decoders_transformers.py
"""

from collections.abc import Sequence
from typing import Any

import torch
from making import Case, greedy, named, quieten, randomise, rows, save, tokens
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

FIRST, LAST = 0, 104
EOS, PREFIX, SUFFIX, MIDDLE, BOS, EOT = range(105, 111)
SIZES: dict[str, Any] = {
    "vocab_size": 112,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": EOS,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
    "rope_theta": 1000000.0,
}


def lay_out(prompt: Sequence[int], written: Sequence[int] = ()) -> Case:
    count = len(prompt) + len(written)
    return rows([*prompt, *written], range(count), [0] * count, 0)


def infill(before: Sequence[int], after: Sequence[int], first: Sequence[int] | None) -> list[int]:
    return [*before, PREFIX, *after, SUFFIX] if first is None else [*first, PREFIX, *before, SUFFIX, *after, MIDDLE]


def make(name: str, config: Any, model_class: Any, seed: int, first: Sequence[int] | None) -> None:
    """`first` are the tokens before each text; None: IgLM's prompts."""
    config._attn_implementation = "eager"
    model = model_class(config).float().eval()
    randomise(model.named_parameters(), seed)
    quieten(model.get_output_embeddings().weight, LAST + 1)

    @torch.inference_mode()
    def logprobs(case: Case) -> Tensor:
        logits = model(input_ids=case["token_ids"][None], position_ids=case["positions"][None], use_cache=False).logits
        return torch.log_softmax(logits[0].float(), dim=-1)

    cases = {
        "plain": lay_out([*(first or []), 15, 7, 33, 80, 15, 15, 99]),
        "infill": lay_out(infill([5, 6, 44], [7, 90], first), [20, 86, 20, EOT, EOS]),
        "long": lay_out([*(first or []), *tokens(1, 70, FIRST, LAST)]),
    }
    # Of tied weights only one is written, as by save_pretrained.
    tied = config.tie_word_embeddings
    weights = {key: value for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}
    tensors = named("weights", weights)
    for label, case in cases.items():
        tensors |= named(label, case | {"logprobs": logprobs(case)})
    written = greedy(
        lambda number: infill(tokens(number, 12, FIRST, LAST), tokens(number + 1, 8, FIRST, LAST), first),
        lay_out,
        logprobs,
        range(FIRST, LAST + 1),
    )
    tensors |= named("greedy", written)
    save(__file__, name, tensors, config=config.to_dict())


def main() -> None:
    # Heads that are no part of the width, biases on attention and none on the MLP.
    llama = LlamaConfig(**SIZES, head_dim=16, attention_bias=True)
    make("llama.safetensors", llama, LlamaForCausalLM, 20230824, [BOS])
    qwen2 = Qwen2Config(**SIZES, tie_word_embeddings=True)
    make("qwen2.safetensors", qwen2, Qwen2ForCausalLM, 20240918, [])
    # No case is longer than the window.
    starcoder2 = Starcoder2Config(**SIZES, sliding_window=96)
    make("starcoder2.safetensors", starcoder2, Starcoder2ForCausalLM, 20240229, [])
    gpt2 = GPT2Config(
        vocab_size=112, n_embd=32, n_layer=2, n_head=4, n_positions=96, bos_token_id=EOS, eos_token_id=EOS
    )
    make("iglm.safetensors", gpt2, GPT2LMHeadModel, 20230919, None)


if __name__ == "__main__":
    main()

"""Makes `glm_sat.safetensors`: what SwissArmyTransformer's GLMModel answers to hand-laid-out sequences.

SwissArmyTransformer 0.4.12 (Apache-2.0, THUDM) is the reference implementation of GLM v1 that still installs. A
2-layer model with random weights runs in float32 on a CPU. The file holds its weights under the names of the
published GLM checkpoints and, for each case, `CASE.token_ids`, `CASE.positions`, `CASE.block_positions`,
`CASE.context_len` and `CASE.logprobs` [rows, vocab_size]. Knows nothing of this repository's code. To rerun, in
the repository root:

    python3.11 -m venv /tmp/sat
    /tmp/sat/bin/pip install torch==2.13.0 numpy safetensors triton einops cpm_kernels boto3 tensorboardX \\
        webdataset requests tqdm transformers
    /tmp/sat/bin/pip install --no-deps swissarmytransformer==0.4.12
    /tmp/sat/bin/python tests/golden/make_glm_sat.py
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from sat.model.official.glm_model import GLMModel
from torch import Tensor

CONFIG = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "vocab_size": 96,
    "max_sequence_length": 64,
    "layernorm_epsilon": 1e-5,
}
CLS, EOS, MASK, SMASK, GMASK, SOP = range(88, 94)


def reference() -> GLMModel:
    """A model whose biases and norms are not the usual zeros and ones, so that forgetting one shows."""
    sizes = CONFIG | {"max_sequence_length": CONFIG["max_sequence_length"] + 1}  # SAT counts rows, not tokens
    args = argparse.Namespace(
        **sizes,
        inner_hidden_size=None,
        hidden_size_per_attention_head=None,
        layernorm_order="pre",
        model_parallel_size=1,
        skip_init=False,
        use_gpu_initialization=False,
        params_dtype=torch.float32,
    )
    model = GLMModel(args).float().eval()
    generator = torch.Generator().manual_seed(20210318)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "layernorm" in name:
            parameter.data = 0.1 * noise + (1 if name.endswith("weight") else 0)
        else:
            parameter.data = (0.1 if name.endswith("bias") else 0.2) * noise
    return model


def published_name(name: str) -> str:
    """SAT's name of a parameter → the name that GLM's own checkpoints have."""
    name = name.replace("mixins.block_position_embedding.", "transformer.")
    return name.replace("transformer.word_embeddings.", "word_embeddings.")


def lay_out(context: Sequence[int], spans: Sequence[tuple[int, Sequence[int]]]) -> dict[str, Tensor]:
    """Part A, and part B's spans in order, each (index of its mask in part A, tokens)."""
    ids, positions, blocks = list(context), list(range(len(context))), [0] * len(context)
    for mask, tokens in spans:
        ids += [SOP, *tokens]
        positions += [mask] * (len(tokens) + 1)
        blocks += range(1, len(tokens) + 2)
    columns = {"token_ids": ids, "positions": positions, "block_positions": blocks}
    return {name: torch.tensor(column) for name, column in columns.items()} | {
        "context_len": torch.tensor(len(context))
    }


CASES = {
    "part_a": lay_out([CLS, 5, 17, 3, 80, 5, 5, EOS], []),
    "one_span": lay_out([CLS, 11, 40, MASK, 62, 9, 33, EOS], [(3, [25, 71, 8])]),
    "three_spans": lay_out(
        [CLS, MASK, 14, 52, MASK, 77, 1, 0, 36, SMASK, 20, EOS], [(4, [60]), (9, [2, 31, 31, 87, 46]), (1, [])]
    ),
    "gmask": lay_out([CLS, 70, 28, 19, 4, 55, 12, 66, 41, GMASK], [(9, list(range(10, 60, 3)))]),
}


@torch.inference_mode()
def logprobs(model: GLMModel, case: dict[str, Tensor]) -> Tensor:
    """Log-probabilities [rows, vocab_size] in one pass over the whole sequence."""
    rows = len(case["token_ids"])
    mask = torch.ones(rows, rows).tril()  # 1 where visible
    mask[:, : int(case["context_len"])] = 1
    positions = torch.stack([case["positions"], case["block_positions"]])[None]
    logits, *_ = model(case["token_ids"][None], positions, mask[None, None])
    return torch.log_softmax(logits[0].float(), dim=-1)


def main() -> None:
    model = reference()
    tensors = {f"weights.{published_name(name)}": p.data.clone() for name, p in model.named_parameters()}
    for name, case in CASES.items():
        columns = case | {"logprobs": logprobs(model, case)}
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in columns.items()}
    path = Path(__file__).with_name("glm_sat.safetensors")
    save_file(tensors, path, metadata={"config": json.dumps(CONFIG)})
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

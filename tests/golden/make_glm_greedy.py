"""Makes `glm_greedy.safetensors`: more of SwissArmyTransformer's GLMModel, with the weights of `glm_sat.safetensors`.

`greedy.*`: 64 tokens that it writes behind a [gMASK], see making.py. `erf.*`: a case as in make_glm_sat.py, but with
the exact GELU x * (1 + erf(x / sqrt(2))) / 2 in place of the tanh approximation: the port on the hub has it (`gelu` of
transformers' ACT2FN), the original and SAT have not; `erf.logprobs_tanh` are the original's for the same rows. Holds
no weights. Knows nothing of this repository's code. To rerun, in the repository root (the venv: see make_glm_sat.py):

    /tmp/sat/bin/python tests/golden/make_glm_greedy.py
"""

from make_glm_sat import CASES, CONFIG, EOS, GMASK, lay_out, logprobs, reference
from making import greedy, named, save, tokens
from torch.nn import functional as F

FIRST, LAST = 0, 87
ERF_CASE = "three_spans"


def main() -> None:
    model = reference()
    # 65 rows of either table: the last fed token, the 63rd, has block position 64.
    written = greedy(
        lambda seed: [88, *tokens(seed, 20, FIRST, LAST), GMASK],
        lambda context, span: lay_out(context, [(len(context) - 1, span)]),
        lambda case: logprobs(model, case),
        range(FIRST, LAST + 1),
    )
    assert EOS not in written["tokens"]
    tensors = named("greedy", written)
    case = CASES[ERF_CASE]
    approximate = logprobs(model, case)
    for layer in model.transformer.layers:
        layer.mlp.activation_func = F.gelu
    exact = logprobs(model, case)
    difference = (exact - approximate).abs().max().item()
    print("the exact GELU changes at most", difference)
    assert difference > 5e-4  # else no test can tell them apart
    tensors |= named("erf", case | {"logprobs": exact, "logprobs_tanh": approximate})
    save(__file__, "glm_greedy.safetensors", tensors, config=CONFIG, erf_case=ERF_CASE)


if __name__ == "__main__":
    main()

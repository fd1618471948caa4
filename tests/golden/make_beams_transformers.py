"""Makes `beams.json`: what beam search finds by transformers' `generate` with the network of `glm4.safetensors`.

transformers 5.24 (Apache-2.0, Hugging Face), float32 on a CPU. `context` is the prompt; each case has its settings, and
the sequences found, best first, with their end token, and what each is worth (log-probabilities after the bias over
length to the power of length_penalty). A bias on the end tokens makes hypotheses of a random network end.

Knows nothing of this repository's code. To rerun, in the repository root:

    /tmp/sat/bin/python tests/golden/make_beams_transformers.py
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GlmConfig, GlmForCausalLM

FOLDER = Path(__file__).parent
ENDS = [105, 112, 114]
CASES = [
    {"num_beams": beams, "length_penalty": penalty, "max_tokens": length, "min_tokens": least, "bias": bias}
    for beams, penalty, length, least, bias in [
        (2, 1.0, 12, 0, 0.0),
        (4, 1.0, 12, 0, 3.0),
        (4, 0.0, 12, 0, 2.0),
        (4, 2.0, 16, 0, 4.0),
        (8, 0.6, 10, 3, 5.0),
        (3, -1.0, 8, 2, 2.5),
    ]
]

torch.set_num_threads(1)


def main() -> None:
    with safe_open(FOLDER / "glm4.safetensors", "pt") as file:
        config = GlmConfig(**json.loads(file.metadata()["config"]))
        prefix = "weights."
        weights = {n.removeprefix(prefix): file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118
        context = file.get_tensor("greedy.context")
    model = GlmForCausalLM(config).eval()
    model.load_state_dict(weights)
    cases = []
    for case in CASES:
        found = model.generate(
            context[None],
            num_beams=case["num_beams"],
            num_return_sequences=case["num_beams"],
            length_penalty=case["length_penalty"],
            max_new_tokens=case["max_tokens"],
            min_new_tokens=case["min_tokens"] or None,
            sequence_bias={(end,): case["bias"] for end in ENDS} if case["bias"] else None,
            eos_token_id=ENDS,
            pad_token_id=105,
            do_sample=False,
            early_stopping=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        sequences = []
        for row in found.sequences[:, len(context) :].tolist():
            ends = [i for i, token in enumerate(row) if token in ENDS]
            sequences.append(row[: ends[0] + 1] if ends else row)
        cases.append(case | {"sequences": sequences, "worth": found.sequences_scores.tolist()})
    (FOLDER / "beams.json").write_text(json.dumps({"context": context.tolist(), "ends": ENDS, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()

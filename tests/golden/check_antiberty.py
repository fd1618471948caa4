"""Compares our masked language model with transformers on real weights: AntiBERTy (MIT, arXiv 2112.07782).

AntiBERTy is a BERT of 26 million parameters trained on 558 million antibody sequences. Its weights, 104 MB, are in the
package `antiberty` on PyPI and too large to be committed, so this is a script and not a test. It scores five sequences
with each residue masked in turn (their pseudo-log-likelihood) by transformers and by our engine.

    pip download --no-deps --dest /tmp/antiberty antiberty==0.1.3
    python -m zipfile -e /tmp/antiberty/antiberty-0.1.3-py3-none-any.whl /tmp/antiberty
    /tmp/sat/bin/python tests/golden/check_antiberty.py reference /tmp/antiberty   # the venv: see make_glm_sat.py
    .venv/bin/python -m tests.golden.check_antiberty compare /tmp/antiberty

Measured with transformers 5.24, torch 2.13 on a CPU: sums −77.3680, −62.2475, −59.3881, −26.9282 and −92.3751 by both;
no residue differs by more than 4.8e-6.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

# Variable domains: trastuzumab, heavy and light; adalimumab, heavy and light; pembrolizumab, heavy.
SEQUENCES = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
    "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS",
)  # fmt: skip
TOLERANCE = 1e-4


def put_together(package: Path) -> Path:
    """A folder as transformers' tokenizer and model would have saved it."""
    folder = package / "checkpoint"
    folder.mkdir(exist_ok=True)
    trained = package / "antiberty" / "trained_models"
    for path in (
        trained / "AntiBERTy_md_smooth" / "config.json",
        trained / "AntiBERTy_md_smooth" / "pytorch_model.bin",
        trained / "vocab.txt",
    ):
        shutil.copyfile(path, folder / path.name)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    return folder


@torch.inference_mode()
def reference(folder: Path) -> list[list[float]]:
    """Log-probabilities of each residue by transformers."""
    from transformers import BertForMaskedLM, BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(folder)
    model = BertForMaskedLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    found = []
    for sequence in SEQUENCES:
        ids = tokenizer(" ".join(sequence), return_tensors="pt")["input_ids"][0]
        rows = torch.arange(1, len(ids) - 1)
        assert len(rows) == len(sequence)
        masked = ids.repeat(len(rows), 1)
        masked[torch.arange(len(rows)), rows] = tokenizer.mask_token_id
        logits = torch.cat([model(batch).logits for batch in masked.split(16)])
        logprobs = torch.log_softmax(logits.float(), -1)[torch.arange(len(rows)), rows, ids[rows]]
        found.append(logprobs.tolist())
    return found


def ours(folder: Path) -> list[list[float]]:
    """The same by our engine."""
    from engine.config import EngineConfig
    from engine.engine import Engine
    from engine.events import ResultDone
    from engine.requests import Score

    engine = Engine(EngineConfig(str(folder), quant="none"))
    found = []
    for sequence in SEQUENCES:
        events = engine.run(Score(text=(" ".join(sequence),)))
        (result,) = (event.result for event in events if isinstance(event, ResultDone))
        found.append(result.spans[0]["token_logprobs"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["reference", "compare"])
    parser.add_argument("package", type=Path, help="folder that the wheel was unpacked into")
    args = parser.parse_args()
    folder, answers = put_together(args.package), args.package / "reference.json"
    if args.step == "reference":
        answers.write_text(json.dumps(reference(folder)))
        return
    worst = 0.0
    for sequence, mine, theirs in zip(SEQUENCES, ours(folder), json.loads(answers.read_text()), strict=True):
        difference = (torch.tensor(mine) - torch.tensor(theirs)).abs().max().item()
        worst = max(worst, difference)
        print(f"{sequence[:8]}… {len(sequence)} residues: {sum(mine):.4f} (transformers {sum(theirs):.4f}), ", end="")
        print(f"widest difference of a residue {difference:.1e}")
    assert worst < TOLERANCE, worst


if __name__ == "__main__":
    main()

"""Compares our fills and scores with the package iglm on its real weights: IgLM and IgLM-S.

IgLM (Shuai, Ruffolo, Gray; JHU academic licence, not commercial) is a GPT-2 trained on 558 million antibody sequences
to fill in one span. Its weights are in the package `iglm` on PyPI. Its licence forbids to commit them, so this is a
script and not a test. `log_likelihood` is the package's own function; its infill samples, so greedy and beam search
call its model's `generate` with the same arguments.

    pip download --no-deps --dest /tmp/iglm iglm==0.1.0
    python -m zipfile -e /tmp/iglm/iglm-0.1.0-py3-none-any.whl /tmp/iglm
    /tmp/iglm4/bin/python tests/golden/check_iglm.py reference /tmp/iglm  # a venv with torch, tqdm, transformers<5
    .venv/bin/python -m tests.golden.check_iglm compare /tmp/iglm

Measured with transformers 4.57, torch 2.13 on a CPU: mean log-likelihoods of spans −2.3054, −2.0780, −0.6263 (IgLM-S),
−2.4420, −1.7837, −1.4495 (IgLM) by both; none differs by more than 1e-6, nor do those of whole sequences. All spans of
greedy search and of three beams are the same.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

MODELS = ("IgLM-S", "IgLM")
# (chain, species, sequence, infilled range): trastuzumab, heavy and light; adalimumab, heavy.
CASES = (
    (
        "[HEAVY]", "[HUMAN]",
        "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
        (98, 109),
    ),
    (
        "[LIGHT]", "[HUMAN]",
        "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
        (23, 34),
    ),
    (
        "[HEAVY]", "[MOUSE]",
        "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
        (0, 8),
    ),
)  # fmt: skip
BEAMS = 3
TOLERANCE = 1e-4
Answer = dict[str, Any]


def reference(package: Path, model_name: str) -> list[Answer]:
    """What iglm says: mean log-likelihoods of the span and of the sequence, and the spans of greedy and beam search."""
    sys.path.insert(0, str(package))
    import torch
    from iglm import IgLM  # type: ignore[import-not-found]
    from iglm.model.tokens import BAD_WORD_IDS  # type: ignore[import-not-found]
    from iglm.model.utils import mask_span  # type: ignore[import-not-found]

    iglm = IgLM(model_name=model_name)
    tokenizer, found = iglm.tokenizer, []
    for chain, species, sequence, span in CASES:
        answer: Answer = {
            "span": iglm.log_likelihood(sequence, chain, species, infill_range=span),
            "sequence": iglm.log_likelihood(sequence, chain, species),
        }
        start = tokenizer.convert_tokens_to_ids([chain, species, *mask_span(list(sequence), *span)])
        for name, beams in (("greedy", 1), ("beams", BEAMS)):
            ids = iglm.model.generate(
                torch.tensor([start]),
                max_length=150,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.cls_token_id,
                bad_words_ids=BAD_WORD_IDS,
                do_sample=False,
                num_beams=beams,
                length_penalty=0.0,
            )[0, len(start) :]
            answer[name] = "".join(
                tokenizer.convert_ids_to_tokens([i for i in ids.tolist() if i > tokenizer.mask_token_id])
            )
        found.append(answer)
    return found


def put_together(package: Path, model_name: str) -> Path:
    """A folder as transformers would have saved it: the package keeps one vocabulary beside the models."""
    trained, folder = package / "iglm" / "trained_models", package / "checkpoint" / model_name
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*(trained / model_name).glob("*.json"), trained / model_name / "pytorch_model.bin"):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(trained / "vocab.txt", folder / "vocab.txt")
    return folder


def ours(folder: Path) -> list[Answer]:
    """The same by our engine."""
    from engine.config import EngineConfig
    from engine.engine import Engine
    from engine.events import ResultDone
    from engine.requests import Fill, Mask, Request, Score

    engine = Engine(EngineConfig(str(folder), quant="none"))

    def result(request: Request) -> Any:
        return next(event.result for event in engine.run(request) if isinstance(event, ResultDone))

    found = []
    for chain, species, sequence, (start, end) in CASES:
        before, after = chain + species + sequence[:start], sequence[end:]
        text = (before, Mask("[MASK]"), after)
        span = result(Score(text=text, spans=((sequence[start:end],),), include_end=True))
        whole = result(Score(context=(chain + species,), targets=(sequence,), include_end=True))
        room = (150 - len(sequence) + (end - start) - 4,)
        fills = {
            "greedy": result(Fill((text,), max_tokens=room)),
            "beams": result(Fill((text,), max_tokens=room, num_beams=BEAMS, length_penalty=0.0)),
        }
        found.append(
            {
                "span": span.logprob / span.num_tokens,
                "sequence": whole.logprob / whole.num_tokens,
                **{name: fill.blanks[0].text for name, fill in fills.items()},
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["reference", "compare"])
    parser.add_argument("package", type=Path, help="folder that the wheel was unpacked into")
    args = parser.parse_args()
    for model_name in MODELS:
        answers = args.package / f"{model_name}.json"
        if args.step == "reference":
            answers.write_text(json.dumps(reference(args.package, model_name)))
            continue
        pairs = zip(ours(put_together(args.package, model_name)), json.loads(answers.read_text()), strict=True)
        for (chain, species, *_), (mine, theirs) in zip(CASES, pairs, strict=True):
            print(f"{model_name} {chain}{species}:", *(f"{k} {mine[k]} (iglm {theirs[k]})" for k in mine), sep="\n  ")
            for name in ("span", "sequence"):
                assert abs(mine[name] - theirs[name]) < TOLERANCE, (model_name, name)
            for name in ("greedy", "beams"):
                assert mine[name] == theirs[name], (model_name, name)


if __name__ == "__main__":
    main()

"""The perplexity benchmark: its calibration text, its error bars, and a report of a tiny checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import perplexity
from benchmarks.perplexity import EXCERPT_BYTES, Change, calibration_text, report, table
from model.checkpoint import load
from tests.conftest import WORDS
from training.corpus import MIX, held_out_documents, training_documents
from training.evaluate import log_probs, masked_windows

LONG, SHORT = "en_bible_web", "zh_poetry_tang"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of long documents and one of short ones, each document of lines of its own."""
    folder = tmp_path_factory.mktemp("corpora")
    sentence = " ".join(WORDS)
    long = ["\n".join(f"{n} {line} {sentence}." for line in range(100)) for n in range(60)]
    short = [f"{n} 红色的船。{sentence}。" for n in range(1500)]
    (folder / f"{LONG}.txt").write_text("\n\n".join(long), encoding="utf-8")
    (folder / f"{SHORT}.txt").write_text("\n\n".join(short), encoding="utf-8")
    return folder


def test_the_calibration_text_is_of_training_documents_alone(corpora: Path) -> None:
    text = calibration_text(corpora, 50_000)
    assert text == calibration_text(corpora, 50_000)
    assert text != calibration_text(corpora, 50_000, seed=1)
    assert 50_000 <= len(text.encode()) <= 52_500
    lines = {line for line in text.split("\n") if line}
    trained = {line for name in (LONG, SHORT) for d in training_documents(corpora, name) for line in d.split("\n")}
    held_out = {line for name in (LONG, SHORT) for d in held_out_documents(corpora, name) for line in d.split("\n")}
    assert held_out
    assert lines <= trained - held_out


def test_files_have_their_shares_of_a_training_pass(corpora: Path) -> None:
    documents = calibration_text(corpora, 400_000).strip().split("\n\n")
    assert all(len(document.encode()) < EXCERPT_BYTES + 500 for document in documents)
    taken = {name: sum(len(d.encode()) for d in documents if ("红" in d) == (name == SHORT)) for name in (LONG, SHORT)}
    there = {name: MIX[name] * sum(len(d.encode()) for d in training_documents(corpora, name)) for name in taken}
    assert taken[LONG] / taken[SHORT] == pytest.approx(there[LONG] / there[SHORT], rel=0.2)


def test_a_change_is_that_of_the_perplexity_over_all_targets() -> None:
    before = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])]
    after = [torch.tensor([-1.1, -2.2]), torch.tensor([-3.0])]
    change = Change.between(before, after)
    assert change.value == pytest.approx(math.exp(0.3 / 3) - 1)
    # Windows lose 0.3 and 0, against 0.2 and 0.1 on average.
    assert change.error == pytest.approx(math.sqrt(0.1**2 + 0.1**2) / 3 * math.exp(0.1), rel=1e-5)
    assert str(Change.between(before, before)) == "+0.00 ± 0.00"


def test_a_report_and_its_table(
    tiny_checkpoint: Callable[..., Path], corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "step_ms", lambda folder, case: {"1": 1.0, "16": 0.25})
    names = ["int8", "int4, groups of 32, calibrated", "cache in int8"]
    result = report(tiny_checkpoint(), corpora, names, windows=3, length=24)
    assert list(result["schemes"]) == names
    assert result["perplexity"].keys() == {"[MASK]", "[sMASK]", "[gMASK]"}
    assert result["schemes"]["int8"]["bytes_per_weight"] == pytest.approx(1 + 4 / 64, abs=0.05)
    assert abs(result["schemes"]["int8"]["change_all"][0]) < 0.05
    assert result["schemes"]["cache in int8"]["bytes_per_weight"] == 2
    assert 0 < abs(result["schemes"]["cache in int8"]["change_all"][0]) < 0.05
    lines = list(table(result))
    assert len(lines) == 2 + 1 + len(names)
    assert len({line.count("|") for line in lines}) == 1


def test_windows_through_the_cache_have_the_log_probabilities_of_a_dense_pass(
    tiny_checkpoint: Callable[..., Path], corpora: Path
) -> None:
    checkpoint = load(tiny_checkpoint())
    source = masked_windows([*held_out_documents(corpora, LONG)], checkpoint.tokenizer, "[sMASK]", 40)
    samples = [next(source) for _ in range(perplexity.BATCH + 3)]
    dense = log_probs(checkpoint.model, samples, 8)
    for kind, allowed in (("auto", 1e-4), ("int8", 0.05)):
        cached = perplexity.cached_log_probs(checkpoint.model, samples, kind)
        for ours, expected in zip(cached, dense, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=allowed)

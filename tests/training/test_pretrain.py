"""A whole run of pretraining on two small invented files."""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.attention import DenseAttention, visible
from model.checkpoint import load
from training.corpus import is_held_out
from training.pretrain import Document, rate, sentences, train, windows

MIX = {"en_ships": 1, "zh_moon": 2}


def write_documents(path: Path, texts: list[str]) -> None:
    """Enough training documents, and one that the split holds out."""
    held_out = next(t for t in texts if is_held_out(t))
    kept = [t for t in texts if not is_held_out(t)][:40]
    path.write_text("\n\n".join([*kept, held_out]) + "\n", encoding="utf-8")


def write_corpora(folder: Path) -> Path:
    """Texts that say the same again and again, but for a number."""
    folder.mkdir()
    ship = "the ship went down the river and the men saw the town.\n"
    moon = "明月何时照我还。春风又绿江南岸，\n"
    write_documents(folder / "en_ships.txt", [(ship * 3 + str(n)) for n in range(2000)])
    write_documents(folder / "zh_moon.txt", [(moon * 4 + str(n)) for n in range(2000)])
    return folder


def arguments(tmp_path: Path, tokenizer: Path, seconds: float) -> argparse.Namespace:
    corpora = tmp_path / "corpora"
    return argparse.Namespace(
        corpora=corpora if corpora.exists() else write_corpora(corpora),
        tokenizer=tokenizer,
        out=tmp_path / "run",
        minutes=seconds / 60,
        decay=0.4,
        layers=2,
        hidden=64,
        batch_tokens=192,
        shortest=24,
        longest=32,
        mask_ratio=0.25,
        mean_span=3.0,
        lr_matrix=0.02,
        lr_other=3e-3,
        seed=0,
        init=None,
    )


def clock() -> Callable[[], float]:
    """A clock by which every step takes 15 ms, however busy the machine is."""
    ticks = itertools.count()
    return lambda: 0.015 * next(ticks)


def log(tmp_path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]


def state(tmp_path: Path) -> dict[str, object]:
    values: dict[str, object] = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    return values


def test_run_learns_stops_resumes_and_writes_a_loadable_folder(tmp_path: Path, tokenizer_folder: Path) -> None:
    train(arguments(tmp_path, tokenizer_folder, 0.2), MIX, clock())
    first = state(tmp_path)
    assert isinstance(first["step"], int)
    assert isinstance(first["elapsed"], float)
    assert first["step"] > 0
    assert first["elapsed"] >= 0.2

    with (tmp_path / "run" / "log.jsonl").open("a") as file:  # of steps that were lost
        file.write(json.dumps({"step": 10**6, "tokens": 1, "loss": 0.0}) + "\n")
    train(arguments(tmp_path, tokenizer_folder, 4.0), MIX, clock())
    second = state(tmp_path)
    assert isinstance(second["step"], int)
    assert second["step"] > first["step"]
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    held_out = [row["held_out"] for row in rows if "held_out" in row]
    assert len(held_out) >= 2
    # Untrained it is the logarithm of the vocabulary, about 5.9.
    assert held_out[-1] < min(held_out[0], 5.9) - 0.5

    checkpoint = load(tmp_path / "run" / "model")
    weights = second["model"]
    assert isinstance(weights, dict)
    for name, parameter in checkpoint.model.named_parameters():
        assert torch.equal(parameter, weights[name].half().float()), name
    ids = torch.tensor([checkpoint.tokenizer.encode("the ship")])
    zeros = torch.zeros_like(ids)
    hidden = checkpoint.model(ids, zeros, zeros, DenseAttention(visible(ids.shape[1], torch.tensor([1]))))
    assert torch.isfinite(checkpoint.model.logits(hidden)).all()
    assert not (tmp_path / "run" / "state.new").exists()


def test_spent_budget_trains_no_further(tmp_path: Path, tokenizer_folder: Path) -> None:
    for _ in range(2):
        train(arguments(tmp_path, tokenizer_folder, 0.1), MIX, clock())
        steps = [row["step"] for row in log(tmp_path)]
    assert steps[-1] == steps[0]


def test_rate_warms_up_holds_and_falls_to_nothing() -> None:
    assert rate(0, 0.0, 100.0, 0.4) == pytest.approx(0.01)
    assert rate(99, 10.0, 100.0, 0.4) == rate(500, 60.0, 100.0, 0.4) == 1.0
    assert rate(500, 80.0, 100.0, 0.4) == pytest.approx(0.5)
    assert rate(500, 100.0, 100.0, 0.4) == 0.0


def test_sentences_cover_a_window() -> None:
    ends = np.array([False, True, False, False, True, True, False])
    assert sentences(ends) == [(0, 2), (2, 5), (5, 6), (6, 7)]
    assert sentences(np.array([False, True])) == [(0, 2)]


def test_windows_lie_within_one_document() -> None:
    documents = [Document(np.full(n, number), *np.zeros((2, n), dtype=bool)) for number, n in enumerate((5, 30, 200))]
    source = windows(documents, [1, 1, 1], (20, 40), np.random.default_rng(0))
    drawn = [next(source) for _ in range(500)]
    assert all(len(set(window.ids.tolist())) == 1 and len(window.ids) <= 40 for window in drawn)
    assert {int(window.ids[0]) for window in drawn} == {0, 1, 2}

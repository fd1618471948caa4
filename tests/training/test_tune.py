"""Training adapters: what is learned is what the engine scores, what is written is what peft and the engine read."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from engine.requests import Mask, Score
from model.adapters.target import AdapterTarget
from model.checkpoint import load
from model.layout import parse
from quant.usage import UsageError
from tests.answers import wire
from training.adapters import AdapterOptions, learner
from training.lessons import LessonError, Lessons
from training.tune import TuneError, TuneOptions, tune

pytestmark = pytest.mark.filterwarnings("ignore")
LINES: list[dict[str, Any]] = [
    {"text": "the [MASK] sang near the [MASK]", "spans": ["old bird", "river"]},
    {"text": "a red [MASK] under the hill", "spans": ["boat"]},
    {"context": "then the tin cat", "target": "saw a fish"},
    {"context": "the dog [MASK] over the boat", "target": "sang"},
]
METHODS = {
    "lora": AdapterOptions(rank=4, dropout=0.1),
    "rslora": AdapterOptions(rank=3, rslora=True, target_modules=("query_key_value", "dense_h_to_4h")),
    "prefix": AdapterOptions(method="prefix", prefix_length=3),
    "projected": AdapterOptions(method="prefix", prefix_length=3, projection=8),
}


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES * 3))
    return path


def options(folder: Path, data: Path, out: Path, **more: Any) -> TuneOptions:
    given = {
        "model": folder,
        "evaluation": data,
        "steps": 12,
        "batch_size": 4,
        "eval_every": 4,
        "lr": 0.01,
        "warmup": 2,
    }
    return TuneOptions(data, out, **{**given, **more})


def scored(engine: Engine, line: dict[str, Any], adapter: str | None) -> tuple[float, int]:
    def segments(text: str) -> Any:
        return tuple(p if isinstance(p, str) else Mask(p[0]) for p in parse(text) if p != "")

    if "target" in line:
        score = Score(context=segments(line["context"]), targets=(line["target"],), include_end=True)
    else:
        score = Score(text=segments(line["text"]), spans=(tuple(line["spans"]),), include_end=True)
    (result,) = (wire(e.result) for e in engine.run(replace(score, adapter=adapter)) if isinstance(e, ResultDone))
    return result["logprob"], result["num_tokens"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_learned_is_what_the_engine_scores(folder: Path, data: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / method
    found = tune(options(folder, data, out, adapter=METHODS[method]))
    assert found["eval_loss"] < found["eval_loss_before"] - 0.02
    engine = Engine(EngineConfig(str(folder), kv_cache_gb=0.01, adapters={method: out}))
    for adapter, expected in ((None, found["eval_loss_before"]), (method, found["eval_loss"])):
        scores = [scored(engine, line, adapter) for line in LINES]
        loss = -sum(s for s, _ in scores) / sum(n for _, n in scores)
        assert loss == pytest.approx(expected, abs=2e-4)
    assert "without" in (out / "README.md").read_text()
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    # Whoever may read one of its files may read all: a server often is another user.
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1


def test_peft_reads_what_was_written(folder: Path, data: Path, tmp_path: Path) -> None:
    tune(options(folder, data, tmp_path / "out"))
    checkpoint = load(folder, "none")
    fresh = learner(checkpoint.model, AdapterOptions(), AdapterTarget(checkpoint.model), "tiny")
    network = fresh.network.get_base_model()  # type: ignore[operator]
    network = network if not isinstance(network, peft.PeftModel) else network.get_base_model()
    again = peft.PeftModel.from_pretrained(fresh.network.unload(), str(tmp_path / "out"))  # type: ignore[operator]
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    held = {n.replace(".default.", "."): p for n, p in again.named_parameters() if "lora_" in n}
    assert held.keys() == written.keys()
    assert all(torch.equal(held[name], written[name]) for name in written)


@pytest.mark.parametrize("method", ["lora", "projected"])
def test_a_run_that_was_stopped_ends_the_same(folder: Path, data: Path, tmp_path: Path, method: str) -> None:
    whole = options(folder, data, tmp_path / "whole", adapter=METHODS[method])
    tune(whole)

    class Stopped(Exception):
        pass

    def stop(progress: Any, steps: int) -> None:
        if progress.step == 7:
            raise Stopped

    parted = replace(whole, out=tmp_path / "parted")
    with pytest.raises(Stopped):
        tune(parted, stop)
    tune(parted)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parted"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "parted/log.jsonl").read_text()
    with pytest.raises(TuneError, match="holds another run, with other lr"):
        tune(replace(parted, lr=0.5))


def test_it_stops_when_nothing_gets_better_and_keeps_the_best(folder: Path, data: Path, tmp_path: Path) -> None:
    found = tune(options(folder, data, tmp_path / "out", lr=0.5, steps=400, eval_every=2, patience=2, warmup=0))
    assert found["steps"] < 400
    assert found["best_step"] <= found["steps"] - 4


def test_only_the_adapter_learns(folder: Path) -> None:
    checkpoint = load(folder, "none")
    before = {n: p.clone() for n, p in checkpoint.model.named_parameters()}
    adapter = learner(checkpoint.model, AdapterOptions(), AdapterTarget(checkpoint.model), "tiny")
    assert all("lora_" in name for name in adapter.parameters())
    after = {n.replace("base_layer.", ""): p for n, p in checkpoint.model.named_parameters()}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_gradient_is_that_of_the_merged_matrix(folder: Path) -> None:
    """d loss / d B = scale · (d loss / d W) · Aᵀ, at B = 0."""
    checkpoint = load(folder, "none")
    model, path = checkpoint.model, "transformer.layers.0.attention.dense"
    ids = torch.arange(8)[None]
    args = (ids, ids, torch.zeros_like(ids))
    adapter = learner(
        model, AdapterOptions(rank=2, alpha=6.0, target_modules=("attention.dense",)), AdapterTarget(model), "t"
    )
    attend = adapter.attend(8, torch.tensor([8]))
    layer = model.get_submodule(path)
    weight = layer.base_layer.weight.requires_grad_(True)  # type: ignore[union-attr]
    model.logits(adapter.network(*args, attend)).square().mean().backward()
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # type: ignore[index,union-attr]
    assert torch.allclose(up.grad, 3.0 * weight.grad @ down.detach().t(), atol=1e-6)  # type: ignore[operator]


def test_text_without_blanks_is_cut_anew_in_every_pass(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "the old cat saw the red boat and the bird sang near the river"}) + "\n")
    import numpy as np

    lessons = Lessons(path, load(folder, "none"))
    first, second = (lessons.samples(0, np.random.default_rng(n))[0] for n in (1, 2))
    assert first.token_ids.tolist() != second.token_ids.tolist()
    assert lessons.samples(0)[0].token_ids.tolist() == lessons.samples(0)[0].token_ids.tolist()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"words": 1}', "line 2: must be an object with text and spans, context and target, or text"),
        ('{"text": "", "spans": []}', "line 2: text must be a string that is not empty"),
        ('{"text": "a [MASK]", "spans": ["b", "c"]}', "line 2: text has 1 blanks, spans has 2 strings"),
        ('{"text": "a [MASK]", "spans": [1]}', "line 2: spans must be a list of strings that are not empty"),
        ('{"text": "a [MASK]"}', "line 2: text has blanks; spans must give the texts in them"),
        ('{"context": "[MASK] [MASK]", "target": "a"}', "line 2: context has 2 masks, at most one is allowed"),
        (json.dumps({"text": "boat " * 400 + "[MASK]", "spans": ["a"]}), "the limit is 256"),
    ],
)
def test_a_line_that_is_wrong_is_named(folder: Path, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + line + "\n")
    with pytest.raises(LessonError) as error:
        Lessons(path, load(folder, "none"))
    assert message in str(error.value)


def test_a_loss_that_is_no_number_ends_it(folder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="the loss is no longer a number"):
        tune(options(folder, data, tmp_path / "out", lr=1e30, steps=50, warmup=0, patience=0))


def test_the_command_goes_on_after_a_kill(folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [
        "tune",
        str(data),
        str(out),
        "--model",
        str(folder),
        "--eval",
        str(data),
        "--steps",
        "120",
        "--eval-every",
        "2",
    ]
    command = [sys.executable, "-m", "server.cli", *args, "--patience", "0", "--batch-size", "2", "--json"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or len((out / "log.jsonl").read_text().splitlines()) < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 120


def test_unknown_targets_are_named(folder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target-modules: 'q_proj' is none of"):
        tune(options(folder, data, tmp_path / "out", adapter=AdapterOptions(target_modules=("q_proj",))))

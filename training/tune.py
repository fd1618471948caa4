"""Trains an adapter: LoRA or a prefix, with the infilling or the conditional objective. It can resume.

The same command resumes from its last checkpoint, and ends with the same weights as an uninterrupted run. The folder
gets the best adapter so far by evaluation loss, `state.pt` for resuming, `log.jsonl`, and, with matplotlib, `loss.png`.
"""

import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from model.adapters.target import AdapterTarget
from model.attention import DenseAttention, visible
from model.checkpoint import Checkpoint, load
from quant.usage import UsageError
from training.adapters import AdapterOptions, Learner, learner, restore
from training.blocklm import Sample
from training.lessons import LessonError, Lessons
from training.pretrain import collate

EVAL_BATCH = 16


class TuneError(UsageError):
    """A run that cannot begin or resume; the message is one line."""


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """The options of a run.

    `steps` None means `epochs` passes. Without an `evaluation` file a share of the lines is held out. `patience` is the
    number of evaluations without a better loss after which training stops; 0 never stops it.
    """

    data: Path
    out: Path
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    model: Path | None = None
    preset: str | None = None
    tokenizer: Path | None = None
    evaluation: Path | None = None
    eval_share: float = 0.1
    eval_every: int = 50
    patience: int = 5
    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 16
    lr: float = 1e-3
    warmup: int = 20
    weight_decay: float = 0.0
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(slots=True)
class Progress:
    """The state of a run that is saved for resuming."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    worse: int = 0
    before: float = math.nan
    log: list[dict[str, float]] | None = None


Tell = Callable[[Progress, int], None]


def tune(options: TuneOptions, tell: Tell = lambda progress, steps: None) -> dict[str, Any]:
    """Trains to the end and returns facts of the result. `tell` takes each step and the number of steps.

    Raises TuneError, LessonError, CheckpointError and OSError.
    """
    began = time.monotonic()
    device = _device(options)
    checkpoint = load(options.model, "none", "cpu", None, None, options.preset, options.tokenizer)
    lessons = Lessons(options.data, checkpoint)
    train, held_out, evaluation = _divided(options, lessons, checkpoint)
    torch.manual_seed(options.seed)
    target = AdapterTarget(checkpoint.model, checkpoint.family.namings)
    adapter = learner(checkpoint.model, options.adapter, target, checkpoint.name)
    adapter.network.to(device)
    if isinstance(adapter, torch.nn.Module):
        adapter.to(device)
    run = _Run(options, adapter, lessons, train, evaluation, held_out, device)
    run.go(tell)
    _card(options, checkpoint, run)
    _plot(options.out, run.progress.log or [])
    return {
        "adapter": str(options.out),
        "method": options.adapter.method,
        "train_lines": len(train),
        "eval_lines": len(held_out),
        "steps": run.progress.step,
        "best_step": run.progress.best_step,
        "eval_loss_before": round(run.progress.before, 4),
        "eval_loss": round(run.progress.best, 4),
        "trained_parameters": sum(p.numel() for p in adapter.parameters().values()),
        "seconds": round(time.monotonic() - began, 1),
    }


class _Run:
    """One training, from its start or from where it was."""

    def __init__(
        self,
        options: TuneOptions,
        adapter: Learner,
        lessons: Lessons,
        train: list[int],
        evaluation: Lessons,
        held_out: list[int],
        device: str,
    ) -> None:
        self.options, self.adapter, self.lessons, self.train, self.device = options, adapter, lessons, train, device
        self.evaluation, self.held_out = evaluation, held_out
        per_pass = max(-(-len(train) // options.batch_size), 1)
        self.steps = options.steps or max(round(options.epochs * per_pass), 1)
        self.per_pass = per_pass
        self.optimizer = torch.optim.AdamW(
            adapter.parameters().values(), options.lr, betas=(0.9, 0.98), weight_decay=options.weight_decay
        )
        self.progress = Progress(log=[])
        self._resume()

    def go(self, tell: Tell) -> None:
        p, o = self.progress, self.options
        o.out.mkdir(parents=True, exist_ok=True)
        if p.step == 0:
            judged = self._samples_to_judge()
            p.before = p.best = self._evaluate(judged, bare=True)
            if not self.adapter.starts_as_nothing:
                p.best = self._evaluate(judged)
            self._note(p.best, math.nan)
            self._save()
            self._keep()
        judged = self._samples_to_judge()
        while p.step < self.steps and not (o.patience and p.worse >= o.patience):
            trained = self._step()
            p.step += 1
            tell(p, self.steps)
            if p.step % o.eval_every == 0 or p.step == self.steps:
                found = self._evaluate(judged)
                if found < p.best:
                    p.best, p.best_step, p.worse = found, p.step, 0
                    self._save()
                else:
                    p.worse += 1
                self._note(found, trained)
                self._keep()

    def _step(self) -> float:
        """One step of the optimizer; the loss before it."""
        o, number = self.options, self.progress.step
        epoch, place = divmod(number, self.per_pass)
        order = np.random.default_rng((o.seed, epoch)).permutation(len(self.train))
        chosen = order[place * o.batch_size : (place + 1) * o.batch_size]
        rng = np.random.default_rng((o.seed, epoch, place, 1))
        samples = [s for n in chosen for s in self.lessons.samples(self.train[int(n)], rng)]
        torch.manual_seed(o.seed * 1_000_003 + number)  # dropout's, so that a run that was stopped goes on the same
        self.adapter.network.train(o.adapter.dropout > 0)
        total, count = self._loss(samples)
        loss = total / count
        if not bool(torch.isfinite(loss)):
            raise TuneError(f"step {number + 1}: the loss is no longer a number; a smaller --lr may help")
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * self._rate(number)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters().values(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def _rate(self, number: int) -> float:
        """Up during the warm-up, then down to a tenth along a cosine."""
        if number < self.options.warmup:
            return (number + 1) / self.options.warmup
        done = (number - self.options.warmup) / max(self.steps - self.options.warmup, 1)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(done, 1.0)))

    def _loss(self, samples: list[Sample], bare: bool = False) -> tuple[Tensor, int]:
        """The sum over the targets of minus their log-probabilities, and how many targets there are."""
        ids, positions, blocks, targets, context_len = (x.to(self.device) for x in collate(samples))
        if bare:
            attend, shift = DenseAttention(visible(ids.shape[1], context_len)), 0
        else:
            attend, shift = self.adapter.attend(ids.shape[1], context_len), self.adapter.shift
        hidden = self.adapter.network(ids, positions + shift, blocks, attend)
        learned = targets >= 0
        logits = self.adapter.network.logits(hidden[learned])
        return F.cross_entropy(logits, targets[learned], reduction="sum"), int(learned.sum())

    def _samples_to_judge(self) -> list[Sample]:
        samples = [s for number in self.held_out for s in self.evaluation.samples(number)]
        return sorted(samples, key=lambda s: len(s.token_ids))

    @torch.no_grad()
    def _evaluate(self, samples: list[Sample], bare: bool = False) -> float:
        """Minus the mean log-probability of a token of the lines set apart, ends included; `bare`: before anything
        was learned, and without a prefix."""
        self.adapter.network.eval()
        total, count = 0.0, 0
        for start in range(0, len(samples), EVAL_BATCH):
            loss, targets = self._loss(samples[start : start + EVAL_BATCH], bare)
            total, count = total + float(loss), count + targets
        return total / count

    def _note(self, found: float, trained: float) -> None:
        assert self.progress.log is not None
        line = {"step": self.progress.step, "eval_loss": found, "train_loss": trained}
        self.progress.log.append(line)
        with (self.options.out / "log.jsonl").open("w", encoding="utf-8") as file:
            for each in self.progress.log:
                file.write(json.dumps({k: v for k, v in each.items() if v == v}) + "\n")

    def _save(self) -> None:
        """Replaces the saved adapter by the current one, file by file, each whole."""
        fresh = self.options.out / "new"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            self.adapter.save(fresh)
        except SafetensorError as error:
            raise TuneError(f"{fresh}: {error}") from None
        for path in fresh.iterdir():
            # As other files here: safetensors leaves its own to their owner alone, whoever is to serve them.
            path.chmod(fresh.stat().st_mode & 0o666)
            os.replace(path, self.options.out / path.name)
        fresh.rmdir()

    def _keep(self) -> None:
        """Writes the state for resuming, whole or not at all."""
        state = {
            "options": self._described(),
            "progress": asdict(self.progress),
            "learned": {name: p.detach().cpu() for name, p in self.adapter.parameters().items()},
            "optimizer": self.optimizer.state_dict(),
        }
        path = self.options.out / "state.pt"
        written = io.BytesIO()  # torch tells of a full disk in words of its own
        torch.save(state, written)
        path.with_suffix(".new").write_bytes(written.getbuffer())
        os.replace(path.with_suffix(".new"), path)

    def _resume(self) -> None:
        path = self.options.out / "state.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            before, now = state["options"], self._described()
        except (RuntimeError, EOFError, UnpicklingError, LookupError, TypeError):
            raise TuneError(f"{path} is not the state of a run; remove it first") from None
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise TuneError(f"{self.options.out} holds another run, with other {', '.join(changed)}; remove it first")
        self.progress = Progress(**state["progress"])
        restore(self.adapter, state["learned"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _described(self) -> dict[str, str]:
        """The options that must stay the same for a run to resume."""
        found = {name: str(value) for name, value in asdict(self.options).items() if name not in ("out", "device")}
        return found | {"lines": str(len(self.lessons)), "steps": str(self.steps)}


def _device(options: TuneOptions) -> str:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise TuneError("--device cuda: there is no GPU that torch can use")
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def _divided(options: TuneOptions, lessons: Lessons, checkpoint: Checkpoint) -> tuple[list[int], list[int], Lessons]:
    """Which lines are learned from and which are judged by, and the file of the latter."""
    numbers = list(range(len(lessons)))
    if options.evaluation is not None:
        other = Lessons(options.evaluation, checkpoint)
        return numbers, list(range(len(other))), other
    order = np.random.default_rng((options.seed, 7)).permutation(len(numbers))
    count = min(max(round(len(numbers) * options.eval_share), 1), len(numbers) - 1)
    if count < 1:
        raise LessonError(f"{options.data.name} has one line; --eval FILE is needed")
    return sorted(map(int, order[count:])), sorted(map(int, order[:count])), lessons


def _card(options: TuneOptions, checkpoint: Checkpoint, run: _Run) -> None:
    """A page that describes the adapter and its training."""
    a, p = options.adapter, run.progress
    how = (
        f"LoRA of rank {a.rank}, alpha {a.alpha:g}{', rank-stabilized' if a.rslora else ''}"
        if a.method == "lora"
        else f"a prefix of {a.prefix_length} tokens" + (f", projected from {a.projection}" if a.projection else "")
    )
    (options.out / "README.md").write_text(
        f"# Adapter of {checkpoint.name}\n\n{how}; learned from {len(run.train)} lines of `{options.data.name}` in "
        f"{p.step} steps of {options.batch_size} lines, learning rate {options.lr:g}, seed {options.seed}.\n\n"
        f"Loss a token, ends included, on {len(run.held_out)} lines that were not learned from: {p.before:.4f} "
        f"without, {p.best:.4f} with it (step {p.best_step}).\n",
        "utf-8",
    )


def _plot(out: Path, log: list[dict[str, float]]) -> None:
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.5))
    for name, label in (("train_loss", "learned from"), ("eval_loss", "set apart")):
        points = [(line["step"], line[name]) for line in log if line[name] == line[name]]
        axis.plot(*zip(*points, strict=True), label=label) if points else None
    axis.set(xlabel="step", ylabel="loss a token")
    axis.legend()
    figure.tight_layout()
    figure.savefig(out / "loss.png", dpi=100)
    pyplot.close(figure)

"""Pretrains a GLM with the blank-infilling objective, resumable, and writes a checkpoint folder.

    python -m training.pretrain --corpora FOLDER --tokenizer tokenizer.model --out runs/demo --minutes 240

The learning rate is warmed up, held, and brought down linearly over the last part of the time budget. A
run that was stopped goes on from its last checkpoint when the same command is given again. `--out` gets
`state.pt` (for resuming), the checkpoint folder `model/`, `log.jsonl` and, with matplotlib, `loss.png`.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn

from model.attention import DenseAttention, visible
from model.config import GLMConfig
from model.glm import GLM
from model.tokenizer import Tokenizer
from training.blocklm import Mixture, Rng, Sample, Span, SpecialIds, sample
from training.corpus import MIX, held_out_documents, training_documents

SENTENCE_ENDS = ".?!;:。？！；：…\n"
# The share of a pass in which each kind of sample is drawn, and a denser mask than GLM's 15 %: a small model on
# a small budget learns more from a step with more targets.
DEMO_MIXTURE = Mixture(token=0.62, sentence=0.08, document=0.3, mask_ratio=0.25, continuation=0.1)
WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True)
class Document:
    """The ids of a text, and which of them end a sentence."""

    ids: NDArray[np.int64]
    ends: NDArray[np.bool_]


def tokenized(texts: Iterable[str], tokenizer: Tokenizer) -> list[Document]:
    """Texts as ids, without those too short to learn from."""
    ender = np.array([any(c in tokenizer.piece(i) for c in SENTENCE_ENDS) for i in range(tokenizer.num_pieces)])
    rows = (np.array(tokenizer.encode(text)) for text in texts)
    return [Document(ids, ender[ids]) for ids in rows if len(ids) >= 8]


def read_documents(
    folder: Path, tokenizer: Tokenizer, mix: Mapping[str, int] = MIX, held_out: bool = False
) -> dict[str, list[Document]]:
    """Every document of the mix, tokenized, by file."""
    choose = held_out_documents if held_out else training_documents
    return {name: tokenized(choose(folder, name), tokenizer) for name in mix}


def windows(documents: list[Document], weights: list[int], length: int, rng: Rng) -> Iterator[Document]:
    """Endless windows of at most `length` tokens, in proportion to the documents' weighted lengths."""
    sizes = np.array([len(d.ids) * w for d, w in zip(documents, weights, strict=True)], dtype=np.float64)
    # A document shorter than the window is one sample however short it is: draw by windows, not by tokens.
    share = np.maximum(sizes, length * 0.75 * np.array(weights))
    cumulative = np.cumsum(share / share.sum())
    while True:
        for number in np.searchsorted(cumulative, rng.random(4096)):
            document = documents[min(number, len(documents) - 1)]
            start = int(rng.integers(0, max(1, len(document.ids) - length // 2)))
            if len(document.ids) <= length:
                start = 0
            yield Document(document.ids[start : start + length], document.ends[start : start + length])


def sentences(ends: NDArray[np.bool_]) -> list[Span]:
    """The sentences of a window, each up to and with its end token."""
    borders = [0, *(int(i) + 1 for i in np.flatnonzero(ends)), len(ends)]
    return [(a, b) for a, b in pairwise(borders) if b > a]


def collate(samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """ids, positions, block positions, targets, each [batch, longest], and context lengths [batch]."""
    longest = max(len(s.token_ids) for s in samples)
    longest = -(-longest // 16) * 16
    out = np.zeros((4, len(samples), longest), dtype=np.int64)
    out[3] = -1
    for row, s in enumerate(samples):
        for field, values in enumerate((s.token_ids, s.positions, s.block_positions, s.targets)):
            out[field, row, : len(values)] = values
    ids, positions, blocks, targets = torch.from_numpy(out)
    return ids, positions, blocks, targets, torch.tensor([s.context_len for s in samples])


def loss(model: GLM, batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy over the target tokens; the head is computed for those alone."""
    ids, positions, blocks, targets, context_len = batch
    attend = DenseAttention(visible(ids.shape[1], context_len))
    hidden = model(ids, positions, blocks, attend)
    learned = targets >= 0
    return F.cross_entropy(model.logits(hidden[learned]), targets[learned])


def sinusoids(rows: int, width: int) -> Tensor:
    """The sinusoidal position table of arXiv 1706.03762, [rows, width]: nearness to start learning from."""
    angle = torch.arange(rows)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def initialize(model: GLM) -> None:
    """Normal matrices, the last one of each branch scaled down by depth, sinusoidal position tables."""
    config = model.config
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "layernorm" in name:
            nn.init.ones_(parameter)
        elif "position_embeddings" in name:
            with torch.no_grad():
                parameter.copy_(0.08 * sinusoids(*parameter.shape))
        else:
            last = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers) if last else 0.02)


def optimizers(model: GLM) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, elapsed: float, budget: float, decay: float) -> float:
    """The factor on the learning rate: warm-up by steps, decay over the last share of the time budget."""
    left = max(0.0, 1.0 - elapsed / budget)
    return min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, left / decay)


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    return SpecialIds(
        **{role: tokenizer.special[role] for role in ("cls", "eos", "sop", "eop", "mask", "smask", "gmask")}
    )


def save_checkpoint(model: GLM, tokenizer_folder: Path, folder: Path) -> None:
    """Writes a folder that `glm-infill serve` loads: float16 weights, sizes, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().to(torch.float16).contiguous() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(model.config.to_json())
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())


def plot(log: Path, image: Path) -> None:
    """Draws training and held-out loss over tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(7, 4))
    for key, label in (("loss", "training (mean of 50 steps)"), ("held_out", "held-out")):
        points = [(r["tokens"] / 1e6, r[key]) for r in rows if key in r]
        axes.plot(*zip(*points, strict=True), label=label) if points else None
    axes.set(xlabel="million tokens seen", ylabel="nats per predicted token")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(image, dpi=120)
    plt.close(figure)


class Run:
    """One pretraining run: model, optimizers, counters, and their files."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out: Path = args.out
        self.tokenizer_folder: Path = args.tokenizer
        self.tokenizer = Tokenizer.read(args.tokenizer)
        config = GLMConfig(
            num_layers=args.layers,
            hidden_size=args.hidden,
            num_attention_heads=args.hidden // 64,
            vocab_size=-(-self.tokenizer.size // 128) * 128,
            max_sequence_length=512,
        )
        torch.manual_seed(args.seed)
        self.model = GLM(config)
        initialize(self.model)
        self.optimizers = optimizers(self.model)
        self.step, self.tokens, self.elapsed = 0, 0, 0.0
        state = self.out / "state.pt"
        if state.exists():
            saved: dict[str, Any] = torch.load(state, weights_only=True)
            self.model.load_state_dict(saved["model"])
            for optimizer, values in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            self.step, self.tokens, self.elapsed = saved["step"], saved["tokens"], saved["elapsed"]

    def save(self) -> None:
        """State first under another name, so that a kill never leaves half a file."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "elapsed": self.elapsed,
        }
        torch.save(state, self.out / "state.new")
        os.replace(self.out / "state.new", self.out / "state.pt")
        save_checkpoint(self.model, self.tokenizer_folder, self.out / "model")

    def log(self, **values: float) -> None:
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "tokens": self.tokens, **values}) + "\n")


def train(args: argparse.Namespace, mix: Mapping[str, int] = MIX) -> None:
    """Trains on the mix's files (name → weight) until the time budget is spent; see this module's first lines."""
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(args)
    special = special_ids(run.tokenizer)
    corpus = read_documents(args.corpora, run.tokenizer, mix)
    flat = [(d, mix[name]) for name, rows in corpus.items() for d in rows]
    rng = np.random.default_rng([args.seed, run.step])
    source = windows([d for d, _ in flat], [w for _, w in flat], args.window, rng)
    held = [d for rows in read_documents(args.corpora, run.tokenizer, mix, held_out=True).values() for d in rows]
    held_rng = np.random.default_rng(7)
    held_windows = windows(held, [1] * len(held), args.window, held_rng)
    held_batches = [collate([draw(next(held_windows), special, held_rng) for _ in range(args.batch)]) for _ in range(4)]
    pool: list[Sample] = []
    recent: list[float] = []
    budget = args.minutes * 60.0
    with Progress() as progress:
        task = progress.add_task("pretraining", total=budget, completed=int(run.elapsed))
        while run.elapsed < budget:
            began = time.perf_counter()
            if not pool:
                # Batches of like length waste little padding.
                drawn = [draw(next(source), special, rng) for _ in range(args.batch * 8)]
                drawn.sort(key=lambda s: len(s.token_ids))
                groups = [drawn[i : i + args.batch] for i in range(0, len(drawn), args.batch)]
                groups = [groups[i] for i in rng.permutation(len(groups))]
                pool = [s for g in groups for s in g]
            batch = collate(pool[: args.batch])
            del pool[: args.batch]
            for optimizer, base in zip(run.optimizers, (args.lr_matrix, args.lr_other), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = base * rate(run.step, run.elapsed, budget, args.decay)
                optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(run.model, batch)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            for optimizer in run.optimizers:
                optimizer.step()
            run.step += 1
            run.tokens += batch[0].numel()
            recent.append(value.item())
            # A step that was paused counts as a few seconds, so that the schedule follows work done.
            run.elapsed += min(time.perf_counter() - began, 5.0)
            progress.update(task, completed=run.elapsed, description=f"step {run.step} loss {recent[-1]:.3f}")
            if run.step % 50 == 0:
                run.log(loss=sum(recent) / len(recent), seconds=run.elapsed)
                recent.clear()
            if run.step % 250 == 0:
                run.log(held_out=evaluate(run.model, held_batches))
                run.save()
    run.log(held_out=evaluate(run.model, held_batches))
    run.save()
    try:
        plot(args.out / "log.jsonl", args.out / "loss.png")
    except ImportError:
        print("no loss plot: matplotlib is not installed")


def draw(window: Document, special: SpecialIds, rng: Rng) -> Sample:
    return sample(window.ids, sentences(window.ends), DEMO_MIXTURE, special, rng)


def evaluate(model: GLM, batches: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]) -> float:
    """Mean held-out loss."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return sum(loss(model, b).item() for b in batches) / len(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.model and its config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=240.0)
    parser.add_argument("--decay", type=float, default=0.4, help="share of the time over which the rate falls")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window", type=int, default=80)
    parser.add_argument("--lr-matrix", type=float, default=0.02)
    parser.add_argument("--lr-other", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

"""Pretrains a GLM with the blank-infilling objective, resumable, and writes a checkpoint folder.

    python -m training.pretrain --corpora FOLDER --tokenizer FOLDER --out runs/demo --minutes 240
    torchrun --nproc-per-node 2 -m training.pretrain …      # data-parallel: on a CPU faster than two threads

The learning rate is warmed up, held, and brought down linearly over the last part of the time budget. A
run that was stopped goes on from its last checkpoint when the same command is given again. `--out` gets
`state.pt` (for resuming), the checkpoint folder `model/`, `log.jsonl` and, with matplotlib, `loss.png`.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor, nn

from model.attention import DenseAttention, visible
from model.checkpoint import load
from model.families import glm
from model.network import Network
from model.tokenizer import Tokenizer
from model.tokenizers.sentence_pieces import SentencePieces
from training.blocklm import Mixture, Rng, Sample, Span, SpecialIds, sample
from training.corpus import BY_HEART_WEIGHT, MIX, by_heart, held_out_documents, training_documents

SENTENCE_ENDS = ".?!;:。？！；：…\n"
CLAUSE_ENDS = SENTENCE_ENDS + ",，、"
# The share of windows that begin and end where a clause does, as the texts do that people type.
WHOLE_CLAUSES = 0.5
SHORTEST_WINDOW = 4
# The share of a pass in which each kind of sample is drawn, and a denser mask than GLM's 15 %: a small model on
# a small budget learns more from a step with more targets.
DEMO_MIXTURE = Mixture(token=0.62, sentence=0.08, document=0.3, mask_ratio=0.25, continuation=0.1)
WARMUP_STEPS = 100
SAVE_STEPS = 250
# ids, positions, block positions, targets, each [batch, longest], and context lengths [batch].
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Document:
    """The ids of a text, and whether each ends a sentence or a clause."""

    ids: NDArray[np.int64]
    ends: NDArray[np.bool_]
    clauses: NDArray[np.bool_]

    def window(self, start: int, end: int) -> "Document":
        """The part from token `start` to `end`."""
        return Document(self.ids[start:end], self.ends[start:end], self.clauses[start:end])


def tokenized(texts: Iterable[str], tokenizer: Tokenizer) -> list[Document]:
    """Texts as ids, without texts that are too short to train on."""
    pieces = [tokenizer.piece(i) for i in range(tokenizer.num_pieces)]
    sentence, clause = (np.array([any(c in p for c in ends) for p in pieces]) for ends in (SENTENCE_ENDS, CLAUSE_ENDS))
    rows = (np.array(tokenizer.encode(text)) for text in texts)
    return [Document(ids, sentence[ids], clause[ids]) for ids in rows if len(ids) >= 8]


def read_documents(
    folder: Path, tokenizer: Tokenizer, mix: Mapping[str, int] = MIX, held_out: bool = False
) -> dict[str, list[Document]]:
    """Every document of the mix, tokenized, by file."""
    choose = held_out_documents if held_out else training_documents
    return {name: tokenized(choose(folder, name), tokenizer) for name in mix}


def windows(
    documents: list[Document], weights: list[int], lengths: tuple[int, int], rng: Rng, clauses: bool = False
) -> Iterator[Document]:
    """Endless windows of `lengths` (shortest, longest) tokens, drawn by the documents' weighted lengths.

    With `clauses` some windows are moved to the borders of clauses. The probability density of a length falls with its
    square, so that short and long windows have similar numbers of tokens: most steps are cheap, and every position is
    trained throughout.
    """
    shortest, longest = lengths
    sizes = np.array([len(d.ids) * w for d, w in zip(documents, weights, strict=True)], dtype=np.float64)
    # A document shorter than the window is one sample however short it is: draw by windows, not by tokens.
    share = np.maximum(sizes, shortest * np.array(weights))
    cumulative = np.cumsum(share / share.sum())
    while True:
        for number in np.searchsorted(cumulative, rng.random(4096)):
            document = documents[min(number, len(documents) - 1)]
            length = round(1.0 / rng.uniform(1.0 / longest, 1.0 / shortest))
            start = int(rng.integers(0, max(1, len(document.ids) - length // 2)))
            if len(document.ids) <= length:
                start = 0
            end = min(start + length, len(document.ids))
            yield document.window(*(whole_clauses(document, start, end, rng) if clauses else (start, end)))


def whole_clauses(document: Document, start: int, end: int, rng: Rng) -> Span:
    """A window, moved in a share of cases to begin and end at borders of clauses.

    Half of those end before the punctuation mark of the clause. The new window has at most twice the length. A window
    without two borders stays.
    """
    if rng.random() >= WHOLE_CLAUSES:
        return start, end
    first = max(0, 2 * start - end)
    before = np.flatnonzero(document.clauses[first:start])
    begin = first + int(before[-1]) + 1 if len(before) else first
    borders = np.flatnonzero(document.clauses[begin:end])
    if not len(borders) or (len(before) == 0 and first > 0):
        return start, end
    stop = begin + int(borders[-1]) + int(rng.integers(0, 2))
    return (begin, stop) if stop - begin >= SHORTEST_WINDOW else (start, end)


def sentences(ends: NDArray[np.bool_]) -> list[Span]:
    """The sentences of a window, each up to and with its end token."""
    borders = [0, *(int(i) + 1 for i in np.flatnonzero(ends)), len(ends)]
    return [(a, b) for a, b in pairwise(borders) if b > a]


def padded(num_tokens: int) -> int:
    """The row length of a batch whose longest sample has `num_tokens`."""
    return -(-num_tokens // 16) * 16


def collate(samples: list[Sample]) -> Batch:
    """Samples as one batch, padded at their ends."""
    longest = padded(max(len(s.token_ids) for s in samples))
    out = np.zeros((4, len(samples), longest), dtype=np.int64)
    out[3] = -1
    for row, s in enumerate(samples):
        for field, values in enumerate((s.token_ids, s.positions, s.block_positions, s.targets)):
            out[field, row, : len(values)] = values
    ids, positions, blocks, targets = torch.from_numpy(out)
    return ids, positions, blocks, targets, torch.tensor([s.context_len for s in samples])


def batches(samples: list[Sample], num_tokens: int) -> list[list[Sample]]:
    """Batches of samples of similar length, each of at most `num_tokens` tokens with padding, and at least one
    sample."""
    result: list[list[Sample]] = []
    for item in sorted(samples, key=lambda s: len(s.token_ids)):
        if result and (len(result[-1]) + 1) * padded(len(item.token_ids)) <= num_tokens:
            result[-1].append(item)
        else:
            result.append([item])
    return result


def loss(model: Network, batch: Batch) -> Tensor:
    """Mean cross-entropy [] over the target tokens. Only these go through the head."""
    ids, positions, blocks, targets, context_len = batch
    attend = DenseAttention(visible(ids.shape[1], context_len))
    hidden = model(ids, positions, blocks, attend)
    learned = targets >= 0
    return F.cross_entropy(model.logits(hidden[learned]), targets[learned])


@dataclass(frozen=True, slots=True)
class Waves:
    """The first pairs (sine, cosine) of a position table, from column `start` on."""

    start: int
    frequencies: Tensor

    def table(self, rows: int) -> Tensor:
        """The table [rows, 2 × frequencies]."""
        angle = torch.arange(rows)[:, None] * self.frequencies
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    def every(self, step: int, count: int) -> list[tuple[int, float]]:
        """Column and frequency of at most `count` pairs, each `step`-th of them."""
        chosen = range(0, min(step * count, len(self.frequencies)), step)
        return [(self.start + 2 * i, float(self.frequencies[i])) for i in chosen]


def waves(start: int, count: int, longest: int) -> Waves:
    """Wavelengths from 3 tokens to `longest`, in a geometric series."""
    return Waves(start, 2 * math.pi / torch.logspace(math.log10(3.0), math.log10(longest), count))


def offset_head(pairs: list[tuple[int, float, int]], width: int) -> tuple[Tensor, Tensor]:
    """Query and key rows [2 × pairs, width] by which a position p finds p + offset.

    Each pair is (column, frequency, offset). The sine and cosine of a position turned by frequency × offset are
    those of the position found, whose product with its own key is the largest.
    """
    query, key = torch.zeros(2, 2 * len(pairs), width)
    for row, (column, frequency, offset) in enumerate(pairs):
        turn = frequency * offset
        rows = slice(2 * row, 2 * row + 2)
        columns = slice(column, column + 2)
        key[rows, columns] = torch.eye(2)
        query[rows, columns] = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return query, key


def initialize(model: Network) -> None:
    """Random normal matrices, the last one of each branch scaled down by depth, and attention to near tokens.

    Learned position tables know no nearness, and a run of some hours would spend its time on finding it. So both tables
    start as sinusoids, each in columns of its own (in the same columns their products would disturb each other). Three
    heads per layer start as those that every GLM ends up with: the neighbour before, the neighbour behind (1 token
    away, 2 in odd layers), and the token before in the same span. The other heads start at random. All of them are
    trained.
    """
    config = model.architecture
    width, size = config.hidden_size, config.head_dim
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "layernorm" in name:
            nn.init.ones_(parameter)
        else:
            last = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers) if last else 0.02)
    rows = config.max_sequence_length + 1
    text, span = waves(0, width // 4, rows), waves(width // 2, width // 8, rows)
    with torch.no_grad():
        for module, own in (
            (model.transformer.position_embeddings, text),
            (model.transformer.block_position_embeddings, span),
        ):
            table = own.table(rows)
            module.weight.zero_()
            module.weight[:, own.start : own.start + table.shape[1]] = 0.08 * table
        for layer in range(config.num_layers):
            away = 1 + layer % 2
            near = [[(c, f, offset) for c, f in text.every(1, size // 2)] for offset in (-away, away)]
            before = [(c, f, 0) for c, f in text.every(2, size // 4)] + [
                (c, f, -1) for c, f in span.every(1, size // 4)
            ]
            weight = model.get_parameter(f"transformer.layers.{layer}.attention.query_key_value.weight")
            for head, pairs in enumerate([*near, before][: config.num_attention_heads]):
                for start, found in zip((0, width), offset_head(pairs, width), strict=True):
                    weight[start + head * size : start + head * size + len(found)] = found


class Optimizers:
    """Muon for the blocks' matrices, AdamW for all other parameters.

    Muon treats queries, keys and values as three matrices, though they are stored as one. Queries and keys have a lower
    learning rate: at that of the others attention saturates.
    """

    QUERY_KEY = 0.3

    def __init__(self, model: Network) -> None:
        matrices: list[nn.Parameter] = []
        queries_keys: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        self._thirds: list[tuple[nn.Parameter, nn.Parameter, slice]] = []
        for name, parameter in model.named_parameters():
            if name.endswith("query_key_value.weight"):
                width = parameter.shape[1]
                for number in range(3):
                    rows = slice(number * width, (number + 1) * width)
                    third = nn.Parameter(parameter.data[rows])  # shares its memory
                    self._thirds.append((third, parameter, rows))
                    (matrices if number == 2 else queries_keys).append(third)
            elif parameter.ndim == 2 and ".layers." in name:
                matrices.append(parameter)
            else:
                others.append(parameter)
        groups = [{"params": matrices, "share": 1.0}, {"params": queries_keys, "share": self.QUERY_KEY}]
        self.matrices = torch.optim.Muon(groups, momentum=0.95, weight_decay=0.05)
        self.others = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, lr_matrix: float, lr_other: float) -> None:
        """One step along the gradients of the model's parameters."""
        for third, whole, rows in self._thirds:
            third.grad = None if whole.grad is None else whole.grad[rows]
        for group in self.matrices.param_groups:
            group["lr"] = lr_matrix * group["share"]
        for group in self.others.param_groups:
            group["lr"] = lr_other
        self.matrices.step()  # type: ignore[no-untyped-call]
        self.others.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of all optimizers, for `load_state_dict`."""
        return {"matrices": self.matrices.state_dict(), "others": self.others.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of all optimizers."""
        self.matrices.load_state_dict(state["matrices"])
        self.others.load_state_dict(state["others"])


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a data-parallel run under torchrun; one process without it."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def join() -> "Ranks":
        """Connects the processes that torchrun has started."""
        if "RANK" not in os.environ:
            return Ranks()
        dist.init_process_group("gloo")
        return Ranks(dist.get_rank(), dist.get_world_size())

    def mean(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over the ranks."""
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for grad, own in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(own.view_as(grad))

    def first(self, value: float) -> float:
        """Rank 0's value, on every rank, so that all stop at the same step."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()


def rate(step: int, elapsed: float, budget: float, decay: float) -> float:
    """The factor of the learning rate: warm-up by steps, decay over the last share of the time budget."""
    left = max(0.0, 1.0 - elapsed / budget)
    return min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, left / decay)


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Ids of the special tokens for the objective."""
    return SpecialIds(
        **{role: tokenizer.special[role] for role in ("cls", "eos", "sop", "eop", "mask", "smask", "gmask")}
    )


def save_checkpoint(model: Network, tokenizer_folder: Path, folder: Path) -> None:
    """Writes a folder that `glm-infill serve` loads: float16 weights, sizes, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().to(torch.float16).contiguous() for n, p in model.named_parameters()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(glm.config(model.architecture), indent=2) + "\n")
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
        self.tokenizer = SentencePieces.read(args.tokenizer)
        torch.manual_seed(args.seed)
        if args.init is None:
            architecture = glm.architecture(
                num_layers=args.layers,
                hidden_size=args.hidden,
                num_attention_heads=args.hidden // 64,
                vocab_size=-(-self.tokenizer.size // 128) * 128,
                max_sequence_length=512,
            )
            self.model = Network(architecture)
            initialize(self.model)
        else:
            learned = load(args.init).model
            self.model = Network(learned.architecture)
            self.model.load_state_dict(learned.state_dict())
        self.optimizers = Optimizers(self.model)
        self.step, self.tokens, self.elapsed = 0, 0, 0.0
        state = self.out / "state.pt"
        if state.exists():
            saved: dict[str, Any] = torch.load(state, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizers.load_state_dict(saved["optimizers"])
            self.step, self.tokens, self.elapsed = saved["step"], saved["tokens"], saved["elapsed"]

    def save(self) -> None:
        """Writes the state under another name first, so that a kill never leaves half a file."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "elapsed": self.elapsed,
        }
        torch.save(state, self.out / "state.new")
        os.replace(self.out / "state.new", self.out / "state.pt")
        save_checkpoint(self.model, self.tokenizer_folder, self.out / "model")

    def cut_log(self) -> None:
        """Removes what an interrupted run logged after its last checkpoint."""
        path = self.out / "log.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step))

    def log(self, **values: float) -> None:
        """Appends a line of JSON to the log."""
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "tokens": self.tokens, **values}) + "\n")


def train(
    args: argparse.Namespace, mix: Mapping[str, int] = MIX, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Trains on the mix's files (name → weight) until the time budget, in seconds of the clock, is spent.

    See this module's first lines.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    ranks = Ranks.join()
    run = Run(args)
    if ranks.rank == 0:
        run.cut_log()
    special = special_ids(run.tokenizer)
    mixture = replace(DEMO_MIXTURE, mask_ratio=args.mask_ratio, mean_span=args.mean_span)
    corpus = read_documents(args.corpora, run.tokenizer, mix)
    flat = [(d, mix[name]) for name, rows in corpus.items() for d in rows]
    for name in mix:
        flat += [(d, BY_HEART_WEIGHT) for d in tokenized(by_heart(args.corpora, name), run.tokenizer)]
    rng = np.random.default_rng([args.seed, run.step, ranks.rank])
    source = windows([d for d, _ in flat], [w for _, w in flat], (args.shortest, args.longest), rng, clauses=True)
    held = [d for rows in read_documents(args.corpora, run.tokenizer, mix, held_out=True).values() for d in rows]
    held_rng = np.random.default_rng(7)
    held_windows = windows(held, [1] * len(held), (args.shortest, args.longest), held_rng)
    held_samples = [draw(next(held_windows), mixture, special, held_rng) for _ in range(192)]
    held_out = [collate(b) for b in batches(held_samples, args.batch_tokens)]
    ready: list[list[Sample]] = []
    recent: list[float] = []
    budget = args.minutes * 60.0
    with Progress(disable=ranks.rank > 0) as progress:
        task = progress.add_task("pretraining", total=budget, completed=int(run.elapsed))
        while run.elapsed < budget:
            began = clock()
            if not ready:
                # Batches of like length waste little padding.
                ready = batches(
                    [draw(next(source), mixture, special, rng) for _ in range(args.batch_tokens // 8)],
                    args.batch_tokens,
                )
                ready = [ready[i] for i in rng.permutation(len(ready))]
            batch = collate(ready.pop())
            run.model.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(run.model, batch)
            value.backward()  # type: ignore[no-untyped-call]
            ranks.mean(run.model.parameters())
            nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            now = rate(run.step, run.elapsed, budget, args.decay)
            run.optimizers.step(args.lr_matrix * now, args.lr_other * now)
            run.step += 1
            run.tokens += batch[0].numel() * ranks.size
            recent.append(value.item())
            # A step that was paused counts as a few seconds, so that the schedule follows work done.
            run.elapsed = ranks.first(run.elapsed + min(clock() - began, 5.0))
            if ranks.rank > 0:
                continue
            progress.update(task, completed=run.elapsed, description=f"step {run.step} loss {recent[-1]:.3f}")
            if run.step % 50 == 0:
                run.log(loss=sum(recent) / len(recent), seconds=run.elapsed)
                recent.clear()
            if run.step % SAVE_STEPS == 0:
                run.log(held_out=evaluate(run.model, held_out))
                run.save()
    if ranks.size > 1:
        dist.destroy_process_group()
    if ranks.rank > 0:
        return
    run.log(held_out=evaluate(run.model, held_out))
    run.save()
    try:
        plot(args.out / "log.jsonl", args.out / "loss.png")
    except ImportError:
        print("no loss plot: matplotlib is not installed")


def draw(window: Document, mixture: Mixture, special: SpecialIds, rng: Rng) -> Sample:
    """A sample of one window, by the mixture."""
    return sample(window.ids, sentences(window.ends), mixture, special, rng)


def evaluate(model: Network, held_out: list[Batch]) -> float:
    """Mean held-out loss per token."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return sum(loss(model, b).item() for b in held_out) / len(held_out)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.model and its config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="checkpoint folder to go on from; its sizes are taken")
    parser.add_argument("--minutes", type=float, default=240.0)
    parser.add_argument("--decay", type=float, default=0.4, help="share of the time over which the rate falls")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=3072, help="tokens a step and rank, padding included")
    parser.add_argument("--shortest", type=int, default=48, help="tokens of the shortest window")
    parser.add_argument("--longest", type=int, default=384, help="tokens of the longest window")
    parser.add_argument("--mask-ratio", type=float, default=DEMO_MIXTURE.mask_ratio, help="share of tokens in spans")
    parser.add_argument("--mean-span", type=float, default=DEMO_MIXTURE.mean_span, help="tokens of a [MASK] span")
    parser.add_argument("--lr-matrix", type=float, default=0.02)
    parser.add_argument("--lr-other", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()

"""Calibrated weights: a network's blocks run on text, each matrix compensated for what it sees (`quant.calibrate`)."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from model.attention import DenseAttention, visible
from model.checkpoint import Weights, fill, matrices
from model.config import CheckpointError, GLMConfig
from model.glm import Block
from model.tokenizer import Tokenizer
from quant.calibrate import compensate
from quant.linear import Weight
from quant.schemes import Float, Scheme, Tensors

LENGTH = 256  # tokens of the longest window
SHORTEST = 8
TOKENS_PER_BLANK = 16
LONGEST_BLANK = 7


@dataclass(frozen=True, slots=True)
class Window:
    """A blank-infilling sequence: ids, positions and block positions, each [num_tokens], as `model.layout` has them."""

    token_ids: Tensor
    positions: Tensor
    block_positions: Tensor
    context_len: int


def windows(path: Path, tokenizer: Tokenizer, count: int, longest: int, seed: int = 0) -> list[Window]:
    """Windows of up to `longest` tokens from a UTF-8 text with blank lines between its documents.

    Every token is as likely as any other. Half of the windows have short blanks, a fifth of the text in all; of the
    rest the end is a [gMASK], since both ways of use must survive. Raises CheckpointError for too little text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a readable UTF-8 text ({error})") from None
    documents = [ids for part in re.split(r"\n\s*\n", text) if len(ids := tokenizer.encode(part)) >= SHORTEST]
    if not documents:
        raise CheckpointError(f"{path}: no document of {SHORTEST} tokens or more to calibrate on")
    rng = Random(seed)
    chosen = rng.choices(documents, [len(ids) for ids in documents], k=count)
    result = []
    for number, ids in enumerate(chosen):
        start = rng.randint(0, max(0, len(ids) - longest))
        lay_out = _with_blanks if number % 2 == 0 or "[gMASK]" not in tokenizer.masks else _with_continuation
        result.append(lay_out(ids[start : start + longest], tokenizer, rng))
    return result


def _with_blanks(ids: list[int], tokenizer: Tokenizer, rng: Random) -> Window:
    """One blank of 1 … LONGEST_BLANK tokens in each stretch of TOKENS_PER_BLANK."""
    context, pieces, end = [tokenizer.cls], [], 0
    for first in range(0, max(len(ids) - LONGEST_BLANK, 1), TOKENS_PER_BLANK):
        stretch = min(TOKENS_PER_BLANK, len(ids) - first)
        size = rng.randint(1, min(LONGEST_BLANK, stretch))
        start = first + rng.randint(0, stretch - size)
        context += ids[end:start]
        end = start + size
        pieces.append((len(context), ids[start:end]))
        context.append(tokenizer.masks["[MASK]"])
    return _window([*context, *ids[end:], tokenizer.eos], pieces, tokenizer)


def _with_continuation(ids: list[int], tokenizer: Tokenizer, rng: Random) -> Window:
    """A quarter to three quarters of the window, and [gMASK] for the rest."""
    cut = round(len(ids) * rng.uniform(0.25, 0.75))
    context = [tokenizer.cls, *ids[:cut], tokenizer.masks["[gMASK]"]]
    return _window(context, [(len(context) - 1, ids[cut:])], tokenizer)


def _window(context: list[int], pieces: list[tuple[int, list[int]]], tokenizer: Tokenizer) -> Window:
    """Part A and, for each blank's position, its span as part B."""
    rows = [(token, position, 0) for position, token in enumerate(context)]
    for position, span in pieces:
        rows += [(token, position, block) for block, token in enumerate([tokenizer.sop, *span], 1)]
    token_ids, positions, block_positions = torch.tensor(rows).t().contiguous()
    return Window(token_ids, positions, block_positions, len(context))


class Calibration:
    """Compensated weights of a network's blocks, asked for in order; the folder is float.

    Each matrix is compensated for its inputs as the matrices before it, already quantized, give them. In memory are
    one block in float32, the windows' hidden states (4 bytes × hidden_size × tokens) and one Hessian.
    """

    def __init__(
        self,
        config: GLMConfig,
        weights: Weights,
        windows: list[Window],
        scheme: Scheme,
        finished: Callable[[str], Tensors | None],
    ) -> None:
        """`finished` gives the stored form of a path that an earlier run wrote, None for one that is to be made."""
        self.config, self.weights, self.windows, self.scheme = config, weights, windows, scheme
        self.finished = finished
        self._stored = self._walk()

    def stored(self, path: str) -> Tensors:
        """The stored form of the matrix at a path, behind all that were asked for before."""
        return next(stored for own, stored in self._stored if own == path)

    @torch.inference_mode()
    def _walk(self) -> Iterator[tuple[str, Tensors]]:
        hidden = self._embedded()
        for layer in range(self.config.num_layers):
            prefix = f"transformer.layers.{layer}."
            with torch.device("meta"):
                block = Block(self.config, layer, Float(), torch.float32)
            fill(block, self.weights, torch.float32, torch.device("cpu"), prefix)
            for path, module in matrices(block):
                stored = self.finished(prefix + path)
                if stored is None:
                    hessian = self._hessian(block, module, hidden)
                    try:
                        stored = compensate(module.packed()["weight"], hessian, self.scheme)
                    except ValueError as error:
                        raise CheckpointError(f"{prefix}{path}.weight: {error}") from None
                module.assign({"weight": self.scheme.dequantize(stored)})
                yield prefix + path, stored
            for number, window in enumerate(self.windows):
                hidden[number] = block(hidden[number], _attention(window))

    def _embedded(self) -> list[Tensor]:
        """Each window's [1, num_tokens, hidden_size] before the first block."""
        hidden: list[Tensor] = []
        for name, field in (
            ("word_embeddings", "token_ids"),
            ("transformer.position_embeddings", "positions"),
            ("transformer.block_position_embeddings", "block_positions"),
        ):
            table = self.weights.read(f"{name}.weight")
            rows = [table[getattr(window, field)].float()[None] for window in self.windows]
            hidden = [a + b for a, b in zip(hidden, rows, strict=True)] if hidden else rows
        return hidden

    def _hessian(self, block: Block, module: Weight, hidden: list[Tensor]) -> Tensor:
        """Σ x·xᵀ over a module's inputs, [in_features, in_features]."""
        total = torch.zeros(module.in_features, module.in_features)

        def add(_: object, inputs: tuple[Tensor]) -> None:
            x = inputs[0].flatten(0, -2)
            total.addmm_(x.t(), x)
            raise _Reached

        handle = module.register_forward_pre_hook(add)
        for window, h in zip(self.windows, hidden, strict=True):
            with suppress(_Reached):
                block(h, _attention(window))
        handle.remove()
        return total


class _Reached(Exception):
    """Ends a block's computation where a module's inputs are known."""


def _attention(window: Window) -> DenseAttention:
    return DenseAttention(visible(len(window.token_ids), torch.tensor([window.context_len])))

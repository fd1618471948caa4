"""Calibrated weights: a network's blocks run on text, each matrix compensated for what it sees (`quant.calibrate`)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from model.attention import DenseAttention, visible
from model.checkpoint import fill, matrices
from model.config import CheckpointError, GLMConfig
from model.glm import Block
from model.tokenizer import Tokenizer
from model.weights import Weights
from quant.calibrate import compensate
from quant.schemes import Float, Scheme, Tensors

LENGTHS = (32, 256)  # tokens of the shortest and of the longest window
SHORTEST_DOCUMENT = 8
TOKENS_PER_BLANK = 16
LONGEST_BLANK = 7


@dataclass(frozen=True, slots=True)
class Window:
    """A blank-infilling sequence: ids, positions and block positions, each [num_tokens], as `model.layout` has them."""

    token_ids: Tensor
    positions: Tensor
    block_positions: Tensor
    context_len: int


def windows(path: Path, tokenizer: Tokenizer, count: int, most: int, seed: int = 0) -> list[Window]:
    """Windows of LENGTHS and at most `most` tokens from a UTF-8 text with blank lines between its documents.

    Documents are drawn by their lengths, and lengths so that each doubling has as many windows. Half of the windows
    have short blanks, a fifth of the text in all; of the rest the end is a [gMASK]: both ways of use, and positions
    near and far, must survive. Raises CheckpointError for too little text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a readable UTF-8 text ({error})") from None
    documents = [ids for part in re.split(r"\n\s*\n", text) if len(ids := tokenizer.encode(part)) >= SHORTEST_DOCUMENT]
    if not documents:
        raise CheckpointError(f"{path}: no document of {SHORTEST_DOCUMENT} tokens or more to calibrate on")
    shortest, longest = LENGTHS
    rng = Random(seed)
    chosen = rng.choices(documents, [len(ids) for ids in documents], k=count)
    result = []
    for number, ids in enumerate(chosen):
        length = min(round(shortest * (longest / shortest) ** rng.random()), most)
        start = rng.randint(0, max(0, len(ids) - length))
        lay_out = _with_blanks if number % 2 == 0 or "[gMASK]" not in tokenizer.masks else _with_continuation
        result.append(lay_out(ids[start : start + length], tokenizer, rng))
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

    Each matrix is compensated for its inputs as the matrices before it, already quantized, give them, and for what
    these inputs would have been. In memory are one block in float32 twice, the windows' hidden states twice (8 bytes ×
    hidden_size × tokens) and what `compensate` needs.
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
        exact = list(hidden)  # as the float network has them
        for layer in range(self.config.num_layers):
            prefix = f"transformer.layers.{layer}."
            block, float_block = self._block(layer, prefix), self._block(layer, prefix)
            for path, module in matrices(block):
                stored = self.finished(prefix + path)
                if stored is None:
                    hessian, drift = torch.zeros(2, module.in_features, module.in_features)
                    float_module = float_block.get_submodule(path)
                    for window, h, e in zip(self.windows, hidden, exact, strict=True):
                        x, y = _inputs(module, block, h, window), _inputs(float_module, float_block, e, window)
                        hessian.addmm_(x.t(), x)
                        drift.addmm_((y - x).t(), x)
                    try:
                        stored = compensate(module.packed()["weight"], hessian, self.scheme, drift)
                    except ValueError as error:
                        raise CheckpointError(f"{prefix}{path}.weight: {error}") from None
                module.assign({"weight": self.scheme.dequantize(stored)})
                yield prefix + path, stored
            for number, window in enumerate(self.windows):
                hidden[number] = block(hidden[number], _attention(window))
                exact[number] = float_block(exact[number], _attention(window))

    def _block(self, layer: int, prefix: str) -> Block:
        with torch.device("meta"):
            block = Block(self.config, layer, Float(), torch.float32)
        fill(block, self.weights, torch.float32, torch.device("cpu"), prefix)
        return block

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


class _Reached(Exception):
    """Ends a block's computation where a module's inputs are known."""


def _inputs(module: nn.Module, block: Block, hidden: Tensor, window: Window) -> Tensor:
    """What a module of a block sees, [num_tokens, in_features]."""

    def stop(_: object, inputs: tuple[Tensor]) -> None:
        raise _Reached(inputs[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        block(hidden, _attention(window))
    except _Reached as reached:
        inputs: Tensor = reached.args[0]
        return inputs.flatten(0, -2)
    finally:
        handle.remove()
    raise AssertionError("a block that does not use its module")


def _attention(window: Window) -> DenseAttention:
    return DenseAttention(visible(len(window.token_ids), torch.tensor([window.context_len])))

"""Calibrated weights: the network's blocks run on text, and `quant.calibrate` compensates each matrix for its
inputs."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from model.architecture import Architecture
from model.attention import DenseAttention, visible
from model.checkpoint import Description, fill, matrices
from model.config import CheckpointError
from model.layout import Segment, span_ids
from model.network import Block, Network, dropout_scale, rotations
from model.weights import Weights
from quant.calibrate import compensate
from quant.linear import Embedding
from quant.scheme import Scheme, Tensors
from quant.schemes.none import Float
from quant.usage import UsageError

LENGTHS = (32, 256)  # tokens of the shortest and of the longest window
SHORTEST_DOCUMENT = 8
TOKENS_PER_BLANK = 16
LONGEST_BLANK = 7


@dataclass(frozen=True, slots=True)
class Window:
    """A blank-infilling sequence: ids, positions and block positions, each [num_tokens] (see `model.layout`)."""

    token_ids: Tensor
    positions: Tensor
    block_positions: Tensor
    context_len: int


def windows(path: Path, description: Description, count: int, seed: int = 0) -> list[Window]:
    """Draws `count` windows of LENGTHS tokens, in the family's layout, from a UTF-8 text.

    Blank lines separate the text's documents. A document's probability is proportional to its length. Each doubling of
    the window's length has as many windows. Half of the windows have short blanks, a fifth of the text in all; the
    others end with a [gMASK]. So the weights are calibrated for both uses, and for near and far positions. A causal
    model reads plain windows. Raises CheckpointError for an unreadable text and for too little of it.
    """
    tokenizer, rules = description.tokenizer, description.family.layout
    known = rules.masks(tokenizer)
    most = description.architecture.max_sequence_length // 2  # the layout and a second tokenization add tokens
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a readable UTF-8 text ({error})") from None
    documents = [ids for part in re.split(r"\n\s*\n", text) if len(ids := tokenizer.encode(part)) >= SHORTEST_DOCUMENT]
    if not documents:
        raise CheckpointError(f"{path}: calibration needs a document of at least {SHORTEST_DOCUMENT} tokens")
    shortest, longest = LENGTHS
    rng = Random(seed)
    chosen = rng.choices(documents, [len(ids) for ids in documents], k=count)
    result = []
    for number, ids in enumerate(chosen):
        length = min(round(shortest * (longest / shortest) ** rng.random()), most)
        start = rng.randint(0, max(0, len(ids) - length))
        own = ids[start : start + length]
        blanks = "[gMASK]" not in known or (number % 2 == 0 and not description.architecture.causal)
        parts = _with_blanks(own, rng) if blanks else _with_continuation(own, rng)
        result.append(
            _window([tokenizer.decode(part) for part in parts], "[MASK]" if blanks else "[gMASK]", description)
        )
    return result


def _with_blanks(ids: list[int], rng: Random) -> list[list[int]]:
    """One blank of 1 … LONGEST_BLANK tokens in each stretch of TOKENS_PER_BLANK: text and spans in turn."""
    parts, end = [], 0
    for first in range(0, max(len(ids) - LONGEST_BLANK, 1), TOKENS_PER_BLANK):
        stretch = min(TOKENS_PER_BLANK, len(ids) - first)
        size = rng.randint(1, min(LONGEST_BLANK, stretch))
        start = first + rng.randint(0, stretch - size)
        parts += [ids[end:start], ids[start : start + size]]
        end = start + size
    return [*parts, ids[end:]]


def _with_continuation(ids: list[int], rng: Random) -> list[list[int]]:
    """A quarter to three quarters of the window, the rest as a span, and no text behind it."""
    cut = round(len(ids) * rng.uniform(0.25, 0.75))
    return [ids[:cut], ids[cut:], []]


def _window(parts: list[str], mask: str, description: Description) -> Window:
    """The family's tokens of alternating texts and spans, and the rows that write each span."""
    tokenizer = description.tokenizer
    if tokenizer.tags and not set(tokenizer.encode(parts[0])[:1]) & tokenizer.tags[0]:
        parts = ["".join(tokenizer.piece(min(tags)) for tags in tokenizer.tags) + parts[0], *parts[1:]]
    segments: list[Segment] = [(mask,) if number % 2 else text for number, text in enumerate(parts)]
    laid = description.family.layout.lay_out(segments, tokenizer)
    rows = [(token, position, 0) for position, token in enumerate(laid.token_ids)]
    masked_lm = description.architecture.masked  # writes nothing beside the text
    for blank, span in zip(laid.blanks, () if masked_lm else parts[1::2], strict=not masked_lm):
        written = [blank.start, *span_ids(span, blank, tokenizer)]
        rows += [(token, *blank.place(number)) for number, token in enumerate(written)]
    token_ids, positions, block_positions = torch.tensor(rows).t().contiguous()
    context_len = 0 if description.architecture.causal else len(laid)
    return Window(token_ids, positions, block_positions, context_len)


class Calibration:
    """Compensated weights of the blocks of a float folder. The caller asks for them in order.

    Each matrix is compensated for two things: its inputs behind the matrices that are quantized already, and the
    difference to its inputs in the float network. Memory holds one block in float32 twice, the windows' hidden states
    twice (8 bytes × hidden_size × tokens) and what `compensate` needs.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        windows: list[Window],
        scheme: Scheme,
        finished: Callable[[str], Tensors | None],
    ) -> None:
        """`finished` gives the stored form of a path that an earlier run wrote, None for one that is to be made."""
        self.architecture, self.weights, self.windows, self.scheme = architecture, weights, windows, scheme
        self.finished = finished
        self._stored = self._walk()

    def stored(self, path: str) -> Tensors:
        """The stored form of the matrix [outputs, inputs] at a path. The paths must come in the order of computation.

        Raises CheckpointError, naming the tensor, for NaN and infinity and for a size that the scheme cannot hold.
        """
        return next(stored for own, stored in self._stored if own == path)

    @torch.inference_mode()
    def _walk(self) -> Iterator[tuple[str, Tensors]]:
        hidden = self._embedded()
        exact = list(hidden)  # the hidden states in the float network
        for layer in range(self.architecture.num_layers):
            prefix = f"transformer.layers.{layer}."
            block, float_block = self._block(layer, prefix), self._block(layer, prefix)
            for path, module in matrices(block):
                stored = self.finished(prefix + path)
                if stored is None:
                    hessian, drift = torch.zeros(2, module.in_features, module.in_features)
                    float_module = float_block.get_submodule(path)
                    for window, h, e in zip(self.windows, hidden, exact, strict=True):
                        x, y = (
                            self._inputs(module, block, h, window),
                            self._inputs(float_module, float_block, e, window),
                        )
                        hessian.addmm_(x.t(), x)
                        drift.addmm_((y - x).t(), x)
                    try:
                        stored = compensate(module.packed()["weight"], hessian, self.scheme, drift)
                    except UsageError as error:
                        raise CheckpointError(f"{prefix}{path}.weight: {error}") from None
                module.assign({"weight": self.scheme.dequantize(stored)})
                yield prefix + path, stored
            for number, window in enumerate(self.windows):
                hidden[number] = self._through(block, hidden[number], window)
                exact[number] = self._through(float_block, exact[number], window)

    def _block(self, layer: int, prefix: str) -> Block:
        with torch.device("meta"):
            block = Block(self.architecture, layer, Float(), torch.float32)
        fill(block, self.weights, torch.float32, torch.device("cpu"), prefix)
        return block

    def _embedded(self) -> list[Tensor]:
        """Each window's [1, num_tokens, hidden_size] before the first block; of the tables only the rows needed."""
        with torch.device("meta"):
            network = Network(replace(self.architecture, num_layers=1, head="tied", next_sentence=False))
        tables = {
            name: self.weights.read(f"{name}.weight")
            for name, module in network.named_modules()
            if isinstance(module, nn.Embedding | Embedding)
        }
        norm = getattr(network.transformer, "embedding_layernorm", None)
        if norm is not None:
            fill(norm, self.weights, torch.float32, torch.device("cpu"), "transformer.embedding_layernorm")
        hidden = []
        for window in self.windows:
            columns = {
                "word_embeddings": window.token_ids,
                "transformer.position_embeddings": window.positions + self.architecture.position_offset,
                "transformer.block_position_embeddings": window.block_positions,
            }
            rows = torch.stack([table[columns[name]].float() for name, table in tables.items()])
            dropped_token = self.architecture.dropped_token
            if dropped_token is not None:
                dropped = window.token_ids == dropped_token
                scale = dropout_scale(dropped, _attention(window).share(dropped[None])[0])
                rows[[*tables].index("word_embeddings")] *= scale[:, None]
            hidden.append((rows.sum(0) if norm is None else norm(rows.sum(0)))[None])
        return hidden

    def _through(self, block: Block, hidden: Tensor, window: Window) -> Tensor:
        angles = rotations(self.architecture, window.positions, window.block_positions, torch.float32)
        out: Tensor = block(hidden, angles[block.attention.layer], _attention(window))
        return out

    def _inputs(self, module: nn.Module, block: Block, hidden: Tensor, window: Window) -> Tensor:
        """The inputs of a block's module, [num_tokens, in_features]."""

        def stop(_: object, inputs: tuple[Tensor]) -> None:
            raise _Reached(inputs[0])

        handle = module.register_forward_pre_hook(stop)
        try:
            self._through(block, hidden, window)
        except _Reached as reached:
            inputs: Tensor = reached.args[0]
            return inputs.flatten(0, -2)
        finally:
            handle.remove()
        raise AssertionError("a block that does not use its module")


class _Reached(Exception):
    """Ends a block's computation where a module's inputs are known."""


def _attention(window: Window) -> DenseAttention:
    return DenseAttention(visible(len(window.token_ids), torch.tensor([window.context_len])))

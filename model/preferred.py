"""The storage that matrices of a foreign format take: kept where a scheme has their numbers, converted elsewhere."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch

from model.format import same_numbers
from model.storage import Storage
from quant.registry import FLOAT, scheme_facts
from quant.scheme import Scheme
from quant.usage import UsageError

CONVERTED = "int8"  # what numbers that no scheme has become without a choice
_SMALLER = "--quant int4 takes half the memory"
HEADS = ("word_embeddings.", "lm_head.")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix of a foreign format: outputs and inputs, the scheme that has its numbers exactly, the format's words
    for how it is quantized (none: floats)."""

    name: str
    shape: tuple[int, int]
    form: Scheme | None
    kinds: frozenset[str]

    @property
    def is_head(self) -> bool:
        """Whether it is an embedding or a head, which have a scheme of their own."""
        return self.name.startswith(HEADS)


def preferred(matrices: Iterable[Matrix]) -> Storage:
    """The storage without a choice: the form of most numbers of the blocks, and that of embedding and head.

    A form that cannot hold every matrix of its use does not count. Embedding and head have one scheme, so that they are
    kept only if both have the same form. Float matrices stay floats unless others of the same use are quantized.
    """
    matrices = list(matrices)
    blocks = _forms([own for own in matrices if not own.is_head])
    heads = _forms([own for own in matrices if own.is_head])
    head = next(iter(heads), (FLOAT, None))
    if len(heads) > 1 or not scheme_facts(head[0]).head:
        head = CONVERTED, None
    return Storage(*(blocks.most_common(1)[0][0] if blocks else (FLOAT, None)), *head)


def _forms(matrices: list[Matrix]) -> Counter[tuple[str, int | None]]:
    """The scheme and the group size of quantized matrices, and how many numbers have them."""
    counts: Counter[tuple[str, int | None]] = Counter()
    shapes = {own.shape for own in matrices}
    for own in matrices:
        if own.kinds:
            counts[_choice(own.form, shapes)] += prod(own.shape)
    return counts


def _choice(form: Scheme | None, shapes: Iterable[tuple[int, int]]) -> tuple[str, int | None]:
    """Name and group size of a form, if it can hold matrices of these shapes; else those that they are converted to."""
    try:
        for shape in shapes:
            if form is not None:
                form.tensors(*shape)
    except UsageError:
        form = None
    if form is None:
        return CONVERTED, None
    return form.name, form.group_size if scheme_facts(form.name).group_sizes else None


def told(matrices: Iterable[Matrix], storage: Storage, name: str, chosen: bool, note: str = "") -> str:
    """One line for people: which matrices of the format `name` are kept, which are converted, and what else to choose.

    `chosen`: the user named the scheme of the blocks. `note` is what the format itself says (`Format.note`).
    """
    scheme, head = storage.schemes(torch.float32, "cuda")
    kept: dict[str, None] = {}
    converted: dict[str, set[str]] = {}
    grown = False  # blocks in a scheme that nobody asked for
    for own in matrices:
        target = head if own.is_head else scheme
        if same_numbers(own.form, target):
            kept[_words(target)] = None
        elif own.kinds or target.name != FLOAT:
            converted.setdefault(_words(target), set()).update(own.kinds or {"floats"})
            grown |= bool(own.kinds) and not (chosen or own.is_head) and target.name == CONVERTED
    parts = [f"kept as {words}" for words in kept]
    parts += [f"{' and '.join(sorted(kinds))} converted to {words}" for words, kinds in converted.items()]
    if grown:
        parts.append(f"no scheme here has those numbers, {_SMALLER}")
    parts += [note] if note else []
    return f"{name}: {'; '.join(parts)}" if parts else name


def _words(scheme: Scheme) -> str:
    """A scheme for people: "int4 in groups of 32"."""
    if scheme.name == FLOAT:
        return "floats"
    return f"{scheme.name} in groups of {scheme.group_size}" if scheme.group_size else scheme.name

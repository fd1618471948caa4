"""A foreign format of quantized weights, as data: how to recognise and open it. `model.formats` finds all of them.

A format is one file in `model/formats/` with a `FORMAT`. It opens what another library wrote as a `QuantizedSource`:
float matrices under their published names, whatever the bytes are. So names, slices of ranks, conversion and loading
know nothing of the format. Two things more let a matrix keep its numbers: `form` names the scheme that holds them
exactly, and `stored` gives that scheme's tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.config import CheckpointError, Config
from model.sharding import Slice
from model.source import Source
from quant.scheme import Scheme, Tensors
from quant.usage import UsageError


class QuantizedSource(Source, Protocol):
    """The logical tensors of quantized files, by published name.

    `entries` has a quantized matrix as what it stands for: (outputs, inputs), torch.float32, under the name
    "….weight"; codes, scales, zeros and orders of inputs have no entries. Other tensors have their own dtype. `read`
    dequantizes: it gives the numbers that the format's own library gives in float32, and touches only the rows of a
    slice along dimension 0, so that a matrix never has to be a float copy as a whole.
    """

    def read(self, name: str, part: Slice | None = None) -> Tensor:
        """A logical tensor [...], or a slice of it. Raises CheckpointError for a damaged file."""

    def kind(self, name: str) -> str | None:
        """The format's word for how a matrix is quantized, such as "Q4_K"; None for a tensor of floats."""

    def form(self, name: str) -> Scheme | None:
        """The scheme whose stored form has exactly a matrix's numbers, as for all of its rows and inputs.

        None for a tensor of floats and for numbers that no scheme here has.
        """

    def stored(self, name: str, part: Slice | None = None) -> Tensors:
        """The tensors of `form(name)`, with the names, shapes and dtypes of `Scheme.tensors`.

        With a part, those of that slice of the matrix; a slice of inputs keeps scales of whole rows. Call it only
        where `form` names a scheme. Raises CheckpointError for a cut through a group.
        """


@dataclass(frozen=True, slots=True)
class Format:
    """One format. `name` is for people.

    `recognises` takes a file or folder, and the `quantization_config` of its config.json ({} without one). `opened`
    gives its tensors; `model.files.open_files` gives the bytes of a folder. A format that has sizes or tokenizer
    inside its files gives them as if they were beside them: `config` as the fields of a config.json, `tokenizer` as
    tokenizer files, name → content. `note` is for the start-up line: what the format's own library would compute in
    another way, empty if nothing. All raise CheckpointError.
    """

    name: str
    recognises: Callable[[Path, Mapping[str, Any]], bool]
    opened: Callable[[Path], QuantizedSource]
    config: Callable[[Path], Config] = Config.read
    tokenizer: Callable[[Path], Mapping[str, bytes]] | None = None
    note: Callable[[Path], str] = lambda path: ""


def same_numbers(scheme: Scheme | None, other: Scheme | None) -> bool:
    """Whether two schemes store numbers in the same form."""
    return scheme is not None and type(scheme) is type(other) and scheme.group_size == other.group_size


def cut_stored(scheme: Scheme, stored: Tensors, part: Slice | None, name: str) -> Tensors:
    """The tensors of a slice of a matrix, from those of the whole matrix.

    Raises CheckpointError, naming the matrix, for a cut through a group.
    """
    if part is None:
        return stored
    made: Tensors = {}
    try:
        for leaf, tensor in stored.items():
            cuts = [cut for span in part.spans if (cut := scheme.narrow(leaf, part.dim, *span)) is not None]
            made[leaf] = torch.cat([tensor.narrow(*cut) for cut in cuts], cuts[0][0]) if cuts else tensor
    except UsageError as error:
        raise CheckpointError(f"{name}: {error}") from None
    return made

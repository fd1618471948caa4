"""A family of models, described: what its config.json means, its layout, its names in files, its habits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.architecture import Architecture
from model.config import Config
from model.layout import LayoutRules
from model.naming import Naming
from model.tokenizer import Tokenizer

Strategy = Literal["append", "reencode", "parallel"]


@dataclass(frozen=True, slots=True)
class Family:
    """One family. `docs/adding-a-family.md` goes through the fields.

    `recognises` tells from config.json whether a folder is of this family, `architecture` reads its sizes and
    `tokenizer` its tokenizer's files, both raising CheckpointError. `namings` are the layouts of files that it was
    published in. `strategies` are the ways to fill several blanks, the first by default. `presets` are the published
    sizes, as config.json fields.
    """

    name: str
    recognises: Callable[[Config], bool]
    architecture: Callable[[Config], Architecture]
    tokenizer: Callable[[Path], Tokenizer]
    layout: LayoutRules
    strategies: tuple[Strategy, ...]
    namings: tuple[Naming, ...]
    presets: Mapping[str, Mapping[str, Any]]

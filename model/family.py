"""A family of models as data: how to read its config.json, its layout, its tensor names, its strategies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from model.architecture import Architecture
from model.config import Config
from model.layout import LayoutRules
from model.naming import Naming
from model.tokenizer import Tokenizer

Strategy = Literal["append", "reencode", "parallel"]
Format = Literal["hf", "bin", "sat"]  # safetensors shards, pytorch_model shards, model-parallel ranks


@dataclass(frozen=True, slots=True)
class Published:
    """The original files of a family: format, dtype, and `rank_naming`, the names in model-parallel ranks (None: no
    ranks)."""

    format: Format = "hf"
    dtype: torch.dtype = torch.float16
    rank_naming: Naming | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One family. `docs/adding-a-family.md` explains the fields.

    `recognises` says whether a config.json belongs to this family; `architecture` reads its sizes and `tokenizer` its
    tokenizer's files, and both raise CheckpointError. `namings` are the layouts in which its files were published,
    `published` are the original files. `strategies` are the ways to fill several blanks, the first one by default.
    `presets` are the published sizes, as config.json fields.
    """

    name: str
    recognises: Callable[[Config], bool]
    architecture: Callable[[Config], Architecture]
    tokenizer: Callable[[Path], Tokenizer]
    layout: LayoutRules
    strategies: tuple[Strategy, ...]
    namings: tuple[Naming, ...]
    presets: Mapping[str, Mapping[str, Any]]
    published: Published = Published()

"""A family of models, described: what its config.json means, its layout, its names in files, its habits."""

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
    """What a family's original files are: their format, the dtype of their numbers, and `rank_naming`, the names in its
    model-parallel ranks, None for a family without such."""

    format: Format = "hf"
    dtype: torch.dtype = torch.float16
    rank_naming: Naming | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One family. `docs/adding-a-family.md` goes through the fields.

    `recognises` tells from config.json whether a folder is of this family, `architecture` reads its sizes and
    `tokenizer` its tokenizer's files, both raising CheckpointError. `namings` are the layouts of files that it was
    published in, `published` is what the original files are. `strategies` are the ways to fill several blanks, the
    first by default. `presets` are the published sizes, as config.json fields.
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

"""The outline of a model, from a preset or a folder: its sizes and the storage of its weights."""

from dataclasses import dataclass
from pathlib import Path

import torch

from model.architecture import Architecture
from model.config import CheckpointError, Config
from model.families import PRESETS, family_of
from model.formats import format_of
from model.sharding import cuts_of
from model.storage import GROUP_SIZE, Storage
from model.weights import Weights


@dataclass(frozen=True, slots=True)
class Outline:
    """A model's sizes and storage. `stored` None means float weights, which loading can quantize.

    `weights` are those of a foreign format, whose storage depends on what their matrices are.
    """

    name: str
    architecture: Architecture
    stored: Storage | None = None
    weights: Weights | None = None

    @staticmethod
    def read(model: str, preset: str | None = None) -> "Outline":
        """Reads a preset by its name, or a checkpoint; `preset` gives the sizes of a folder without config.json.

        A folder with a config.json needs no weights, except in a foreign format, and no tokenizer. Raises
        CheckpointError for an unknown preset and for a folder that cannot be used.
        """
        folder = Path(model)
        for name in (model, preset):
            if name is not None and name not in PRESETS and (name is preset or not folder.exists()):
                kind = "no preset" if name is preset else "no such folder, and no preset"
                raise CheckpointError(f"{kind} {name!r}; there are {', '.join(PRESETS)}")
        if model in PRESETS:
            if preset is not None:
                raise CheckpointError(f"{model} is a preset itself; a folder of that name is ./{model}")
            family, config = PRESETS[model]
            return Outline(model, family.architecture(config))
        form = format_of(folder)
        if preset is None and form is not None:
            config = form.config(folder)
            family = family_of(config)
            architecture = family.architecture(config)
            weights = Weights(folder, family.namings, cuts_of(architecture))
            return Outline(folder.name, architecture, weights=weights)
        if preset is None:
            config = Config.read(folder)
            return Outline(folder.name, family_of(config).architecture(config), Storage.read(folder))
        if (folder / "config.json").exists():
            raise CheckpointError(f"{folder}: has a config.json, so no preset can be given")
        family, config = PRESETS[preset]
        architecture = family.architecture(config)
        return Outline(folder.name, architecture, Weights(folder, family.namings, cuts_of(architecture)).storage)

    def storage(self, scheme: str | None, group_size: int | None, head: str | None) -> Storage:
        """The storage that these options give.

        Raises UsageError for an unknown scheme, CheckpointError for a storage that these weights cannot have.
        """
        if self.weights is not None:
            storage = self.weights.chosen(self.name, scheme, group_size, head)
        else:
            storage = Storage.chosen(self.name, self.stored, scheme, group_size, head)
        storage.schemes(torch.float16, "cuda")
        return storage


def usual_group_size(source: Path, scheme: str) -> int:
    """The inputs that share a scale where nobody says it: the files' own if they are in a foreign format's groups of
    this scheme.

    Raises CheckpointError for a foreign format that cannot be read.
    """
    if format_of(source) is None:
        return GROUP_SIZE
    return Outline.read(str(source)).storage(scheme, None, None).group_size

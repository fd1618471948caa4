"""The outline of a model, from a preset or a folder: its sizes and the storage of its weights."""

from dataclasses import dataclass
from pathlib import Path

import torch

from model.architecture import Architecture
from model.config import CheckpointError, Config
from model.contents import check_folder, config_of
from model.families import PRESETS, family_of
from model.formats import format_of
from model.hub import folder_of, name_of
from model.sharding import cuts_of
from model.storage import Storage
from model.weights import Weights


def published_dtype(config: Config, architecture: Architecture) -> torch.dtype:
    """The dtype of float matrices in a model's files, as its config.json says; else that of published files.

    These have float16, and BERT's float32.
    """
    names = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    asked = config.get("torch_dtype", config.get("dtype"))
    usual = torch.float32 if architecture.head == "masked_lm" else torch.float16
    return names.get(asked, usual) if isinstance(asked, str) else usual


@dataclass(frozen=True, slots=True)
class Outline:
    """A model's sizes and storage. `stored` None means float weights, which loading can quantize.

    `weights` are those of a foreign format, whose storage depends on what their matrices are. `floats` is the dtype of
    float matrices in other files.
    """

    name: str
    architecture: Architecture
    stored: Storage | None = None
    weights: Weights | None = None
    floats: torch.dtype = torch.float16

    @staticmethod
    def read(model: str, preset: str | None = None, revision: str | None = None, download: bool = False) -> "Outline":
        """Reads a preset by its name, a checkpoint, or the folder of a name on the hub.

        `preset` gives the sizes of a folder without config.json. A folder with a config.json needs no weights, except
        in a foreign format, and no tokenizer. `revision` and `download` are for names on the hub; see
        `model.hub.folder_of`. Raises CheckpointError for an unknown preset and for a folder that cannot be used.
        """
        known = ", ".join(PRESETS)
        if preset is not None and preset not in PRESETS:
            raise CheckpointError(f"no preset {preset!r}; there are {known}")
        if model in PRESETS:
            if preset is not None:
                raise CheckpointError(f"{model} is a preset itself; a folder of that name is ./{model}")
            family, config = PRESETS[model]
            architecture = family.architecture(config)
            return Outline(model, architecture, floats=published_dtype(config, architecture))
        try:
            folder = folder_of(Path(model), revision, download, ("weights",) if preset else ("config",))
            form = format_of(folder)
            if form is None:
                check_folder(folder)
        except CheckpointError as error:
            if "/" in model or Path(model).exists():
                raise
            raise CheckpointError(f"{error}; no preset of this name, there are {known}") from None
        if preset is None and form is not None:
            config = form.config(folder)
            family = family_of(config)
            architecture = family.architecture(config)
            weights = Weights(folder, family.namings, cuts_of(architecture))
            return Outline(name_of(folder), architecture, weights=weights)
        if preset is None:
            config = config_of(folder)
            architecture = family_of(config).architecture(config)
            floats = published_dtype(config, architecture)
            return Outline(name_of(folder), architecture, Storage.read(folder), floats=floats)
        if form is not None or (folder / "config.json").exists():
            own = "a config.json" if form is None else "sizes of its own"
            raise CheckpointError(f"{folder}: has {own}, so no preset can be given")
        family, config = PRESETS[preset]
        architecture = family.architecture(config)
        weights = Weights(folder, family.namings, cuts_of(architecture))
        stored = weights.storage
        return Outline(name_of(folder), architecture, stored, floats=weights.float_dtype(stored or Storage()))

    def float_dtype(self, storage: Storage) -> torch.dtype:
        """The dtype of float matrices in the files, if the model is stored so in memory."""
        return self.floats if self.weights is None else self.weights.float_dtype(storage)

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

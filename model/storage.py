"""The storage of a checkpoint's matrices: the names of their schemes, as in config.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.config import CheckpointError
from model.unread import unread
from quant.registry import FLOAT, build, build_head, published_as, scheme_facts
from quant.scheme import HeadScheme, Scheme
from quant.usage import UsageError

METHOD = "glm-infill"
GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """Names of two schemes: that of the blocks' matrices, and that of the embedding, which is also the head."""

    scheme: str = FLOAT
    group_size: int = GROUP_SIZE
    head: str = FLOAT

    @classmethod
    def read(cls, folder: Path) -> "Storage | None":
        """The `quantization_config` of a folder's config.json, or the meaning of ChatGLM-6B's `quantization_bit`.

        None for a float checkpoint. Raises CheckpointError for a value that is wrong or unknown.
        """
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        data = config.get("quantization_config", config.get("quantization"))  # the latter is MLX's
        if data is None:
            bits = config.get("quantization_bit") or 0
            if type(bits) is not int or bits not in (0, 4, 8):
                raise CheckpointError(f"{path}: quantization_bit must be 0, 4 or 8, not {bits!r}")
            return cls.published(bits, bool(config.get("quantization_embeddings"))) if bits else None
        if not isinstance(data, dict) or data.get("quant_method") != METHOD:
            raise CheckpointError(f"{path}: quantization_config {unread(data)}")
        known = {name: data[name] for name in ("scheme", "group_size", "head") if name in data}
        for name, value in known.items():
            kind = int if name == "group_size" else str
            if type(value) is not kind:
                raise CheckpointError(f"{path}: {name} of quantization_config must be of type {kind.__name__}")
        storage = cls(**known)
        try:
            storage.schemes(torch.float32, "cuda")  # "cuda": checks the names only, not what this machine can read
        except UsageError as error:
            raise CheckpointError(f"{path}: quantization_config: {error}") from None
        if storage.scheme == FLOAT:
            raise CheckpointError(f"{path}: quantization_config names no scheme")
        return storage

    @classmethod
    def published(cls, bits: int, embeddings: bool) -> "Storage":
        """The storage of GLM-130B's and ChatGLM-6B's quantized folders: one scale per row.

        Raises ValueError for a number of bits that no scheme stores.
        """
        scheme = published_as(bits)
        return cls(scheme, 0 if scheme_facts(scheme).group_sizes else GROUP_SIZE, scheme if embeddings else FLOAT)

    def to_json(self) -> dict[str, Any]:
        """The `quantization_config`, with the options that the scheme has."""
        grouped = {"group_size": self.group_size} if scheme_facts(self.scheme).group_sizes else {}
        return {"quant_method": METHOD, "scheme": self.scheme, **grouped, "head": self.head}

    def schemes(self, dtype: torch.dtype, device: str) -> tuple[Scheme, HeadScheme]:
        """The schemes of the blocks and of the head.

        Raises UsageError for an unknown name, and for a scheme that the device does not support.
        """
        return build(self.scheme, dtype, self.group_size), build_head(self.head, dtype, device)

    def changed(self, scheme: str | None, group_size: int | None, head: str | None) -> "Storage":
        """This storage with the given options. None, and the float scheme, change nothing."""
        if scheme in (None, FLOAT):
            scheme, group_size = self.scheme, self.group_size
        if head in (None, FLOAT):
            head = self.head
        return Storage(scheme, self.group_size if group_size is None else group_size, head)

    def replaced(self, scheme: str | None, group_size: int | None, head: str | None) -> "Storage":
        """This storage, each option that is given in place of its own. Another scheme has groups of GROUP_SIZE."""
        if group_size is None:
            group_size = self.group_size if scheme in (None, self.scheme) else GROUP_SIZE
        return Storage(scheme or self.scheme, group_size, head or self.head)

    @classmethod
    def chosen(
        cls,
        source: object,
        stored: "Storage | None",
        scheme: str | None,
        group_size: int | None,
        head: str | None,
    ) -> "Storage":
        """The storage in memory, from the files' storage (None: float) and the options.

        Raises CheckpointError, naming the source, if stored weights cannot be loaded with these options.
        """
        if stored is None:
            return cls(scheme or FLOAT, GROUP_SIZE if group_size is None else group_size, head or FLOAT)
        asked = stored.changed(scheme, group_size, head)
        if asked.to_json() != stored.to_json():
            raise CheckpointError(f"{source}: stored as {stored}, which cannot be loaded as {asked}")
        return stored

    def __str__(self) -> str:
        shown = {k: v for k, v in self.to_json().items() if k not in ("quant_method", "scheme") and v != FLOAT}
        return " ".join([self.scheme, *(f"{name} {value}" for name, value in shown.items())])

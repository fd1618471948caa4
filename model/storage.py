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
_KINDS = {"scheme": str, "group_size": int, "head": str, "head_group_size": int}  # of the fields in a file


@dataclass(frozen=True, slots=True)
class Storage:
    """Names of two schemes: that of the blocks' matrices, and that of the embedding, which is also the head.

    A group size counts the inputs that share a scale, 0 for all of a row; None is the scheme's own default.
    """

    scheme: str = FLOAT
    group_size: int | None = None
    head: str = FLOAT
    head_group_size: int | None = None

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
        known = {name: data[name] for name in _KINDS if name in data}
        for name, value in known.items():
            if type(value) is not _KINDS[name]:
                raise CheckpointError(f"{path}: {name} of quantization_config must be of type {_KINDS[name].__name__}")
        storage = cls(**known)
        try:
            storage.schemes(torch.float32, "cuda")  # "cuda": checks the names only, not what this machine can read
        except UsageError as error:
            raise CheckpointError(f"{path}: quantization_config: {error}") from None
        if storage.scheme == FLOAT:
            raise CheckpointError(f"{path}: quantization_config names no scheme")
        return storage

    @classmethod
    def asked(cls, scheme: str | None, group_size: int | None, head: str | None) -> "Storage":
        """The storage that the options of a command ask for, None where one is not given; without any, floats.

        The head is the scheme's `SchemeFacts.default_head` unless one is named. Raises UsageError for an unknown
        scheme.
        """
        scheme = scheme or FLOAT
        return cls(scheme, group_size, head or scheme_facts(scheme).default_head)

    @classmethod
    def published(cls, bits: int, embeddings: bool) -> "Storage":
        """The storage of GLM-130B's and ChatGLM-6B's quantized folders: one scale per row.

        Raises ValueError for a number of bits that no scheme stores.
        """
        scheme = published_as(bits)
        return cls(scheme, 0, scheme if embeddings else FLOAT)

    def to_json(self) -> dict[str, Any]:
        """The `quantization_config`, with the options that the schemes have.

        The embedding's group size is there if it is not its scheme's default.
        """
        grouped = self._groups("group_size", self.scheme, self.group_size)
        head = self._groups("head_group_size", self.head, self.head_group_size)
        if head.get("head_group_size") == scheme_facts(self.head).group_size:
            head = {}
        return {"quant_method": METHOD, "scheme": self.scheme, **grouped, "head": self.head, **head}

    @staticmethod
    def _groups(name: str, scheme: str, group_size: int | None) -> dict[str, int]:
        """The group size of a scheme that has some; whole rows are not named where they are the default."""
        facts = scheme_facts(scheme)
        size = facts.group_size if group_size is None else group_size
        return {name: size} if facts.group_sizes and (size or facts.group_size) else {}

    def schemes(self, dtype: torch.dtype, device: str) -> tuple[Scheme, HeadScheme]:
        """The schemes of the blocks and of the head.

        Raises UsageError for an unknown name, and for a scheme that the device does not support.
        """
        return build(self.scheme, dtype, self.group_size), build_head(self.head, dtype, device, self.head_group_size)

    def changed(self, scheme: str | None, group_size: int | None, head: str | None) -> "Storage":
        """This storage with the given options. None, and the float scheme, change nothing."""
        if scheme in (None, FLOAT):
            scheme = group_size = None
        return self.replaced(scheme, group_size, None if head == FLOAT else head)

    def replaced(self, scheme: str | None, group_size: int | None, head: str | None) -> "Storage":
        """This storage, each option that is given in place of its own. Another scheme has its own default groups."""
        if group_size is None and scheme in (None, self.scheme):
            group_size = self.group_size
        head_group_size = self.head_group_size if head in (None, self.head) else None
        return Storage(scheme or self.scheme, group_size, head or self.head, head_group_size)

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
            return cls.asked(scheme, group_size, head)
        asked = stored.changed(scheme, group_size, head)
        if asked.to_json() != stored.to_json():
            raise CheckpointError(f"{source}: stored as {stored}, which cannot be loaded as {asked}")
        return stored

    def __str__(self) -> str:
        shown = {k: v for k, v in self.to_json().items() if k not in ("quant_method", "scheme") and v != FLOAT}
        return " ".join([self.scheme, *(f"{name} {value}" for name, value in shown.items())])

"""The options of an engine: the choices of an operator, each written once.

Configurations, settings, the flags of commands and the tables of the documentation come from these fields: name, type,
bounds, default and description. Each class is a group; the first line of its docstring is the group's name.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import NoDecode

from model.config import CheckpointError
from model.hub import WHOLE, folder_of
from quant.registry import group_sizes, head_names, scheme_names

if TYPE_CHECKING:
    from typing import TypeAlias

    SchemeName: TypeAlias = str
    HeadName: TypeAlias = str
    GroupSize: TypeAlias = int
else:
    SchemeName = Literal[scheme_names()]
    HeadName = Literal[head_names()]
    GroupSize = Literal[group_sizes()]

MODEL_NAME = r"[^\s,\x00-\x1f\x7f][^,\x00-\x1f\x7f]{0,255}"
ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Repeated:
    """Marks a field with several values. On a command line each value has a flag of its own, in this form."""

    flag: str
    value: str


class Options(BaseModel):
    """The common rules of all groups: no unknown option, and no later change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelOptions(Options):
    """Model"""

    model: Path | None = Field(
        None,
        description="The checkpoint folder, or a name on the Hugging Face hub that the cache has. "
        "Without one: the bundled demo model.",
    )
    revision: str | None = Field(None, description="The branch, tag or commit of a name on the hub. Without one: main.")
    download: bool = Field(False, description="Fetch what the cache lacks of a name on the hub, before the start.")
    preset: str | None = Field(
        None, description="The published model whose family and sizes a folder without config.json has."
    )
    tokenizer: Path | None = Field(
        None, description="The tokenizer's folder or name on the hub, if the checkpoint's folder has none."
    )
    quant: SchemeName | None = Field(
        None, description="The storage of the linear layers. Without one: that of the checkpoint."
    )
    group_size: GroupSize | None = Field(
        None,
        description="The number of inputs that share a scale, 0 for a whole row. Without one: 32 for INT4, 0 for INT8.",
    )
    quant_head: HeadName | None = Field(
        None,
        description="The storage of the embedding and head; none is floats. Without one: that of the checkpoint, but "
        "INT8 where --quant quantizes it.",
    )
    load_format: Literal["auto", "dummy"] = Field(
        "auto", description="auto reads the weights. dummy uses random weights, to test a machine."
    )
    served_model_names: Annotated[tuple[str, ...], NoDecode, Repeated("--served-model-name", "NAME")] = Field(
        (),
        description="A name of the model in requests; answers have the first name. Without one: the folder's "
        "name. Repeat the flag for more; the variable separates names by commas.",
    )

    @field_validator("served_model_names", mode="before")
    @classmethod
    def _are_model_names(cls, value: object) -> object:
        if isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if isinstance(value, list | tuple):
            for name in value:
                if not (isinstance(name, str) and re.fullmatch(MODEL_NAME, name)):
                    raise ValueError(f"{name!r}: a name has 1 to 256 characters, no comma and no line break")
            value = tuple(dict.fromkeys(value))
        return value

    def located(self) -> Self:
        """These options with folders in place of names on the hub.

        Raises CheckpointError for a name that the cache lacks and that is not, or cannot be, downloaded.
        """
        if self.model is None and self.revision is not None:
            raise CheckpointError("--revision is for a name on the hub, and no model is given")
        given = {"config": self.preset, "weights": self.load_format == "dummy", "tokenizer": self.tokenizer}
        parts = tuple(part for part in WHOLE if not given[part])
        model = None if self.model is None else folder_of(self.model, self.revision, self.download, parts)
        tokenizer = None if self.tokenizer is None else folder_of(self.tokenizer, None, self.download, ("tokenizer",))
        return self.model_copy(update={"model": model, "tokenizer": tokenizer, "revision": None})


class DeviceOptions(Options):
    """Devices and memory"""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="The type of device that the model runs on.")
    tp: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="The number of devices, or processes on a CPU, that share the model. Without one: 1."
    )
    kv_cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="The size of the KV cache on each device, in 10⁹ bytes. Without one: 0.5, or more for long texts.",
    )
    kv_cache_type: Literal["auto", "int8"] = Field(
        "auto", description="auto stores keys and values in the model's dtype. int8 stores each in one byte."
    )
    max_batch_tokens: Count = Field(2048, description="The maximum number of rows in one step.")


class AdapterOptions(Options):
    """Adapters"""

    adapters: Annotated[dict[str, Path], Repeated("--adapter", "NAME=FOLDER")] = Field(
        {}, description="An adapter that is loaded at the start. Repeat the flag for more."
    )
    adapter_root: Path | None = Field(None, description="The folder below which /v1/adapters may load adapters.")
    max_adapters: Count = Field(
        32, description="The maximum number of loaded adapters. A further one replaces the least recently used."
    )

    @field_validator("adapters")
    @classmethod
    def _are_names(cls, value: dict[str, Path]) -> dict[str, Path]:
        for name in value:
            if not re.fullmatch(ADAPTER_NAME, name):
                raise ValueError(f"{name!r}: a name has letters, digits, points, dashes; at most 64")
        return value


class EngineOptions(AdapterOptions, DeviceOptions, ModelOptions):
    """All options of an engine. Fields come in the order of the groups from the last one on, as pydantic has them."""

    @model_validator(mode="after")
    def _have_names_of_their_own(self) -> Self:
        for name in self.adapters:
            if name in self.served_model_names:
                raise ValueError(f"{name!r} names both the model (served_model_names) and an adapter (adapters)")
        return self

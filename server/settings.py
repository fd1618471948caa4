"""The settings of a server: read once from `GLM_INFILL_*`, then passed on by value."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(BaseModel):
    """The most that one request may ask for; `/v1/models` shows them to clients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: Count = 64
    n: Annotated[int, Field(ge=1, le=8)] = 8
    blanks: Count = 64
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 1024
    candidates: Count = 1024
    orders: Count = 120
    stop: Count = 32
    logit_bias: Count = 300
    logprobs: Annotated[int, Field(ge=0, le=20)] = 20
    timeout_s: Seconds = 600.0


class Settings(BaseSettings):
    """Everything an operator may choose. Nested limits read as `GLM_INFILL_LIMITS__N=4`."""

    model_config = SettingsConfigDict(env_prefix="GLM_INFILL_", env_nested_delimiter="__", frozen=True, extra="forbid")

    model: Path | None = Field(None, description="checkpoint folder; the bundled demo when absent")
    preset: str | None = Field(None, description="family and sizes of a folder without config.json")
    tokenizer: Path | None = Field(None, description="folder of the tokenizer, where it is not the model's")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    quant: Literal["none", "int8", "int4", "nf4", "llm-int8"] | None = Field(None, description="None: as stored")
    group_size: Literal[0, 32, 64, 128] | None = None
    quant_head: Literal["none", "int8", "int4"] | None = Field(None, description="storage of the embedding and head")
    tp: Annotated[int, Field(ge=1, le=64)] | None = Field(None, description="devices that share the model")
    max_batch_tokens: Count = 2048
    kv_cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kv_cache_type: Literal["auto", "int8"] = "auto"

    max_body_bytes: Count = 2 * 1024 * 1024
    max_queue: Count = 256
    limits: Limits = Limits()

    body_seconds: Seconds = 30.0
    write_seconds: Seconds = 60.0
    heartbeat_seconds: Seconds = 15.0
    keep_alive_seconds: Count = 75
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    api_keys: Path | None = None

    @field_validator("api_keys")
    @classmethod
    def _no_keys_yet(cls, value: Path | None) -> Path | None:
        # An operator who names a key file must not get an open server.
        if value is not None:
            raise ValueError("API keys are not supported yet by this version")
        return value

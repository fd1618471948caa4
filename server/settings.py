"""The settings of a server: read once from `GLM_INFILL_*`, then passed on by value."""

import re
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.config import EngineConfig
from server.keyfile import Rate, read_keys

ADAPTER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
HOST_NAME = r"[a-z0-9._-]{1,253}|[0-9a-f.]*:[0-9a-f:.]*:[0-9a-f:.]*"
EXPORTER = "opentelemetry-exporter-otlp-proto-http"
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
    choices: Count = 1024
    regex: Count = 1024  # characters of a pattern
    num_beams: Annotated[int, Field(ge=1, le=64)] = 16
    orders: Count = 120
    stop: Count = 32
    logit_bias: Count = 300
    logprobs: Annotated[int, Field(ge=0, le=20)] = 20
    timeout_s: Seconds = 600.0
    segments: Count = 1024
    token_ids: Count = 131_072


class Settings(BaseSettings):
    """Everything an operator may choose. Nested limits read as `GLM_INFILL_LIMITS__N=4`."""

    model_config = SettingsConfigDict(env_prefix="GLM_INFILL_", env_nested_delimiter="__", frozen=True, extra="forbid")

    model: Path | None = Field(None, description="checkpoint folder; the bundled demo when absent")
    preset: str | None = Field(None, description="family and sizes of a folder without config.json")
    tokenizer: Path | None = Field(None, description="folder of the tokenizer, where it is not the model's")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="names that requests may be sent to, and whose pages may send them; separated by commas"
    )
    quant: Literal["none", "int8", "int4", "nf4", "llm-int8"] | None = Field(None, description="None: as stored")
    group_size: Literal[0, 32, 64, 128] | None = None
    quant_head: Literal["none", "int8", "int4"] | None = Field(None, description="storage of the embedding and head")
    tp: Annotated[int, Field(ge=1, le=64)] | None = Field(None, description="devices that share the model")
    adapters: dict[str, Path] = Field({}, description="adapters that are there from the start: names and folders")
    adapter_root: Path | None = Field(None, description="folder below which /v1/adapters may load adapters")
    max_adapters: Count = Field(32, description="the one used least recently makes way for one more")
    max_batch_tokens: Count = 2048
    kv_cache_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kv_cache_type: Literal["auto", "int8"] = "auto"
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: invented weights, to try a machine")

    max_body_bytes: Count = 2 * 1024 * 1024
    max_queue: Count = Field(256, description="requests in flight before new ones get a 503")
    max_queue_tokens: Count = Field(1_000_000, description="tokens that the requests in flight may need")
    max_connections: Count = Field(1024, description="connections before new ones are refused; fewer if files are few")
    limits: Limits = Limits()

    header_seconds: Seconds = Field(10.0, description="time for a request's line and headers to arrive")
    body_seconds: Seconds = 30.0
    write_seconds: Seconds = Field(60.0, description="time for a client to read what waits for it")
    heartbeat_seconds: Seconds = 15.0
    keep_alive_seconds: Count = 75
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0

    api_keys: Path | None = Field(None, description="file of key hashes; without one anybody may ask")
    requests_per_minute: Rate | None = Field(None, description="of each key, or of all clients without keys")
    tokens_per_minute: Rate | None = Field(None, description="likewise; prompt and answer together")
    open_metrics: bool = Field(False, description="/metrics without a key, although there are keys")

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    vllm_metrics: bool = Field(False, description="also metrics by the names that vLLM's dashboards ask for")
    otlp_endpoint: str | None = Field(None, description="where spans go by OTLP over HTTP; none are made without")

    def engine(self, device: str, tp: int, threads: int | None = None) -> EngineConfig:
        """What an engine for this server is started with."""
        return EngineConfig(
            model=None if self.model is None else str(self.model),
            quant=self.quant,
            group_size=self.group_size,
            quant_head=self.quant_head,
            device=device,
            kv_cache_gb=self.kv_cache_gb,
            kv_cache_type=self.kv_cache_type,
            load_format=self.load_format,
            max_batch_tokens=self.max_batch_tokens,
            preset=self.preset,
            tokenizer=None if self.tokenizer is None else str(self.tokenizer),
            threads=threads,
            tp=tp,
            adapters=[(name, str(folder)) for name, folder in self.adapters.items()],
            max_adapters=self.max_adapters,
            adapter_root=None if self.adapter_root is None else str(self.adapter_root.absolute()),
        )

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _are_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if isinstance(value, list | tuple):
            value = tuple(str(name).lower().strip("[]") for name in value)
            for name in value:
                if not re.fullmatch(HOST_NAME, name):
                    raise ValueError(f"{name!r}: a name or an address is needed, without scheme and port")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_can_be_read(cls, value: Path | None) -> Path | None:
        # An operator who names a key file must not get an open server, nor one that knows nobody.
        if value is not None:
            read_keys(value)
        return value

    @field_validator("adapters")
    @classmethod
    def _are_names(cls, value: dict[str, Path]) -> dict[str, Path]:
        for name in value:
            if not re.fullmatch(ADAPTER_NAME, name):
                raise ValueError(f"{name!r}: a name has letters, digits, points, dashes; at most 64")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("an http:// or https:// address is needed")
        if value is not None and not any(distributions(name=EXPORTER)):
            raise ValueError("OpenTelemetry's exporter is not installed: pip install 'glm-infill[otel]'")
        return value

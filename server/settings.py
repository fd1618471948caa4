"""The settings of a server: read once from `GLM_INFILL_*`, then passed on by value."""

import re
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.options import Count, EngineOptions, Options, Repeated
from server.fim_templates import TEMPLATES
from server.keyfile import Rate, read_keys

HOST_NAME = r"[a-z0-9._-]{1,253}|[0-9a-f.]*:[0-9a-f:.]*:[0-9a-f:.]*"
PATH = r"/[A-Za-z0-9._~/-]{0,200}"
PREFIX = "GLM_INFILL_"
EXPORTER = "opentelemetry-exporter-otlp-proto-http"
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(BaseModel):
    """The limits of one request. `/v1/models` shows them to clients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: Count = 64
    n: Annotated[int, Field(ge=1, le=8)] = 8
    blanks: Count = 64
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 1024
    candidates: Count = 16384
    choices: Count = 1024
    regex: Count = 1024  # characters of a pattern
    json_schema: Count = 16_384  # characters of a schema
    num_beams: Annotated[int, Field(ge=1, le=64)] = 16
    orders: Count = 120
    stop: Count = 32
    logit_bias: Count = 300
    logprobs: Annotated[int, Field(ge=0, le=20)] = 20
    logprob_token_ids: Annotated[int, Field(ge=1, le=1024)] = 128
    timeout_s: Seconds = 600.0
    segments: Count = 1024
    token_ids: Count = 131_072


class NetworkOptions(Options):
    """Network"""

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="The port to listen on; 0 is any free one.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, Repeated("--allowed-host", "NAME")] = Field(
        (),
        description="A host name of this server, for requests and for pages that send them. "
        "Repeat the flag for more; the variable separates names by commas.",
    )
    path_aliases: Annotated[dict[str, str], Repeated("--path-alias", "PATH=ROUTE")] = Field(
        {}, description="An additional path of a route, such as /fill-mask=/. Repeat the flag for more."
    )
    max_connections: Count = Field(
        1024, description="The maximum number of connections. The limit of open files can lower it."
    )
    header_seconds: Seconds = Field(10.0, description="The maximum time for a request's headers to arrive, in seconds.")
    body_seconds: Seconds = Field(30.0, description="The maximum time for a request's body to arrive, in seconds.")
    write_seconds: Seconds = Field(
        60.0, description="The maximum time without progress while a client reads an answer, in seconds."
    )
    heartbeat_seconds: Seconds = Field(
        15.0, description="The time without an event after which a stream sends a comment, in seconds."
    )
    keep_alive_seconds: Count = Field(75, description="The time after which an idle connection is closed, in seconds.")
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        30.0, description="The maximum time for requests in flight to end after SIGTERM, in seconds."
    )


class LimitOptions(Options):
    """Limits"""

    max_body_bytes: Count = Field(2 * 1024 * 1024, description="The maximum size of a request's body, in bytes.")
    max_queue: Count = Field(256, description="The maximum number of requests in flight. Further ones get a 503.")
    max_queue_tokens: Count = Field(
        1_000_000, description="The maximum number of tokens that the requests in flight may need together."
    )
    limits: Annotated[Limits, Repeated("--limit", "NAME=NUMBER")] = Field(
        Limits(), description="A limit of one request, by its name in /v1/models. Repeat the flag for more."
    )


class BlankOptions(Options):
    """Editors"""

    long_texts: Literal["trim", "refuse"] | None = Field(
        None,
        description="For a text that is too long: trim cuts the text farthest from its blank, refuse refuses it. "
        "Without one: editors' protocols trim, native routes refuse.",
    )
    fim_templates: str | None = Field(
        None,
        description="The templates of other models that the server reads as one blank: names, separated by commas; "
        "all; none. Without one: editors' protocols read all, native routes none.",
    )

    @field_validator("fim_templates")
    @classmethod
    def _are_templates(cls, value: str | None) -> str | None:
        if value not in (None, "all", "none"):
            for name in value.split(","):
                if name not in TEMPLATES:
                    raise ValueError(f"{name!r} is not a template; the templates are {', '.join(TEMPLATES)}")
        return value

    @property
    def template_names(self) -> tuple[str, ...]:
        """The names in `fim_templates`."""
        if self.fim_templates in (None, "none"):
            return ()
        return tuple(TEMPLATES) if self.fim_templates == "all" else tuple(self.fim_templates.split(","))


class KeyOptions(Options):
    """Keys and rates"""

    api_keys: Path | None = Field(
        None, description="The key file; `keys new` writes it. Without one every client has access."
    )
    requests_per_minute: Rate | None = Field(
        None, description="The request limit per key and minute; without keys, for all clients together."
    )
    tokens_per_minute: Rate | None = Field(
        None, description="The token limit per key and minute, prompt and completion; without keys, for all clients."
    )
    open_metrics: bool = Field(False, description="Show /metrics without a key, even if there are keys.")


class TelemetryOptions(Options):
    """Log, metrics, traces"""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The lowest level that is logged."
    )
    vllm_metrics: bool = Field(False, description="Show metrics also under the names of vLLM's metrics.")
    otlp_endpoint: str | None = Field(
        None, description="The URL for OpenTelemetry spans, by OTLP over HTTP. Without one: no spans."
    )


class Settings(TelemetryOptions, KeyOptions, BlankOptions, LimitOptions, NetworkOptions, EngineOptions, BaseSettings):
    """Everything an operator may choose. Nested limits read as `GLM_INFILL_LIMITS__N=4`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid")

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

    @field_validator("path_aliases")
    @classmethod
    def _are_paths(cls, value: dict[str, str]) -> dict[str, str]:
        for path in [*value, *value.values()]:
            if not re.fullmatch(PATH, path):
                raise ValueError(f"{path!r}: a path begins with / and has letters, digits and -._~/ only")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_can_be_read(cls, value: Path | None) -> Path | None:
        # An operator who names a key file must not get an open server, nor one that knows nobody.
        if value is not None:
            read_keys(value)
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("an http:// or https:// address is needed")
        if value is not None and not any(distributions(name=EXPORTER)):
            raise ValueError("OpenTelemetry's exporter is not installed: pip install 'glm-infill[otel]'")
        return value

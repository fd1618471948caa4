"""The arguments of `serve run deploy.ray:app NAME=VALUE …`: those for Ray, and all settings of the server."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.config import EngineConfig
from engine.options import Count
from server.settings import Seconds, Settings

# Ray's proxy listens, not the server.
ELSEWHERE = ("host", "port")


class Arguments(BaseModel):
    """Arguments for Ray. Other names are those of `server.settings.Settings`, whose GLM_INFILL_* variables count
    too."""

    model_config = ConfigDict(frozen=True, extra="allow")

    device: Literal["cpu", "cuda"] = "cpu"
    replicas: Count = Field(1, description="engines at least")
    max_replicas: Count | None = Field(None, description="engines at most; None: as many as at least")
    cpus: Annotated[float, Field(gt=0)] = Field(1, description="cores of a replica, for all of its ranks")
    requests_per_replica: Count = Field(16, description="in flight, on the average; beyond it replicas are added")
    routing: Literal["context", "load"] = Field("context", description="a context to its replica, or the less loaded")
    upscale_delay_s: Seconds = 10.0
    downscale_delay_s: Seconds = 300.0
    gateways: Count = Field(1, description="HTTP front ends, each with limits of its own")
    gateway_cpus: Annotated[float, Field(ge=0)] = Field(0, description="cores set aside for a gateway, which uses one")
    drain_s: Seconds = Field(600.0, description="time for requests in flight when a replica is stopped")

    @model_validator(mode="after")
    def _is_whole(self) -> "Arguments":
        for name in ELSEWHERE:
            if name in (self.model_extra or {}):
                raise ValueError(f"{name}: Ray's HTTP proxy listens; see http_options in deploy/ray/config.yaml")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is less than replicas")
        return self

    def settings(self) -> Settings:
        """The settings of the server. Raises ValidationError for a name that is in neither."""
        extra: dict[str, Any] = self.model_extra or {}
        return Settings(**extra)

    def engine(self) -> EngineConfig:
        """The engine's configuration for a replica."""
        settings = self.settings()
        threads = max(int(self.cpus) // (settings.tp or 1), 1)
        return EngineConfig.of(settings, device=self.device, threads=threads)

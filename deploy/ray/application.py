"""The application for Ray Serve: gateways with HTTP, in front of replicas with engines."""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from deploy.ray.arguments import Arguments
from deploy.ray.engines import Engines
from deploy.ray.replica import Replica
from server.app import create_app
from server.settings import Settings

REPLICA = "replica"
GATEWAY = "gateway"
# By name: it is imported where the requests are.
BY_CONTEXT: Any = "deploy.ray.router.ContextRouter"
HEALTH_S = 2.0
HEALTH_TIMEOUT_S = 10.0
RETRY_S = 1.0
# The server writes a line for each request already.
LOGGING = LoggingConfig(enable_access_log=False)


def app(arguments: Arguments) -> serve.Application:
    """The application of these arguments. Raises pydantic's ValidationError for an unknown name or a wrong value."""
    settings = arguments.settings()
    tp = settings.tp or 1
    replica = serve.deployment(
        name=REPLICA,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": tp if arguments.device == "cuda" else 0},
        max_ongoing_requests=settings.max_queue,
        max_queued_requests=settings.max_queue,
        request_router_config=_router(arguments.routing),
        logging_config=LOGGING,
        health_check_period_s=HEALTH_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=arguments.drain_s,
        **_number(arguments),
    )(Replica)
    gateway = serve.deployment(
        name=GATEWAY,
        num_replicas=arguments.gateways,
        logging_config=LOGGING,
        ray_actor_options={"num_cpus": arguments.gateway_cpus},
        # The application refuses in its own words; only what would be too many connections for it Ray refuses before.
        max_ongoing_requests=settings.max_connections,
        max_queued_requests=settings.max_connections,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_S),
        graceful_shutdown_timeout_s=arguments.drain_s,
    )(serve.ingress(_asgi(settings))())
    return gateway.bind(replica.bind(arguments.engine()))


def _router(routing: str) -> RequestRouterConfig:
    return RequestRouterConfig(request_router_class=BY_CONTEXT) if routing == "context" else RequestRouterConfig()


def _number(arguments: Arguments) -> dict[str, Any]:
    if arguments.max_replicas is None:
        return {"num_replicas": arguments.replicas}
    look_back = min(arguments.upscale_delay_s, 20.0)
    scaling = AutoscalingConfig(
        min_replicas=arguments.replicas,
        initial_replicas=arguments.replicas,
        max_replicas=arguments.max_replicas,
        target_ongoing_requests=arguments.requests_per_replica,
        upscale_delay_s=arguments.upscale_delay_s,
        downscale_delay_s=arguments.downscale_delay_s,
        look_back_period_s=look_back,
        metrics_interval_s=look_back / 2,
    )
    return {"autoscaling_config": scaling}


def _asgi(settings: Settings) -> Any:
    """Builds the server's application in its own process: Ray pickles its arguments, and an application has locks."""

    def build() -> FastAPI:
        return create_app(settings, Engines(serve.get_deployment_handle(REPLICA)))

    return build

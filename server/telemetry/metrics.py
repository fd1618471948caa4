"""The metrics of one application, in a registry of its own; their names are fixed."""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from engine.client import EngineClient, EngineUnavailable
from engine.events import LossReason, StepStats
from server.telemetry.aliases import Aliases
from server.telemetry.exposition import Shown, exposition

SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """Counts requests for the routes, and steps for the engine."""

    def __init__(self, with_vllm_names: bool = False) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and how they ended", "route", "outcome")
        self.rejected = self._counter("rejected", "Requests refused before work began", "reason")
        self.engine_restarts = self._counter(
            "engine_restarts", "Times that the engine's processes were lost and started again", "reason"
        )
        for reason in get_args(LossReason):
            self.engine_restarts.labels(reason)
        self.request_seconds = self._histogram("request_seconds", "Whole requests", LONG, "route")

        self.running = self._gauge("requests_running", "Requests in the running batch")
        self.waiting = self._gauge("requests_waiting", "Requests that wait for a place in the batch")
        self.kv_cache_usage = self._gauge("kv_cache_usage_ratio", "Share of cache blocks in use")
        self.ready = self._gauge("ready", "1 when new work is welcome, as /ready says")
        self.ranks_alive = self._gauge("ranks_alive", "Rank processes that answer")
        self.adapters = self._gauge("adapters", "Loaded adapters")
        self.ranks: Gauge | None = None
        self.model_info = Info("glm_infill_model", "The loaded model", registry=self.registry)

        self.step_seconds = self._histogram("step_seconds", "One engine step", SHORT)
        self.batch_rows = self._histogram("batch_rows", "Token rows of one engine step", ROWS)
        self.queue_seconds = self._histogram("queue_seconds", "Arrival to first step", LONG)
        self.first_token = self._histogram("time_to_first_token_seconds", "Arrival to first token", LONG)
        self.token_seconds = self._histogram("time_per_output_token_seconds", "Between tokens", SHORT)
        self.steps = {
            "prompt_tokens": self._counter("prompt_tokens", "Tokens of contexts"),
            "generated_tokens": self._counter("generated_tokens", "Tokens generated into blanks"),
            "blanks": self._counter("blanks", "Blanks filled"),
            "score_candidates": self._counter("score_candidates", "Candidates scored"),
            "score_tokens": self._counter("score_tokens", "Tokens scored"),
            "context_cache_queries": self._counter("context_cache_queries", "Contexts looked up for reuse"),
            "context_cache_hits": self._counter("context_cache_hits", "Contexts found and reused"),
            "preemptions": self._counter("preemptions", "Sequences evicted to be computed again"),
            "nonfinite_rows": self._counter("nonfinite_rows", "Rows whose logits were NaN or infinite"),
        }

        self.aliases = CollectorRegistry()
        if with_vllm_names:
            self.aliases.register(Aliases(self.registry))

    def request(self, route: str, outcome: str, seconds: float) -> None:
        """Counts one finished request."""
        self.requests.labels(route, outcome).inc()
        self.request_seconds.labels(route).observe(seconds)

    def refusal(self, reason: str) -> None:
        """Counts one refused request."""
        self.rejected.labels(reason).inc()

    def expose(self, engine: EngineClient, ready: bool = False, accept: str = "") -> tuple[bytes, str]:
        """The metrics as bytes, and their media type, by the client's `Accept` header.

        It first adds the engine's steps since the last call.
        """
        for step in engine.stats():
            self._take(step)
        self.ready.set(ready)
        self.ranks_alive.set(engine.ranks_alive)
        self.adapters.set(len(engine.adapters))
        try:
            card = engine.card
        except EngineUnavailable:
            pass  # No model yet: the info and the number of ranks appear with it.
        else:
            self.model_info.info({"model": card.name, "quant": card.quant, "tp": str(card.tp)})
            self.ranks = self.ranks or self._gauge("ranks", "Rank processes that the model is divided among")
            self.ranks.set(card.tp)
        return exposition(Shown(self.registry, self.aliases), accept)

    def _take(self, step: StepStats) -> None:
        self.running.set(step.running)
        self.waiting.set(step.waiting)
        self.kv_cache_usage.set(step.kv_cache_usage)
        self.step_seconds.observe(step.seconds)
        self.batch_rows.observe(step.rows)
        for name, counter in self.steps.items():
            counter.inc(getattr(step, name))
        for histogram, values in (
            (self.queue_seconds, step.queue_seconds),
            (self.first_token, step.first_token_seconds),
            (self.token_seconds, step.token_seconds),
        ):
            for value in values:
                histogram.observe(value)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"glm_infill_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"glm_infill_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"glm_infill_{name}", text, labels, buckets=buckets, registry=self.registry)

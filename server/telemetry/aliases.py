"""Aliases of metrics: our metrics under the names that dashboards for vLLM use."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# Only what means the same there; vLLM counts successes by reason, where we have one outcome.
NAMES = {
    "requests_running": "num_requests_running",
    "requests_waiting": "num_requests_waiting",
    "kv_cache_usage_ratio": "kv_cache_usage_perc",
    "prompt_tokens": "prompt_tokens",
    "generated_tokens": "generation_tokens",
    "context_cache_queries": "prefix_cache_queries",
    "context_cache_hits": "prefix_cache_hits",
    "preemptions": "num_preemptions",
    "rejected": "admission_rejections",
    "nonfinite_rows": "corrupted_requests",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "time_per_output_token_seconds": "inter_token_latency_seconds",
    "queue_seconds": "request_queue_time_seconds",
    "batch_rows": "iteration_tokens",
}


class Aliases(Collector):
    """Collects from another registry, under other names and with the model's name as a label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def collect(self) -> Iterator[Metric]:
        """The metrics that have an alias."""
        metrics = {metric.name.removeprefix("glm_infill_"): metric for metric in self.registry.collect()}
        model = next((sample.labels["model"] for sample in metrics["model"].samples), "")
        for ours, theirs in NAMES.items():
            metric = metrics[ours]
            alias = Metric(f"vllm:{theirs}", metric.documentation, metric.type, metric.unit)
            for sample in metric.samples:
                name = sample.name.replace(metric.name, alias.name, 1)
                labels = {**sample.labels, "model_name": model}
                alias.samples.append(Sample(name, labels, sample.value, sample.timestamp, sample.exemplar))
            yield alias

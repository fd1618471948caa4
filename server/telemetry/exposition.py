"""The exposition of metrics: Prometheus' text format or OpenMetrics 1.0, as the scraper prefers."""

import re
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

TEXT, OPEN_METRICS = "text/plain", "application/openmetrics-text"
OPEN_METRICS_1 = f"{OPEN_METRICS}; version=1.0.0; charset=utf-8"
QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
# Versions that the two are written in; a scraper that asks for another one does not mean these.
VERSIONS = {TEXT: ("", "0.0.4"), OPEN_METRICS: ("", "1.0.0")}


class Shown(Collector):
    """The metrics of several registries without the start times of series (`_created`).

    The text format has no word for these, and Prometheus would store each as a series of its own.
    """

    def __init__(self, *registries: CollectorRegistry) -> None:
        self.registries = registries

    def collect(self) -> Iterator[Metric]:
        """The metrics of all registries."""
        for registry in self.registries:
            for metric in registry.collect():
                metric.samples = [s for s in metric.samples if s.name != f"{metric.name}_created"]
                yield metric


def exposition(metrics: Collector, accept: str) -> tuple[bytes, str]:
    """The metrics as bytes, and their media type.

    It is the text format if a client prefers neither or accepts neither, since clients without a preference read that.
    """
    wanted = _weights(accept)
    if wanted[OPEN_METRICS] > wanted[TEXT]:
        # Our names need no escape, and prometheus_client's default one (0.26.0) turns the colons of samples, but not
        # those of their metrics, into underscores.
        text: bytes = openmetrics.generate_latest(metrics, openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text, OPEN_METRICS_1
    return generate_latest(metrics), CONTENT_TYPE_PLAIN_0_0_4


def _weights(accept: str) -> dict[str, float]:
    """How much an `Accept` header (RFC 9110, section 12.5.1) wants each of the two; the most specific range counts."""
    ranges: dict[str, float] = {}
    for item in accept.split(","):
        media, *given = (part.strip().lower() for part in item.split(";"))
        parameters = dict(parameter.partition("=")[::2] for parameter in given)
        if parameters.get("version", "").strip('"') in VERSIONS.get(media, ("",)):
            ranges[media] = max(ranges.get(media, 0.0), _weight(parameters.get("q", "1")))
    return {media: next((ranges[r] for r in _ranges(media) if r in ranges), 0.0) for media in VERSIONS}


def _ranges(media: str) -> tuple[str, ...]:
    """The ranges that a media type is in, the most specific first."""
    return media, media.partition("/")[0] + "/*", "*/*"


def _weight(text: str) -> float:
    return float(text) if QUALITY.fullmatch(text) else 0.0

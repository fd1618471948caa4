"""Metrics in both formats, read by the parsers of prometheus_client and by promtool."""

import shutil
import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from starlette.testclient import TestClient

from engine.events import StepStats

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# As the releases send it: 2.45 (scrape/scrape.go, UserAgent and acceptHeader), 3.x with its escaping.
PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"  # noqa: E501
PROMETHEUS_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"  # noqa: E501


@pytest.fixture
def measured(make_client, engine) -> TestClient:
    engine.steps = [StepStats(0.01, 8, 2, 1, 0.5, 5, 3, 1, 2, 6, 4, 3, 1, 1, [0.1], [0.2], [0.01, 0.02])]
    client: TestClient = make_client(vllm_metrics=True)
    client.post("/v1/infill", json={"text": "a"})
    client.get("/metrics")
    return client


def get(client: TestClient, accept: str) -> tuple[str, str]:
    response = client.get("/metrics", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["vary"] == "accept"
    return response.text, response.headers["content-type"]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (PROMETHEUS_2, OPEN_METRICS),
        (PROMETHEUS_3, OPEN_METRICS),
        ("application/openmetrics-text", OPEN_METRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", OPEN_METRICS),
        ("*/*", TEXT),
        ("", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("text/plain, application/openmetrics-text", TEXT),
        ("text/plain;q=0.9, application/openmetrics-text;q=0.1", TEXT),
        ("text/plain;q=0.1, application/openmetrics-text;q=0.9", OPEN_METRICS),
        ("application/openmetrics-text;q=0.5, */*;q=0.8", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;version=0.0.1", TEXT),
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ("application/openmetrics-text;q=9;version=1.0.0", TEXT),
        ("application/*", OPEN_METRICS),
        ("image/png", TEXT),
        (",;q=;==,", TEXT),
    ],
)
def test_the_scraper_chooses_the_format(measured: TestClient, accept: str, kind: str) -> None:
    text, found = get(measured, accept)
    assert found == kind
    assert text.endswith("# EOF\n") == (kind == OPEN_METRICS)


def test_no_format_has_series_of_when_series_began(measured: TestClient) -> None:
    for accept in ("*/*", PROMETHEUS_2):
        assert "_created" not in get(measured, accept)[0]


def test_both_formats_say_the_same(measured: TestClient) -> None:
    in_text = {f.name: f for f in read_text(get(measured, "*/*")[0])}
    in_open_metrics = {f.name: f for f in read_open_metrics(get(measured, PROMETHEUS_3)[0])}
    # An info is a gauge in the text format, whose name has the suffix.
    assert in_text.keys() - {"glm_infill_model_info"} == in_open_metrics.keys() - {"glm_infill_model"}
    assert (in_open_metrics["glm_infill_model"].type, in_text["glm_infill_model_info"].type) == ("info", "gauge")
    for name in in_text.keys() & in_open_metrics.keys():
        first, second = in_text[name], in_open_metrics[name]
        assert (first.type, first.documentation) == (second.type, second.documentation)
        samples = [{(s.name, *sorted(s.labels.items())) for s in family.samples} for family in (first, second)]
        assert samples[0] == samples[1]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")
def test_promtool_finds_nothing_wrong(make_client, engine) -> None:
    engine.steps = [StepStats(0.01, 8, 2, 1, 0.5, 5, 3, 1, 2, 6, 4, 3, 1, 1, [0.1], [0.2], [0.01, 0.02])]
    client = make_client()
    client.post("/v1/infill", json={"text": "a"})
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=get(client, "*/*")[0], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

"""What watches the server: shipped alerts and dashboard, against a live server and a real Prometheus."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.keyfile import new_key

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
SHIPPED = COMPOSE / "prometheus"
PATIENCE_S = 120.0
METRIC = re.compile(r"\b(?:glm_infill_\w+|up)\b")

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def queries() -> dict[str, str]:
    """Every query of the dashboard by panel and letter, for all servers, over Grafana's four scrapes."""
    panels = json.loads((COMPOSE / "grafana" / "glm-infill.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$instance", ".*")
        .replace("$__rate_interval", "4s")
        for panel in panels
        for target in panel.get("targets", [])
    }


class Watched:
    """A server with the demo model and keys, and the load that makes each of its metrics move."""

    def __init__(self, folder: Path) -> None:
        self.key = new_key(folder / "keys.jsonl", name="prometheus")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {"PORT": str(self.port), "API_KEYS": str(folder / "keys.jsonl"), "LOG_LEVEL": "error"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "serve", "--quant", "int8"],
            env={**os.environ, **{f"GLM_INFILL_{name}": value for name, value in environment.items()}},
            cwd=ROOT,
        )
        self.client = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60)

    def is_ready(self) -> bool:
        assert self.process.poll() is None
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def work(self) -> None:
        for _ in range(2):
            self.client.post("/v1/infill", json={"text": "the [MASK] sea", "max_tokens": 4, "min_tokens": 4})
            self.client.post("/v1/score", json={"text": "the [MASK] sea", "spans": [["red"], ["dead"]]})
        httpx.post(f"{self.url}/v1/infill", json={"text": "no key"})

    def metrics(self) -> set[str]:
        lines = self.client.get("/metrics").text.splitlines()
        return {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}


def until(is_so) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    server = Watched(tmp_path_factory.mktemp("watched"))
    try:
        until(server.is_ready)
        server.work()
        yield server
    finally:
        server.client.close()
        server.process.terminate()
        assert server.process.wait(60) == 0


def test_what_dashboard_and_alerts_name_is_there(watched):
    named = set(METRIC.findall("\n".join(queries().values()) + (SHIPPED / "rules.yml").read_text()))
    assert len(named) > 20
    # A description may point to a histogram by its plain name.
    there = watched.metrics() | {"up"}
    there |= {name.removesuffix("_bucket") for name in there}
    assert named <= there


def test_the_dashboard_shows_every_metric(watched):
    shown = set(METRIC.findall("\n".join(queries().values())))
    there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in watched.metrics()}
    assert there <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}


def test_panels_have_titles_units_and_places_of_their_own():
    dashboard = json.loads((COMPOSE / "grafana" / "glm-infill.json").read_text())
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells
        cells |= own
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@needs_prometheus
@pytest.mark.parametrize("command", [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]])
def test_promtool_is_content_with_the_rules(command):
    subprocess.run(["promtool", *command], cwd=SHIPPED, check=True)


@needs_prometheus
def test_every_alert_is_tested_to_fire():
    tested = (SHIPPED / "rules_test.yml").read_text()
    alerts = re.findall(r"alert: (\w+)", (SHIPPED / "rules.yml").read_text())
    assert alerts
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n +exp_alerts:\n +- exp_labels", tested), alert
        assert f"alertname: {alert}, exp_alerts: []" in tested


@needs_prometheus
def test_prometheus_scrapes_and_every_panel_has_data(watched, tmp_path):
    for name in ("rules.yml", "prometheus.yml"):
        text = (SHIPPED / name).read_text()
        (tmp_path / name).write_text(text.replace("scrape_interval: 5s", "scrape_interval: 1s"))
    (tmp_path / "metrics.key").write_text(watched.key + "\n")
    (tmp_path / "targets.yml").write_text(f"- targets: [127.0.0.1:{watched.port}]\n")
    subprocess.run(["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, check=True)

    port = free_port()
    options = [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.path=data", "--log.level=error"]
    prometheus = subprocess.Popen(["prometheus", "--config.file=prometheus.yml", *options], cwd=tmp_path)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30)

    def empty() -> list[str]:
        """Panels whose query has no data, or nothing but NaN."""
        watched.work()
        found = []
        for name, query in queries().items():
            answer = client.get("/query", params={"query": query}).json()
            assert answer["status"] == "success", answer
            if all(series["value"][1] == "NaN" for series in answer["data"]["result"]):
                found.append(name)
        return found

    def is_up() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(is_up)
        deadline = time.monotonic() + 60
        while missing := empty():
            assert time.monotonic() < deadline, missing
            time.sleep(0.5)
        # It asks for OpenMetrics, in which a series may have a time at which it began: stored, that is one series more.
        stored = client.get("/label/__name__/values").json()["data"]
        assert any(name.startswith("glm_infill_") for name in stored)
        assert [name for name in stored if name.endswith("_created")] == []
        rules = client.get("/rules").json()["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
        firing = [alert["labels"] for alert in client.get("/alerts").json()["data"]["alerts"]]
        assert firing == []
    finally:
        client.close()
        prometheus.terminate()
        prometheus.wait()

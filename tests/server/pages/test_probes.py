"""Liveness, readiness and metrics."""

import json

import pytest

from engine.events import Loss, StepStats

NAMES = """
requests_running requests_waiting kv_cache_usage_ratio ranks_alive requests_total prompt_tokens_total
generated_tokens_total blanks_total score_candidates_total score_tokens_total context_cache_queries_total
context_cache_hits_total preemptions_total rejected_total nonfinite_rows_total time_to_first_token_seconds_bucket
time_per_output_token_seconds_bucket request_seconds_bucket queue_seconds_bucket step_seconds_bucket
batch_rows_bucket model_info ready ranks engine_restarts_total
"""


@pytest.mark.parametrize("state", ["loading", "ready", "restarting", "failed", "stopped"])
@pytest.mark.parametrize("path", ["/ready", "/health"])
def test_ready_only_when_ready(client, engine, state, path):
    engine.status = (state, "40 %")
    response = client.get(path)
    assert response.status_code == (200 if state == "ready" else 503)
    # llama.cpp's word, which its editors look for at its path.
    word = "ok" if (path, state) == ("/health", "ready") else state
    assert response.json() == {"status": word, "detail": "40 %", "ranks_alive": 1}
    assert client.get("/live").status_code == 200


def test_a_server_whose_engine_is_given_up_is_not_live(client, engine):
    engine.status = ("restarting", "the engine process exited with code 3")
    assert client.get("/live").status_code == 200
    engine.is_given_up = True
    response = client.get("/live")
    assert response.status_code == 503
    assert response.json() == {
        "status": "given_up",
        "detail": "the engine was lost again and again without an answer; now: the engine process exited with code 3",
    }


def test_losses_are_counted_by_reason_and_logged(capsys, make_client, engine):
    with make_client() as client:
        engine.lose(Loss("signal", "rank 1 was killed by SIGKILL", 1))
        engine.lose(Loss("signal", "rank 0 was killed by SIGKILL", 2))
        engine.lose(Loss("load", "no such folder", 3, final=True))  # nothing is started again
        text = client.get("/metrics").text
    assert 'glm_infill_engine_restarts_total{reason="signal"} 2.0' in text
    assert 'glm_infill_engine_restarts_total{reason="load"} 0.0' in text
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"engine lost"' in line]
    assert [(line["reason"], line["detail"], line["in_a_row"]) for line in told] == [
        ("signal", "rank 1 was killed by SIGKILL", 1),
        ("signal", "rank 0 was killed by SIGKILL", 2),
    ]


def test_work_while_loading_is_503(client, engine, refused):
    engine.status = ("loading", "40 %")
    response = client.post("/v1/infill", json={"text": "a"})
    assert refused(response, 503)["code"] == "not_ready"
    assert response.headers["retry-after"]
    refused(client.get("/v1/models"), 503)
    assert client.get("/metrics").status_code == 200


def test_metrics_have_the_names_of_the_contract(client, engine, make_app):
    engine.steps = [
        StepStats(0.01, 8, 2, 1, 0.5, 5, 3, 1, 2, 6, 4, 3, 1, 1, [0.1], [0.2], [0.01, 0.02]),
        StepStats(0.01, 8, 0, 0, 0.0, generated_tokens=1),
    ]
    client.post("/v1/infill", json={"text": "a"})
    client.app.state.drain()
    client.post("/v1/infill", json={"text": "a"})
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    for name in NAMES.split():
        assert any(line.startswith((f"glm_infill_{name} ", f"glm_infill_{name}{{")) for line in lines), name
    assert "glm_infill_generated_tokens_total 4.0" in lines
    assert "glm_infill_requests_running 0.0" in lines
    assert "glm_infill_step_seconds_count 2.0" in lines
    assert 'glm_infill_rejected_total{reason="draining"} 1.0' in lines
    assert 'glm_infill_model_info{model="demo",quant="int8",tp="1"} 1.0' in lines


def test_metrics_tell_readiness_and_ranks(client, engine):
    def shown():
        lines = (line for line in client.get("/metrics").text.splitlines() if line.startswith("glm_infill_r"))
        return {name: float(value) for name, _, value in (line.partition(" ") for line in lines)}

    engine.status = ("loading", "40 %")
    assert shown()["glm_infill_ready"] == 0
    engine.status = ("ready", "")
    assert (shown()["glm_infill_ready"], shown()["glm_infill_ranks_alive"], shown()["glm_infill_ranks"]) == (1, 1, 1)
    client.app.state.drain()
    assert shown()["glm_infill_ready"] == 0


def test_labels_never_come_from_a_path(client):
    for number in range(20):
        client.get(f"/nothing/{number}")
    text = client.get("/metrics").text
    assert "nothing" not in text
    assert 'requests_total{outcome="invalid",route="unmatched"} 20.0' in text


def test_each_application_counts_for_itself(make_client):
    first, second = make_client(), make_client()
    first.get("/live")
    assert 'route="/live"' not in second.get("/metrics").text


def test_vllm_s_names_are_there_for_those_who_ask(make_client, engine):
    engine.steps = [StepStats(0.01, 8, 2, 1, 0.5, 5, 3, token_seconds=[0.01])]
    client = make_client(vllm_metrics=True)
    client.app.state.drain()
    client.post("/v1/infill", json={"text": "a"})
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'vllm:num_requests_running{model_name="demo"} 2.0',
        'vllm:prompt_tokens_total{model_name="demo"} 5.0',
        'vllm:admission_rejections_total{model_name="demo",reason="draining"} 1.0',
        'vllm:inter_token_latency_seconds_bucket{le="+Inf",model_name="demo"} 1.0',
        "# TYPE vllm:generation_tokens_total counter",
    ):
        assert line in lines
    assert "vllm" not in make_client().get("/metrics").text

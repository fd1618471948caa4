"""The gate: admission by requests and by tokens, whole or not at all; deadlines from the header."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answers import Usage
from engine.client import EngineUnavailable
from engine.events import Done, Failed, ModelCard
from engine.requests import Fill, Mask, RequestError, Score
from server.access.gate import Gate, is_work
from server.access.keyring import Client
from server.access.rates import Bucket, Rates
from server.app import WORK
from server.exchange.estimate import most_tokens
from server.wire.errors import ApiError

CARD = ModelCard(
    name="demo", family="glm", quant="int8", quant_head="int8", tp=1, masks=["[MASK]"], max_context=512,
    max_positions=513, max_span=512, vocab_size=100, strategies=["append"], num_parameters=7, kernels="plain",
    created=1, kv_cache_type="float32", kv_cache_tokens=4096,
)  # fmt: skip
HUGE = {"text": "a", "max_tokens": 100, "n": 6}
SMALL = {"text": "a", "max_tokens": 10}


def ann(tokens_per_minute=None):
    return Client("ann", False, "interactive", Rates(tokens=tokens_per_minute and Bucket(tokens_per_minute, lambda: 0)))


def test_few_huge_requests_trip_the_token_cap_and_small_ones_still_pass(make_app, make_caller, engine):
    release = asyncio.Event()

    async def script(request, work_id):
        await release.wait()
        yield Done(work_id, Usage(total_tokens=3))

    async def play():
        engine.script = script
        app = make_app(max_queue_tokens=1000)
        callers = [make_caller("/v1/infill", body, app=app) for body in (HUGE, HUGE, SMALL, HUGE, SMALL, SMALL)]
        tasks = []
        for caller in callers:
            tasks.append(asyncio.create_task(caller.run()))
            await asyncio.sleep(0.01)
        assert [caller.status for caller in callers] == [0, 503, 0, 503, 0, 0]
        gate = app.state.service.gate
        assert (gate.inside, gate.tokens) == (4, 605 + 3 * 15)
        release.set()
        await asyncio.gather(*tasks)
        assert [caller.status for caller in callers] == [200, 503, 200, 503, 200, 200]
        assert (gate.inside, gate.tokens) == (0, 0)
        metrics = app.state.service.metrics.expose(engine)[0].decode()
        assert 'rejected_total{reason="queue_tokens_full"} 2.0' in metrics

    asyncio.run(play())


def test_candidates_and_samples_are_admitted_whole(make_client, engine, refused):
    client = make_client(max_queue_tokens=1000)
    error = refused(client.post("/v1/infill", json={"text": "a", "max_tokens": 150, "n": 8}), 400)
    assert (error["code"], "1000" in error["message"]) == ("request_too_large", True)
    body = {"text": "a [MASK]", "spans": [["some words"]] * 71}
    refused(client.post("/v1/score", json=body), 400)
    assert not engine.asked
    assert client.post("/v1/score", json={**body, "spans": body["spans"][:60]}).status_code == 200


def test_a_ticket_gives_back_what_was_not_needed_and_keeps_what_was_cancelled():
    gate, one = Gate(10, 1000), ann(tokens_per_minute=500)
    ticket = gate.enter(one)
    ticket.admit("a", 300)
    with pytest.raises(ApiError) as caught:
        ticket.admit("b", 300)
    assert caught.value.status == 429
    assert gate.tokens == 300
    ticket.settle("a", 20)
    ticket.leave()
    assert (gate.inside, gate.tokens) == (0, 0)
    cancelled = gate.enter(one)
    cancelled.admit("c", 300)
    cancelled.leave()
    with pytest.raises(ApiError):
        gate.enter(one).admit("d", 300)
    with pytest.raises(RequestError):
        gate.enter(one).admit("e", 1001)
    assert gate.tokens == 0


def test_one_key_cannot_fill_the_queue_of_all():
    gate = Gate(16, 10**6)
    inside = []
    for name, places in (("ann", 8), ("bob", 4), ("eve", 2), ("joe", 1)):
        one = Client(name, False, "interactive", Rates())
        for _ in range(places):
            inside.append(gate.enter(one))
        with pytest.raises(ApiError) as caught:
            gate.enter(one)
        assert (caught.value.status, caught.value.code) == (429, "queue_share_taken")
    for ticket in inside:
        ticket.leave()
    assert not any(gate.held.values())
    # Without keys everybody is one client, and has it all.
    everybody = Client("", False, "interactive", Rates())
    assert len([gate.enter(everybody) for _ in range(16)]) == 16


def test_one_key_cannot_take_the_tokens_of_all():
    gate = Gate(100, 1000)
    tickets = [gate.enter(ann()) for _ in range(3)]
    tickets[0].admit("a", 400)
    tickets[1].admit("b", 400)
    with pytest.raises(ApiError) as caught:
        tickets[2].admit("c", 10)
    assert (caught.value.status, caught.value.code) == (429, "queue_share_taken")
    gate.enter(Client("bob", False, "interactive", Rates())).admit("d", 100)
    for ticket in tickets:
        ticket.leave()
    assert (gate.tokens, gate.held_tokens["ann"]) == (100, 0)


def test_who_is_turned_away_comes_back_when_those_inside_have_left():
    now = [0.0]
    gate, everybody = Gate(1, 100, lambda: now[0]), Client("", False, "interactive", Rates())

    def told():
        with pytest.raises(ApiError) as caught:
            gate.enter(everybody)
        return caught.value.retry_s

    for seconds, least, most in ((5.0, 4.9, 5.0), (0.001, 0.1, 0.1), (1000.0, 60.0, 60.0)):
        for _ in range(60):
            ticket = gate.enter(everybody)
            now[0] += seconds
            ticket.leave()
            ticket.leave()  # once is enough
        ticket = gate.enter(everybody)
        assert least <= told() <= most
        ticket.leave()
    assert gate.inside == 0


def test_a_place_is_free_once_the_last_byte_is_out(make_app, make_caller):
    async def play():
        app = make_app(max_queue=1)
        again = make_caller("/v1/infill", {"text": "a"}, app=app)

        class AsksAgain(type(again)):  # type: ignore[misc]
            """A client whose next request is there before the server has tidied up behind this one."""

            async def send(self, message):
                await super().send(message)
                if message["type"] == "http.response.body" and not message["more_body"]:
                    self.next = asyncio.create_task(again.run())

        caller = AsksAgain(app, "/v1/infill", {"text": "a", "stream": True})
        await caller.run()
        await caller.next
        assert (caller.status, again.status) == (200, 200)

    asyncio.run(play())


@pytest.mark.parametrize(("outcome", "is_charged"), [("invalid", False), ("overloaded", False), ("deadline", True)])
def test_what_the_engine_refuses_costs_nothing(make_client, engine, outcome, is_charged):
    async def script(request, work_id):
        yield Failed(work_id, outcome, "no")

    engine.script = script
    client = make_client(tokens_per_minute=100)
    client.post("/v1/infill", json={"text": "a"})
    assert (client.post("/v1/infill", json={"text": "a"}).status_code == 429) == is_charged


def test_an_engine_that_is_not_there_costs_nothing(make_client, engine):
    async def script(request, work_id):
        raise EngineUnavailable("restarting")
        yield

    engine.script = script
    client = make_client(tokens_per_minute=100)
    assert [client.post("/v1/infill", json={"text": "a"}).status_code for _ in range(3)] == [503] * 3


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/infill", True),
        ("POST", "/v1/to/come", True),
        ("POST", "/infill", True),
        ("POST", "/detokenize", True),
        ("GET", "/v1/models", False),
        ("POST", "/", True),
        ("POST", "/models/google/bert", True),
        ("GET", "/models/google/bert", False),
        ("POST", "/models", False),
        ("POST", "/infillx", False),
    ],
)
def test_what_counts_as_work(method, path, expected):
    assert is_work({"type": "http", "method": method, "path": path}, WORK) == expected


TEXT = st.text(max_size=20)


@given(st.lists(TEXT, min_size=1, max_size=4), st.integers(1, 8), st.lists(st.integers(1, 64), min_size=1, max_size=3))
def test_an_estimate_of_a_fill_is_never_too_small(texts, n, max_tokens):
    inputs = tuple((text, *(Mask("[MASK]") for _ in max_tokens)) for text in texts)
    fill = Fill(inputs, max_tokens=tuple(max_tokens), n=n)
    least = sum(len(text.encode()) + len(max_tokens) for text in texts) + n * len(texts) * sum(max_tokens)
    assert least <= most_tokens(fill, CARD) <= least + 4 * len(texts)


@pytest.mark.parametrize(
    ("score", "tokens"),
    [
        (Score(text=("abc", Mask("[MASK]")), spans=(("xy",), ("z",))), 8 + 6 + 5),
        (Score(text=("abc", Mask("[MASK]")), spans=(("xy",),), orders=3), 8 + 3 * 6),
        (Score(text=(Mask("[MASK]"), Mask("[MASK]"), Mask("[MASK]")), spans=(("x", "y", "z"),), orders="all"), 7 + 90),
        (Score(text=("光",)), 4 + 7),
        (Score(context=("ab",), targets=("c", "de")), 6 + 5 + 6),
        (Score(sentence_a="ab", sentence_b="c"), 7),
        (Score(context=("a" * 10_000,), targets=("b" * 10_000,)), 512 + 513),
    ],
)
def test_estimates_of_scores(score, tokens):
    assert most_tokens(score, CARD) == tokens


@pytest.mark.parametrize(
    ("header", "body", "seconds"),
    [("2.5", None, 2.5), ("2.5", 1.0, 1.0), ("1", 3.0, 1.0), (None, None, 600.0), ("600", None, 600.0)],
)
def test_the_sooner_deadline_holds(client, engine, header, body, seconds):
    headers = {} if header is None else {"x-request-timeout-s": header}
    asked = {"text": "a"} | ({} if body is None else {"timeout_s": body})
    assert client.post("/v1/infill", json=asked, headers=headers).status_code == 200
    assert engine.asked[0].timeout_s == seconds


@pytest.mark.parametrize("header", ["0", "-1", "601", "nan", "inf", "1e3", "", "soon", "1" * 400])
def test_a_deadline_that_is_none_is_refused(client, engine, refused, header):
    response = client.post("/v1/infill", json={"text": "a"}, headers={"x-request-timeout-s": header})
    refused(response, 400, "x-request-timeout-s")
    assert not engine.asked

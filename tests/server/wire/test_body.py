"""Bodies that were made to hurt."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.wire.answer import encode
from server.wire.body import parse_object

LIMIT = 2 * 1024 * 1024
AS_JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"text": "\xff"}',
        b'\xef\xbb\xbf{"text": "a"}',
        '{"text": "a"}'.encode("utf-16"),
        b'{"text": "a", "temperature": NaN}',
        b'{"text": "a", "temperature": -Infinity}',
        b'{"text": "a", "temperature": 1e999}',
        b'{"text": "a", "seed": 9223372036854775808}',
        b'{"text": "a", "seed": ' + b"9" * 100_000 + b"}",
        b'{"text": "a", "text": "b"}',
        b'{"text": "a\x00"}',
        b'{"text": ' + b"[" * 33 + b"]" * 33 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"text": "' + b'\\"' * 1_000_000,
        b'{"text": [' + b"[],".join([b""] * 100) + b']} "',
    ],
)
def test_bad_json_is_400(client, engine, refused, content):
    start = time.perf_counter()
    assert refused(client.post("/v1/infill", content=content, headers=AS_JSON), 400)["code"] == "invalid_json"
    assert time.perf_counter() - start < 2
    assert not engine.asked


def test_brackets_inside_strings_are_no_nesting(client):
    assert client.post("/v1/infill", json={"text": '\\"[{' * 1000}).status_code == 200


def test_nul_is_a_character(client):
    assert client.post("/v1/infill", json={"text": "a\x00"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        ({"content-type": "application/json; charset=utf-8; charset=latin-1"}, 415),
        ({"content-type": "application/json; charset="}, 415),
        ({"content-type": "application/json; utf-8"}, 415),
        ({"content-type": 'application/json; a="b'}, 415),
        ({"content-type": "application/json, application/json"}, 415),
        ({"content-type": "application/jsonx"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": ""}, 415),
        ({}, 415),
        ({**AS_JSON, "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=UTF-8"}, 200),
        ({"content-type": 'application/json; profile="a;charset=latin-1"; charset="utf-8" ;'}, 200),
        ({"content-type": 'application/json;charset=utf8;profile="https://a.example/\\""'}, 200),
        ({"content-type": "Application/JSON"}, 200),
    ],
)
def test_content_types(client, headers, status):
    response = client.post("/v1/infill", content=b'{"text": "a"}', headers=headers)
    assert response.status_code == status
    assert ("error" in response.json()) == (status == 415)
    assert status == 200 or "content-encoding" in headers or "Content-Type: application/json" in response.text


@pytest.mark.parametrize("name", ["Content-Type", "Authorization", "X-Api-Key", "Origin", "X-Request-Timeout-S"])
def test_a_header_that_decides_may_be_there_once(client, engine, refused, name):
    headers = [("content-type", "application/json"), (name, "application/json"), (name.lower(), "text/plain")]
    error = refused(client.post("/v1/infill", content=b'{"text": "a"}', headers=headers[name == "Content-Type" :]), 400)
    assert (error["code"], name in error["message"]) == ("bad_http", True)
    assert not engine.asked


def test_body_over_the_limit_is_413(client, refused):
    body = b'{"text": "' + b"a" * 3_000_000 + b'"}'
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    assert "content-length" not in client.build_request("POST", "/", content=chunks).headers
    for content in (body, chunks):
        error = refused(client.post("/v1/infill", content=content, headers=AS_JSON), 413)
        assert (str(LIMIT) in error["message"], error["code"]) == (True, "body_too_large")
    assert 'rejected_total{reason="body_too_large"} 2.0' in client.get("/metrics").text


def test_body_that_never_arrives_is_408(make_caller):
    async def starve():
        caller = make_caller("/v1/infill", {}, body_seconds=0.05)
        caller.sent = True
        await asyncio.wait_for(caller.run(), 2)
        assert caller.status == 408

    asyncio.run(starve())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)  # fmt: skip


@settings(deadline=None, max_examples=50, database=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=3))
def test_what_is_written_can_be_read(value):
    assert parse_object(encode(value)) == value

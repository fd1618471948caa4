"""Whom a server without keys obeys: requests sent to its own name, by its own page or by none."""

import pytest
from starlette.testclient import TestClient

from server.access.origin import name_of
from server.app import create_app
from server.keyfile import new_key
from server.settings import Settings

BODY = {"text": "a [MASK]"}


@pytest.fixture
def make_local(engine):
    """A client of a server that listens on loopback: `make_local(address="127.0.0.1", **settings)`."""

    def make(address="127.0.0.1", **settings):
        url = f"http://[{address}]:8000" if ":" in address else f"http://{address}:8000"
        return TestClient(create_app(Settings(**settings), engine, is_local=True), base_url=url)

    return make


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("localhost:8000", "localhost"),
        ("127.0.0.1:", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::1]:8000", "::1"),
        ("a.example:80:90", ""),
        ("::1", ""),
        ("[::1", ""),
        ("localhost@a.example", ""),
        ("localhost:a.example", ""),
        ("localhost/a", ""),
        ("a b", ""),
        ("", ""),
    ],
)
def test_the_name_in_a_host(host, name):
    assert name_of(host) == name


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_local_server_answers_by_its_own_names(make_local, address, host):
    client = make_local(address)
    assert client.get("/live", headers={"host": host}).status_code == 200
    assert client.post("/v1/infill", json=BODY, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["a.example", "a.example:8000", "localhost.a.example", "127.0.0.1.a.example", "10.0.0.1", "localhost:x", ""]
)
def test_a_local_server_answers_by_no_other_name(make_local, engine, refused, host):
    client = make_local()
    for response in (
        client.post("/v1/infill", json=BODY, headers={"host": host}),
        client.get("/live", headers={"host": host}),
        client.get("/", headers={"host": host}),
        client.get("/nothing", headers={"host": host}),
    ):
        error = refused(response, 403)
        assert (error["type"], error["code"]) == ("permission_error", "host_not_allowed")
    assert not engine.asked
    assert 'rejected_total{reason="host_not_allowed"} 4.0' in client.get("/metrics").text


def test_further_names_are_checked_wherever_the_server_listens(make_local, make_client, tmp_path):
    path = tmp_path / "keys.jsonl"
    key = {"authorization": f"Bearer {new_key(path, name='ann')}"}
    names = ("A.example", "[fd00::5]")
    for client in (make_local(allowed_hosts=names), make_client(allowed_hosts=names, api_keys=path)):
        statuses = [
            client.post("/v1/infill", json=BODY, headers={**key, "host": host}).status_code
            for host in ("a.example:1", "[fd00::5]", "localhost", "b.example")
        ]
        assert statuses == [200, 200, 200, 403]


def test_a_server_that_others_reach_is_asked_by_any_name(make_client):
    for host in ("10.0.0.7:8000", "glm.a.example"):
        assert make_client().post("/v1/infill", json=BODY, headers={"host": host}).status_code == 200


def test_the_address_that_was_asked_is_a_name_of_the_server(engine):
    app = create_app(Settings(allowed_hosts=("a.example",)), engine)
    # So a cluster's probes, which know addresses only, get through; a page that has a name for the address does not.
    assert TestClient(app, base_url="http://10.0.0.7:8000").get("/live").status_code == 200
    assert (
        TestClient(app, base_url="http://10.0.0.7:8000").get("/live", headers={"host": "10.0.0.8"}).status_code == 403
    )
    assert TestClient(app, base_url="http://b.example:8000").get("/live").status_code == 403


OWN = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": OWN}, 200),
        ({"origin": OWN, "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        # A proxy made another Host of it, or spoke TLS.
        ({"origin": "https://glm.a.example", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://127.0.0.1:8000"}, 200),
        ({"origin": "http://127.0.0.1:8001"}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"origin": "http://localhost:8000"}, 403),
        ({"origin": "http://a.example", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:8001", "sec-fetch-site": "same-site"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "later"}, 403),
    ],
)
def test_pages_of_other_origins_get_nothing_done(make_local, make_client, engine, headers, status):
    for client in (make_local(), make_client()):
        host = {"host": "127.0.0.1:8000"}
        response = client.post("/v1/infill", json=BODY, headers={**host, **headers})
        assert response.status_code == status
        if status == 403:
            assert response.json()["error"]["code"] == "origin_not_allowed"
            assert not engine.asked
            assert 'rejected_total{reason="origin_not_allowed"} 1.0' in client.get("/metrics", headers=host).text
        # To read is harmless: the browser keeps what is read from the page.
        assert client.get("/v1/models", headers={**host, **headers}).status_code == 200


def test_pages_of_further_hosts_may_ask(make_local):
    client = make_local(allowed_hosts=("app.a.example",))
    page = {"origin": "https://app.a.example:444", "sec-fetch-site": "cross-site"}
    assert client.post("/v1/infill", json=BODY, headers=page).status_code == 200
    page["origin"] = "https://b.a.example"
    assert client.post("/v1/infill", json=BODY, headers=page).status_code == 403


def test_where_there_are_keys_they_decide(make_local, tmp_path):
    path = tmp_path / "keys.jsonl"
    key = {"authorization": f"Bearer {new_key(path, name='ann')}"}
    page = {"host": "glm.a.example", "origin": "https://app.a.example", "sec-fetch-site": "cross-site"}
    client = make_local(api_keys=path)
    assert client.post("/v1/infill", json=BODY, headers=page).status_code == 401
    assert client.post("/v1/infill", json=BODY, headers={**page, **key}).status_code == 200

"""The page's files over HTTP; what it does in a browser is in tests/playground."""

import pytest

from server.pages.playground import PATHS


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_file_is_served_under_a_strict_policy_and_once(client, path):
    first = client.get(path)
    assert first.status_code == 200
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert first.headers["x-content-type-options"] == "nosniff"
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    assert client.head(path).status_code == 200


def test_the_page_is_open_where_the_rest_is_closed(make_client, tmp_path):
    (tmp_path / "keys").write_text('{"name": "a", "sha256": "' + "0" * 64 + '"}\n')
    with make_client(api_keys=tmp_path / "keys") as client:
        assert all(client.get(path).status_code == 200 for path in PATHS)
        assert client.get("/v1/models").status_code == 401
        assert client.post("/").status_code == 401


@pytest.mark.parametrize(
    "path", ["/playground", "/playground/", "/playground/index.html", "/playground/../settings.py"]
)
def test_there_is_nothing_else(client, path):
    assert client.get(path).status_code == 404


def test_no_file_has_markup_or_script_of_its_own_inside(client):
    page = client.get("/").text
    assert "<script>" not in page
    assert "style=" not in page
    assert " onclick=" not in page
    for path in PATHS:
        text = client.get(path).text
        assert "innerHTML" not in text
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text

"""Settings come from the environment, once, and refuse what they cannot keep."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from server.settings import Settings


def test_environment(monkeypatch):
    monkeypatch.setenv("GLM_INFILL_PORT", "9000")
    monkeypatch.setenv("GLM_INFILL_LIMITS__N", "4")
    settings = Settings()
    assert (settings.host, settings.port, settings.limits.n, settings.limits.stop) == ("127.0.0.1", 9000, 4, 32)


def test_the_kind_of_cache(monkeypatch):
    assert Settings().kv_cache_type == "auto"
    monkeypatch.setenv("GLM_INFILL_KV_CACHE_TYPE", "int8")
    assert Settings().kv_cache_type == "int8"


def test_what_stands_in_for_files_that_a_folder_lacks(monkeypatch):
    monkeypatch.setenv("GLM_INFILL_PRESET", "glm-130b")
    monkeypatch.setenv("GLM_INFILL_TOKENIZER", "vocabulary")
    assert (Settings().preset, Settings().tokenizer) == ("glm-130b", Path("vocabulary"))


@pytest.mark.parametrize(
    "field",
    [
        {"port": 70000}, {"quant": "int3"}, {"max_queue": 0}, {"prot": 1}, {"limits": {"n": 9}},
        {"drain_seconds": float("nan")}, {"api_keys": "keys.txt"}, {"kv_cache_type": "int4"},
    ],
)  # fmt: skip
def test_refused(field):
    with pytest.raises(ValidationError):
        Settings(**field)


def test_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]

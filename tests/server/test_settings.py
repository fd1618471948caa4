"""Settings come from the environment, once, and refuse what they cannot keep."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import server.cli
from engine.config import EngineConfig
from engine.options import EngineOptions
from server.commands.flags import flags_of
from server.settings import PREFIX, Settings


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


def test_an_engine_starts_with_what_its_options_say_and_the_same_defaults():
    assert EngineConfig.of(EngineOptions()) == EngineConfig()
    options = EngineOptions(model=Path("a"), tp=2, adapters={"b": Path("c")}, kv_cache_gb=1.5, device="cpu")
    config = EngineConfig("a", tp=2, adapters={"b": "c"}, kv_cache_gb=1.5, device="cpu", threads=3)
    assert EngineConfig.of(options, threads=3) == config


def test_every_setting_is_a_flag_that_help_shows_once_with_its_variable_and_default():
    shown = CliRunner().invoke(server.cli.app, ["serve", "--help"], env={"COLUMNS": "1000"}).stdout
    flags = flags_of(Settings, prefix=PREFIX)
    assert {flag.name for flag in flags} == Settings.model_fields.keys()
    for flag in flags:
        (line,) = [line for line in shown.splitlines() if f"[env var: {flag.variable}]" in line]
        assert flag.name == "model" or f" {flag.option} " in line
        assert flag.default is None or f"[default: {flag.default}]" in line
        assert (flag.field.description or "nothing") in line


@pytest.mark.parametrize(
    ("line", "env", "says"),
    [
        (["--keep-alive-seconds", "0"], {}, "--keep-alive-seconds"),
        (["--limit", "n=9"], {}, "--limit.n: Input should be less than or equal to 8"),
        (["--limit", "n"], {}, "must be NAME=NUMBER"),
        (["--drain-seconds", "nan"], {}, "--drain-seconds"),
        ([], {"GLM_INFILL_PORT": "ten"}, "GLM_INFILL_PORT: Input should be a valid integer"),
        (["--port", "1"], {"GLM_INFILL_LIMITS__N": "9"}, "GLM_INFILL_LIMITS.n"),
    ],
)
def test_serve_names_the_flag_or_the_variable_that_is_wrong(line, env, says):
    done = CliRunner().invoke(server.cli.app, ["serve", *line], env=env)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_limits_from_flags(monkeypatch):
    given: Any = {"limits": {"n": "4", "timeout_s": "2.5"}}
    assert (Settings(**given).limits.n, Settings(**given).limits.timeout_s) == (4, 2.5)

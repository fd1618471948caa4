"""The command line as a user runs it: real processes, a tiny model."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import server.cli
import server.commands.serve
from engine.config import EngineConfig
from engine.processes.process import EngineProcess
from model.checkpoint import load
from model.config import Config
from model.families import PRESETS, glm
from tests.engine.test_adapters import write_lora


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "server.cli", *args], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint())


def test_fill_prints_the_answer_as_json(folder: str) -> None:
    done = command("fill", "the [MASK] sang", "--max-tokens", "3", "--model", folder, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["blanks"][0]["mask"] == "[MASK]"


def test_score_ranks_candidates_for_one_blank(folder: str) -> None:
    done = command("score", "the [MASK] sang", "--span", "cat", "--span", "bird", "--model", folder, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [r["spans"][0]["text"] for r in answer["results"]] == ["cat", "bird"]
    assert sum(answer["probabilities"]) == pytest.approx(1.0)


def test_score_shows_words(folder: str) -> None:
    asked = ("score", "the old cat sang", "--words", "--model", folder)
    done = command(*asked)
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"(\w+)\W+(-\d+\.\d{4})", done.stdout.split("word", 1)[1])
    (span,) = json.loads(command(*asked, "--json").stdout)["results"][0]["spans"]
    assert shown == [(word["text"], f"{word['logprob']:.4f}") for word in span["words"]]
    assert [word["text"] for word in span["words"]] == ["the", "old", "cat", "sang"]
    done = command(*asked, "--pll", "word_l2r")
    assert done.returncode in (1, 2)
    assert "pll needs a masked language model" in done.stderr


@pytest.mark.parametrize("command_line", [("fill", "a [MASK]"), ("score", "a [MASK]", "--span", "b")])
def test_fill_and_score_take_the_storage_of_the_weights(folder: str, command_line: tuple[str, ...]) -> None:
    quant = ("--quant", "int4", "--quant-head", "int8", "--kv-cache-type", "int8", "--model", folder, "--json")
    done = command(*command_line, *quant, "--group-size", "64")
    assert done.returncode == 0, done.stderr
    done = command(*command_line, *quant, "--group-size", "128")
    assert done.returncode == 1
    assert "group_size 128 does not divide the 64 inputs" in done.stderr


def test_fill_and_score_take_an_adapter(folder: str, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "lora", load(Path(folder)).model, 0)
    for line in (("fill", "the [MASK] sang", "--max-tokens", "3"), ("score", "the [MASK] sang", "--span", "cat")):
        plain, adapted = (command(*line, "--model", folder, "--json", *more) for more in ((), ("--adapter", str(path))))
        assert adapted.returncode == 0, adapted.stderr
        logprobs = [json.loads(done.stdout)["results"][0]["logprob"] for done in (plain, adapted)]
        assert logprobs[0] != logprobs[1]
    done = command("fill", "a [MASK]", "--model", folder, "--adapter", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stderr) == (1, "glm-infill: adapter nowhere: no such folder\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a"], "must be NAME=FOLDER"),
        (["=x"], "must be NAME=FOLDER"),
        (["a=x", "a=y"], "there is another a"),
        (["a b=x"], "a name has letters"),
    ],
)
def test_serve_takes_adapters_by_name(given: list[str], message: str) -> None:
    done = CliRunner().invoke(server.cli.app, ["serve", *(part for value in given for part in ("--adapter", value))])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", "").split())


def test_doctor_tells_the_kernels() -> None:
    done = command("doctor", "--json")
    assert done.returncode == 0
    assert "int8" in json.loads(done.stdout)["kernels"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("fill", "x", "--model", "/nowhere"), 1, "/nowhere: no such folder"),
        (("fill", "x", "--temperature", "-1"), 2, "temperature"),
        (("score", "a [MASK] [MASK]", "--span", "b"), 2, "spans"),
        (("fill", "x", "--url", "http://127.0.0.1:9"), 1, "http://127.0.0.1:9/v1/infill"),
        (("serve", "--quant", "int3"), 2, "int3"),
        (("serve", "--kv-cache-type", "fp8"), 2, "fp8"),
        (("bench", "decode", "--preset", "glm-roberta-large", "--context", "499"), 2, "513 positions of 512"),
    ],
)
def test_what_goes_wrong_is_said_without_a_traceback(args: tuple[str, ...], code: int, says: str) -> None:
    done = command(*args)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


class TestFilesThatAFolderLacks:
    @pytest.fixture
    def bare(self, folder: str, tmp_path: Path) -> Path:
        """A folder without tokenizer."""
        return shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))

    @pytest.fixture
    def preset(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> str:
        """A published model of tiny sizes."""
        monkeypatch.setitem(
            PRESETS, "tiny", (glm.FAMILY, Config({**Config.read(Path(folder)).fields, "vocab_size": 384}))
        )
        return "tiny"

    def test_fill_takes_a_tokenizer_of_another_folder(self, bare: Path, folder: str) -> None:
        done = command("fill", "a [MASK]", "--max-tokens", "2", "--model", str(bare), "--tokenizer", folder, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["results"]

    def test_score_refuses_a_preset_for_a_folder_that_tells_its_sizes(self, folder: str) -> None:
        done = command("score", "a [MASK]", "--span", "b", "--model", folder, "--preset", "glm-10b")
        assert done.returncode == 1
        assert "has a config.json, so no preset can be given" in done.stderr
        assert "Traceback" not in done.stderr

    def test_serve_takes_them_from_options_and_environment(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("folder", "vocabulary"):
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        started: list[EngineConfig] = []

        def run_server(settings: object, engine: EngineProcess) -> int:
            started.append(engine._supervisor.config)
            return 0

        monkeypatch.setattr(server.commands.serve, "run_server", run_server)
        monkeypatch.setenv("GLM_INFILL_TOKENIZER", "vocabulary")
        line = ["serve", "folder", "--preset", "glm-130b", "--kv-cache-type", "int8"]
        done = CliRunner().invoke(server.cli.app, line)
        assert done.exit_code == 0, done.output
        (c,) = started
        assert (c.model, c.preset, c.tokenizer, c.kv_cache_type) == (
            Path("folder"),
            "glm-130b",
            Path("vocabulary"),
            "int8",
        )

    def test_synth_and_quantize_by_a_preset(self, preset: str, folder: str, tmp_path: Path) -> None:
        made, out = str(tmp_path / "made"), str(tmp_path / "out")
        done = CliRunner().invoke(server.cli.app, ["synth", preset, made, "--format", "sat", "--tp", "2", "--json"])
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert (facts["format"], facts["tp"]) == ("sat", 2)
        assert facts["options"] == ["--preset tiny", "--tokenizer FOLDER"]
        loaded = load(Path(made), preset=preset, tokenizer=Path(folder))
        assert facts["bytes"] == sum(2 * tensor.numel() for tensor in loaded.model.parameters())
        line = ["quantize", made, out, "--scheme", "int4", "--preset", preset, "--tokenizer", folder]
        done = CliRunner().invoke(server.cli.app, line)
        assert done.exit_code == 0, done.output
        assert load(tmp_path / "out").quant == "int4"

    def test_synth_copies_a_tokenizer_and_tells_fewer_layers(self, preset: str, folder: str, tmp_path: Path) -> None:
        line = ["synth", preset, str(tmp_path / "made"), "--layers", "1", "--tokenizer", folder, "--seed", "3"]
        done = CliRunner().invoke(server.cli.app, line)
        assert done.exit_code == 0, done.output
        assert done.stdout == f"{tmp_path / 'made'}: 0.2 MB\n"
        assert load(tmp_path / "made").model.architecture.num_layers == 1

    @pytest.mark.parametrize(
        ("args", "code", "says"),
        [
            (("glm-7b",), 2, "no preset 'glm-7b'; there are bert-base, "),
            (("chatglm-6b", "--format", "sat"), 2, "chatglm-6b is not published in the format sat"),
            (("glm-large", "--tp", "2"), 2, "only the format sat is divided among ranks, not hf"),
            (("glm-large", "--tp", "3", "--format", "sat"), 2, "are not divisible by 3"),
            (("glm-large", "--tokenizer", "/nowhere"), 1, "/nowhere/tokenizer.model: no such file"),
            (("glm-130b", "--layers", "0"), 2, "--layers"),
        ],
    )
    def test_what_synth_refuses(self, tmp_path: Path, args: tuple[Any, ...], code: int, says: str) -> None:
        done = CliRunner().invoke(server.cli.app, ["synth", args[0], str(tmp_path / "made"), *args[1:]])
        assert done.exit_code == code
        assert says in done.stderr.replace("\n", " ")
        assert not (tmp_path / "made").exists()

    def test_synth_writes_into_nothing(self, preset: str, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        done = CliRunner().invoke(server.cli.app, ["synth", preset, str(tmp_path)])
        assert done.exit_code == 1
        assert "not an empty folder" in done.stderr

"""What the system refuses a command is one line on stderr and exit code 1, and what was begun never counts as whole."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint import load
from server.keyfile import new_key, read_keys
from tests.litter import litter

PATIENCE_S = 120.0
GLM = [sys.executable, "-P", "-m", "server.cli"]
LINE = json.dumps({"text": "the [MASK] sang", "max_tokens": 3}) + "\n"
PLAN = ("plan", "glm-130b", "--gpus", "4xRTX3090", "--quant", "int4")


def shell(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A line of bash in which $GLM is the command."""
    environment = {**os.environ, "GLM": shlex.join(GLM), "OMP_NUM_THREADS": "1"}
    line = ["bash", "-c", script]
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, **options)


def command(*args: str | Path, redirected: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    return shell(f"{before} $GLM {shlex.join(map(str, args))} {redirected}")


def refused(done: subprocess.CompletedProcess[str], says: str, code: int = 1) -> None:
    """Checks that it ended with one line, that says so."""
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("glm-infill: ")
    assert says in done.stderr


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint()


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(LINE * 2)
    return path


class TestOutput:
    @pytest.mark.parametrize("args", [("--help",), ("doctor",), ("doctor", "--json"), PLAN, (*PLAN, "--json")])
    def test_a_full_disk(self, args: tuple[str, ...]) -> None:
        refused(command(*args, redirected="> /dev/full"), "standard output: No space left on device")

    @pytest.mark.parametrize("args", [("keys", "--help"), PLAN, (*PLAN, "--json")])
    def test_a_closed_one(self, args: tuple[str, ...]) -> None:
        refused(command(*args, redirected=">&-"), "standard output: Bad file descriptor")

    @pytest.mark.parametrize("args", [("doctor",), PLAN, (*PLAN, "--json")])
    def test_a_reader_that_has_gone_is_no_news(self, args: tuple[str, ...]) -> None:
        # A pipe that nobody reads, from the start.
        done = shell(f"exec 3> >(exec true); sleep 0.2; $GLM {shlex.join(args)} >&3")
        assert (done.returncode, done.stderr) == (141, "")

    def test_an_encoding_that_lacks_a_character(self, folder: Path) -> None:
        args = ("fill", "床前明月[MASK]", "--max-tokens", "1", "--model", folder, "--json")
        done = command(*args, before="PYTHONIOENCODING=ascii")
        refused(done, "standard output: ascii has no '\\u5e8a'")

    def test_where_nobody_can_be_told_the_exit_code_is_left(self, folder: Path) -> None:
        for redirected in ("2> /dev/full", "2>&-", "2>&- <&-"):
            assert command("fill", "a", "--model", "/nowhere", redirected=redirected).returncode == 1
        args = ("fill", "a [MASK]", "--max-tokens", "1", "--model", folder, "--json")
        done = command(*args, redirected="2>&- <&-")
        assert json.loads(done.stdout)["results"]


class TestInput:
    @pytest.mark.parametrize(
        ("args", "code", "says"),
        [
            (("batch", "FOLDER", "NEW"), 1, "Is a directory"),
            (("batch", "/nowhere", "NEW"), 1, "/nowhere: No such file"),
            (("batch", "/proc/self/mem", "NEW"), 1, "/proc/self/mem: Input/output error"),
            (("batch", "BYTES", "NEW"), 2, "not UTF-8 at byte 0"),
            (("tune", "FOLDER", "NEW", "--model", "MODEL"), 1, "Is a directory"),
            (("tune", "/proc/self/mem", "NEW", "--model", "MODEL"), 1, "/proc/self/mem: Input/output error"),
            (("tune", "BYTES", "NEW", "--model", "MODEL"), 1, "bytes: not UTF-8 at byte 0"),
            (("quantize", "/nowhere", "NEW", "--scheme", "int8"), 1, "/nowhere: no such folder"),
            (("quantize", "LINES", "NEW", "--scheme", "int8"), 1, "a file; give its folder"),
            (("quantize", "MODEL", "NEW", "--scheme", "int4", "--calibrate", "FOLDER"), 1, "Is a directory"),
            (("quantize", "MODEL", "NEW", "--scheme", "int4", "--calibrate", "BYTES"), 1, "UTF-8"),
            (("synth", "glm-large", "NEW", "--layers", "1", "--tokenizer", "/nowhere"), 1, "no such file"),
            ((*PLAN, "--cards", "FOLDER"), 2, "Is a directory"),
            ((*PLAN, "--cards", "BYTES"), 2, "not UTF-8"),
            ((*PLAN, "--cards", "LINES"), 2, "not TOML"),
            (("plan", "LINES", "--gpus", "4xRTX3090"), 1, "a file; give its folder"),
            (("fill", "a", "--model", "LINES"), 1, "a file; give its folder"),
            (("score", "a", "--model", "FOLDER"), 1, "holds no files"),
            (("keys", "new", "a", "--file", "LINES"), 2, "line 1"),
            (("keys", "new", "a", "--file", "BYTES"), 2, "it is not UTF-8"),
        ],
    )
    def test_what_cannot_be_read(
        self, folder: Path, lines: Path, tmp_path: Path, args: tuple[str, ...], code: int, says: str
    ) -> None:
        (tmp_path / "bytes").write_bytes(b"\xff\xfe")
        (tmp_path / "folder").mkdir()
        names = {"MODEL": folder, "LINES": lines, "NEW": tmp_path / "new"}
        names |= {"BYTES": tmp_path / "bytes", "FOLDER": tmp_path / "folder"}
        refused(command(*(names.get(arg, arg) for arg in args)), says, code)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("hidden", "args", "says"),
        [
            (("peft",), (), "tune needs peft: pip install 'glm-infill[train]'"),
            (("bitsandbytes",), ("--base", "nf4"), "tune needs bitsandbytes: pip install 'glm-infill[bnb]'"),
        ],
    )
    def test_tune_without_what_it_needs(
        self, folder: Path, lines: Path, tmp_path: Path, hidden: tuple[str, ...], args: tuple[str, ...], says: str
    ) -> None:
        code = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); from server.cli import main; main()"
        data = tmp_path / "lines.jsonl"
        data.write_text('{"context": "a", "target": "b"}\n' * 4)
        line: list[str | Path] = [
            sys.executable,
            "-P",
            "-c",
            code,
            "tune",
            data,
            tmp_path / "out",
            "--model",
            folder,
            *args,
        ]
        refused(subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S), says)
        assert not (tmp_path / "out").exists()


class TestFilesThatAreWritten:
    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (("batch", "LINES", "/dev/full", "--model", "MODEL"), "/dev/full: No space left on device"),
            (("batch", "LINES", "FOLDER"), "Is a directory"),
            (("batch", "LINES", "/nowhere/out"), "/nowhere/out: No such file"),
            (("keys", "new", "a", "--file", "/dev/full"), "/dev/full: No space left on device"),
            (("keys", "new", "a", "--file", "FOLDER"), "Is a directory"),
            (("keys", "new", "a", "--file", "/nowhere/keys"), "/nowhere/keys: No such file"),
            (("quantize", "MODEL", "LINES", "--scheme", "int8"), "not a folder"),
            (("synth", "glm-large", "LINES", "--layers", "1"), "not an empty folder"),
            (("tune", "LESSONS", "LINES", "--model", "MODEL", "--steps", "1"), "File exists"),
            (("bench", "serve", "--plot", "FOLDER"), "--plot: "),
            (("bench", "serve", "--plot", "/nowhere/plot.png"), "--plot: /nowhere/plot.png cannot be written"),
        ],
    )
    def test_where_nothing_can_be(
        self, folder: Path, lines: Path, tmp_path: Path, args: tuple[str, ...], says: str
    ) -> None:
        (tmp_path / "lessons").write_text('{"context": "a", "target": "b"}\n' * 4)
        names = {"MODEL": folder, "LINES": lines, "FOLDER": tmp_path, "LESSONS": tmp_path / "lessons"}
        before = lines.read_text()
        refused(command(*(names.get(arg, arg) for arg in args)), says)
        assert lines.read_text() == before

    @pytest.mark.parametrize(
        "args",
        [
            ("quantize", "MODEL", "NEW", "--scheme", "int8"),
            ("synth", "glm-large", "NEW", "--layers", "1"),
            ("synth", "glm-large", "NEW", "--layers", "1", "--format", "sat"),
            ("tune", "LESSONS", "NEW", "--model", "MODEL", "--steps", "1"),
            ("tune", "LESSONS", "NEW", "--model", "MODEL", "--steps", "1", "--method", "prefix"),
        ],
    )
    def test_no_room_for_a_folder(self, folder: Path, tmp_path: Path, args: tuple[str, ...]) -> None:
        """As on a disk that is full in the middle of a file: none may be longer than some kilobytes."""
        (tmp_path / "lessons").write_text('{"context": "a", "target": "b"}\n' * 4)
        new = tmp_path / "new"
        names = {"MODEL": folder, "NEW": new, "LESSONS": tmp_path / "lessons"}
        refused(command(*(names.get(arg, arg) for arg in args), before="ulimit -f 4;"), str(new))
        assert not [path for path in new.rglob("*") if path.suffix in (".safetensors", ".pt")]
        with pytest.raises(ValueError, match=r"no such file|no such folder|not readable|config"):
            load(new, preset="glm-large" if args[0] == "synth" else None)

    def test_a_batch_goes_on_when_there_is_room_again(self, folder: Path, tmp_path: Path) -> None:
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_text(LINE * 20)
        done = command("batch", source, target, "--model", folder, before="ulimit -f 4;")
        refused(done, f"{target}: File too large")
        whole = target.read_bytes()
        assert len(whole) == 4096  # a part of a line at its end
        done = command("batch", source, target, "--model", folder, "--json")
        counts = json.loads(done.stdout)
        assert (counts["answered_before"], counts["failed"]) == (whole.count(b"\n"), 0)
        found = [json.loads(line)["custom_id"] for line in target.read_text().splitlines()]
        assert sorted(found) == sorted(f"line-{n}" for n in range(1, 21))

    @pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a file system")
    def test_a_batch_on_a_disk_that_is_full(self, folder: Path, lines: Path, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("this machine mounts nothing")
        try:
            (disk / "other").write_bytes(bytes(8192))
            refused(command("batch", lines, disk / "out", "--model", folder), "out: No space left on device")
            (disk / "other").unlink()
            done = command("batch", lines, disk / "out", "--model", folder, "--json")
            assert json.loads(done.stdout)["answered"] == 2
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_a_key_that_is_not_kept_is_not_shown_and_harms_no_other(self, tmp_path: Path) -> None:
        file = tmp_path / "keys.jsonl"
        for number in range(20):
            new_key(file, name=f"key-{number:02}-{'x' * 40}")
        before = file.read_bytes()
        assert 2048 < len(before) < 4096
        size = -(-len(before) // 1024)
        file.write_bytes(before + b"\n" * (1024 * size - len(before) - 20))  # all but a part of a line is full
        whole = file.read_bytes()
        done = command("keys", "new", "one-more", "--file", file, before=f"ulimit -f {size};")
        refused(done, f"{file}: No space left on device")
        assert done.stdout == ""
        assert file.read_bytes() == whole

    def test_a_key_begins_a_line(self, tmp_path: Path) -> None:
        file = tmp_path / "keys.jsonl"
        new_key(file, name="a")
        file.write_bytes(file.read_bytes().rstrip())  # as an editor may leave it
        new_key(file, name="b")
        assert [entry.name for entry in read_keys(file)] == ["a", "b"]


ANSWERS = {
    "html": b"<html>\n<body>welcome</body>\n</html>",
    "list": b"[1]",
    "object": b"{}",
    "string": b'{"error": "no"}',
    "deep": b"[" * 100_000,
    "latin": b'{"a": "\xff"}',
}


class Strange(BaseHTTPRequestHandler):
    """A server of something else: what it answers is the first part of the path."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        kind = self.path.split("/")[1]
        if kind == "closes":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        answer = ANSWERS[kind]
        self.send_response(200)
        self.send_header("content-type", "text/html" if kind == "html" else "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def strange() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Strange) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class TestServersOfSomethingElse:
    @pytest.mark.parametrize("kind", [*ANSWERS, "closes"])
    def test_one_answer(self, strange: str, kind: str) -> None:
        refused(command("fill", "a [MASK]", "--url", f"{strange}/{kind}"), f"{strange}/{kind}/v1/infill")

    @pytest.mark.parametrize("kind", ["html", "object", "closes"])
    def test_a_score_and_a_load(self, strange: str, kind: str) -> None:
        url = f"{strange}/{kind}"
        refused(command("score", "a [MASK]", "--span", "b", "--url", url), url)
        refused(command("bench", "serve", "--url", url, "--concurrency", "1", "--duration", "0.1"), url)

    @pytest.mark.parametrize("url", ["nowhere", "http://[::1", "http://127.0.0.1:99999", "ftp://a"])
    def test_an_address_that_is_none(self, url: str) -> None:
        refused(command("fill", "a [MASK]", "--url", url), url)
        refused(command("bench", "serve", "--url", url, "--concurrency", "1", "--duration", "0.1"), url)

    def test_a_batch_ends_and_leaves_the_line_to_the_next_run(self, strange: str, tmp_path: Path) -> None:
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_text(json.dumps({"custom_id": "half \ud800", "url": "/v1/infill", "body": {}}))
        refused(command("batch", source, target, "--url", "http://[::1"), "http://[::1", code=2)
        before = "import server.commands.batch as b; b.TRIES = 1; from server.cli import main; main()"
        line: list[str | Path] = [
            sys.executable,
            "-P",
            "-c",
            before,
            "batch",
            source,
            target,
            "--url",
            f"{strange}/html",
            "--json",
        ]
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S)
        refused(done, f"{strange}/html: no answer: status 200 and no JSON; the same command resumes from here")
        assert target.read_text("utf-8") == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_batch_that_is_interrupted_has_whole_answers_and_goes_on(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_text((json.dumps({"text": "[MASK]", "max_tokens": 20, "min_tokens": 20}) + "\n") * 200)
    line = [*GLM, "batch", str(source), str(target), "--model", str(folder)]
    # A group of its own, as a terminal signals one: the engine's process hears of it too.
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not target.exists() or target.read_bytes().count(b"\n") < 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (130, -number)
    assert "server/" not in stderr
    for answer in map(json.loads, target.read_bytes()[: target.read_bytes().rfind(b"\n")].splitlines()):
        assert answer["response"]["status_code"] == 200
    done = command("batch", source, target, "--model", folder, "--json")
    assert json.loads(done.stdout)["failed"] == 0


@pytest.mark.parametrize(
    "args",
    [
        ("batch", "LINES", "NEW", "--model", "MODEL"),
        ("tune", "LESSONS", "NEW", "--model", "MODEL", "--steps", "1"),
        ("quantize", "MODEL", "NEW", "--scheme", "int8"),
        ("fill", "a [MASK]", "--model", "MODEL", "--max-tokens", "3", "--regex", "[0-9]{2}"),
        ("bench", "decode", "--preset", "glm-large", "--layers", "1", "--rows", "1", "--prefill", "0"),
        ("doctor",),
    ],
)
def test_no_command_imports_from_where_it_stands(
    folder: Path, lines: Path, tmp_path: Path, args: tuple[str, ...]
) -> None:
    (tmp_path / "lessons").write_text('{"context": "a", "target": "b"}\n' * 4)
    (tmp_path / "littered").mkdir()
    littered = litter(tmp_path / "littered")
    names = {"MODEL": folder, "LINES": lines, "NEW": tmp_path / "new", "LESSONS": tmp_path / "lessons"}
    # As the installed command does, which knows no folder but its own.
    line = [sys.executable, "-P", "-c", "from server.cli import main; main()", *(names.get(arg, arg) for arg in args)]
    done = subprocess.run(line, cwd=littered, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert not (littered / "canary").exists()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a device of Linux")
def test_a_key_that_nobody_has_seen_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    assert command("keys", "new", "bob", "--file", file).returncode == 0
    before = file.read_bytes()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*GLM, "keys", "new", "ann", "--file", file],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
        )
    refused(done, "standard output: No space left on device")
    assert file.read_bytes() == before
    assert command("keys", "new", "ann", "--file", file).returncode == 0

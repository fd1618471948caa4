"""Every command and program of the README and of the pages for users, run as it stands there."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import TinyCheckpoint
from tests.docs.blocks import Block, blocks, check_shown

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("index", "api", "scoring", "own-checkpoint"))]
BLOCKS = [block for page in PAGES for block in blocks(page, ("bash", "python"))]
URL = "http://127.0.0.1:8000"
# GLM-130B itself has no room here: a small checkpoint that four ranks divide stands in for it.
SMALLER = {
    " --preset glm-130b --tokenizer FOLDER": "",
    "--kv-cache-gb 5": "--kv-cache-gb 0.05",
    "--steps 100": "--steps 2",
}

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


def commands(block: Block) -> list[str]:
    """The block's commands: a line each, or several where a quote or a backslash goes on."""
    found, begun = [], ""
    for line in block.code.splitlines():
        begun += line + "\n"
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quote is open
            continue
        if not line.endswith("\\"):
            found += [begun] if words else []
            begun = ""
    assert not begun, f"{block}: a command does not end"
    return found


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "GLM_INFILL_LOG_LEVEL": "error", **more}


def run(command: str, cwd: Path) -> str:
    ran = subprocess.run(["sh", "-c", command], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def serves(command: str, cwd: Path) -> None:
    """Asserts that a command starts a server, and that SIGTERM ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["sh", "-c", f"exec {command}"], cwd=cwd, env=environment(GLM_INFILL_PORT=str(port)), start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, command
            assert time.monotonic() < deadline, command
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@needs_curl
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "bash"], ids=str)
def test_shell(block: Block, demo_url: str, tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The red boat.\n\nThe old man found a blue bird near the river.\n" * 40)
    (tmp_path / "lines.jsonl").write_text('{"text": "the [MASK] sang", "spans": ["bird"]}\n' * 8)
    folder = str(tiny_checkpoint(num_attention_heads=4, hidden_size=128))
    stand_ins = {"/path/to/folder": folder, "/path/to/glm-130b": folder, "/path/to": str(tmp_path), URL: demo_url}
    printed = ""
    for command in commands(block):
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            run(f"make -n {' '.join(words[1:])}", ROOT)  # what make does is done by the machine that runs these tests
            continue
        for written, used in (SMALLER | stand_ins).items():
            command = command.replace(written, used)
        if words[:2] == ["glm-infill", "serve"]:
            serves(command.strip(), tmp_path)
        else:
            printed += run(command, tmp_path)
    check_shown(block, printed)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "python"], ids=str)
def test_python(block: Block, demo_url: str) -> None:
    code = block.code.replace(URL, demo_url)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
    check_shown(block, ran.stdout)


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_no_command_is_left_out(page: Path) -> None:
    """A block without a kind would not be run."""
    fences = [line for line in page.read_text("utf-8").splitlines() if line.startswith("```")]
    assert all(fence != "```" for fence in fences[::2]), f"{page.name} has a block of no kind"

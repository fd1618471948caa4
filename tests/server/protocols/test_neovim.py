"""Plugins of Neovim suggest text in the middle of a file of 10 kB, by a server with the demo model.

They run where `nvim` is (0.10 or later), and the plugins: $LLAMA_VIM, $MINUET, $CMP_AI, $NVIM_CMP and $PLENARY are
their folders. Elsewhere tests/golden/clients.json has what they sent. `pytest -rP` shows the screens.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCREEN = Path(__file__).parents[2] / "golden/editors/screen.lua"


def plugin(name: str, *folders: str, provider: str = "") -> object:
    """A plugin by the name of its file beside screen.lua, where its folders are."""
    is_here = shutil.which("nvim") is not None and all(os.environ.get(folder) for folder in folders)
    reason = f"there is no nvim, or {' or '.join(f'${folder}' for folder in folders)} is not set"
    needs = pytest.mark.skipif(not is_here, reason=reason)
    return pytest.param({"PLUGIN": name, "PROVIDER": provider}, marks=needs, id=f"{name} {provider}".strip())


PLUGINS = [
    plugin("llama_vim", "LLAMA_VIM"),
    plugin("minuet", "MINUET", provider="openai_fim_compatible"),
    plugin("minuet", "MINUET", provider="codestral"),
    plugin("cmp_ai", "CMP_AI", "NVIM_CMP", "PLENARY"),
]


@pytest.mark.parametrize("choice", PLUGINS)
def test_a_suggestion_appears_and_can_be_taken(demo_url: str, choice: dict[str, str], tmp_path: Path) -> None:
    ran = subprocess.run(
        ["nvim", "--headless", "--clean", "-S", SCREEN],
        env={**os.environ, **choice, "ENDPOINT": demo_url},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    screen, line = ran.stdout.split("\n\n")
    taken = re.fullmatch(r"The capital of (.*) is a great city, and the river runs through it\.\n", line, re.DOTALL)
    assert taken
    suggestion = taken[1].strip().splitlines()[0]
    assert suggestion
    assert suggestion in screen

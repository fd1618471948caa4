"""Mistral's and Ollama's JavaScript clients at a server with the demo model, where Node.js and the packages are.

`npm install` in tests/golden/js brings them. Elsewhere tests/golden/clients.json has what they sent.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "golden/js"
HAS_CLIENTS = shutil.which("node") is not None and (FOLDER / "node_modules").is_dir()


@pytest.mark.skipif(not HAS_CLIENTS, reason="there is no Node.js, or npm install was not run in tests/golden/js")
def test_they_understand_fills_lists_and_refusals(demo_url: str) -> None:
    ran = subprocess.run(
        ["node", "editors.mjs", demo_url], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    (choice,) = said["mistral"]["choices"]
    fill = choice["message"]["content"]
    assert fill
    assert choice["finishReason"] == "stop"
    assert "".join(chunk["delta"]["content"] for chunk in said["chunks"]) == fill
    assert said["chunks"][-1]["finishReason"] == "stop"
    assert said["ollama"]["response"] == fill
    assert "".join(part["response"] for part in said["parts"]) == fill
    assert [part["done"] for part in said["parts"]] == [False] * (len(said["parts"]) - 1) + [True]
    assert [model["name"] for model in said["list"]["models"]] == ["glm-demo"]
    assert [model["name"] for model in said["ps"]["models"]] == ["glm-demo"]
    assert said["show"]["capabilities"] == ["completion", "insert"]
    assert said["version"]["version"]
    assert said["unknown_to_ollama"] == {"status": 404, "text": "no such model is loaded; there is only 'glm-demo'"}
    assert said["chat_by_ollama"]["text"].startswith("this server fills blanks; there is no chat")
    assert (said["unknown_to_mistral"]["status"], said["chat_by_mistral"]["status"]) == (404, 404)
    assert json.loads(said["chat_by_mistral"]["text"])["error"]["code"] == "no_chat"

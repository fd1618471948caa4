"""Hugging Face's JavaScript client at a server with the demo model, where Node.js and the package are.

`npm install` in tests/golden/js brings it. Elsewhere tests/golden/clients.json has what it sent.
"""

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

FOLDER = Path(__file__).parents[2] / "golden/js"
HAS_CLIENT = shutil.which("node") is not None and (FOLDER / "node_modules/@huggingface/inference").is_dir()


@pytest.mark.skipif(not HAS_CLIENT, reason="there is no Node.js, or npm install was not run in tests/golden/js")
def test_it_understands_candidates_texts_and_refusals(demo_url: str) -> None:
    ran = subprocess.run(
        ["node", "hugging_face.mjs", demo_url], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    asked = {"inputs": "The capital of [MASK] is Paris."}
    assert said["mask"] == httpx.post(demo_url, json=asked, timeout=60).json()
    assert len(said["mask"]) == 5
    assert said["two"] == said["mask"][:2]
    assert {element["token_str"] for element in said["targets"]} == {"France", "Rome"}
    assert said["refused"]["status"] == 400
    assert said["refused"]["message"] == "Failed to perform inference: top_k is 17; the limit is 16"
    assert said["text"]["generated_text"]

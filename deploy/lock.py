"""Writes deploy/requirements.txt: the versions that the image installs, as pip resolves pyproject.toml today.

    python deploy/lock.py

A CUDA build of torch brings NVIDIA's libraries and Triton besides, each at the one version that it names itself.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = "# Written by deploy/lock.py: what the image installs beside glm-infill itself.\n"


def main() -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = json.loads(subprocess.run([*command, str(ROOT)], check=True, capture_output=True, text=True).stdout)
    found = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    del found["glm-infill"]
    # Without the local part (+cpu): which build it is, the index decides.
    lines = [f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(found.items())]
    (ROOT / "deploy" / "requirements.txt").write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()

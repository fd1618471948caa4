"""Averages the weights of two checkpoints of one run: the later one's knowledge, with less forgetting.

    python -m training.average EARLIER LATER --share 0.8 --out FOLDER

After "Model soups" (arXiv 2203.05482) and WiSE-FT (arXiv 2109.01903). Both folders have one model.safetensors of the
same network. All other files are copied from LATER.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save


def average(earlier: Path, later: Path, share: float, out: Path) -> None:
    """Writes (1 − share) · earlier + share · later, in float16."""
    first, second = (load_file(folder / "model.safetensors") for folder in (earlier, later))
    mixed = {name: (first[name].float() * (1 - share) + own.float() * share).half() for name, own in second.items()}
    shutil.copytree(later, out)
    (out / "model.safetensors").write_bytes(save(mixed, metadata={"format": "pt"}))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", type=Path)
    parser.add_argument("later", type=Path)
    parser.add_argument("--share", type=float, default=0.8, help="of the later one")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    average(args.earlier, args.later, args.share, args.out)


if __name__ == "__main__":
    main()

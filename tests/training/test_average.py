"""Averaging two checkpoints."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from training.average import average


def test_each_weight_lies_between_both(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2, 2), value)}, tmp_path / name / "model.safetensors")
    (tmp_path / "b" / "config.json").write_text("{}")
    average(tmp_path / "a", tmp_path / "b", 0.75, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], torch.full((2, 2), 1.75).half())
    assert (tmp_path / "out" / "config.json").exists()

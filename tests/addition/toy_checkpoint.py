"""A checkpoint of the toy family: GLM's weights under other names, with another config.json."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

CONFIG = {"num_layers": "depth", "hidden_size": "width", "num_attention_heads": "heads", "vocab_size": "tokens"}


def as_toy(folder: Path, target: Path) -> Path:
    """Writes a GLM folder again as the toy family has it; returns the new folder."""
    shutil.copytree(folder, target)
    glm = json.loads((folder / "config.json").read_text())
    config = {new: glm[old] for old, new in CONFIG.items()} | {"length": glm["max_sequence_length"]}
    (target / "config.json").write_text(json.dumps({"model_type": "toy", **config}))
    tensors = load_file(folder / "model.safetensors")
    tensors["toy_words.weight"] = tensors.pop("word_embeddings.weight")
    save_file(tensors, target / "model.safetensors")
    return target

"""What a checkpoint folder has in it where it has nothing to read: words for messages, with the way out."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from model.config import CheckpointError, Config

LICENCES = ("LICENSE*", "MODEL_LICENSE*", "NOTICE*")
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r".+-(\d{5,6})-of-(\d{5,6})\.(safetensors|bin)")
# Weights that are not read here, and what to do. The first pattern that fits a file counts.
_FOREIGN = (
    ("*.gguf", "serve that file", "serve one of these files"),
    ("tf_model*.h5", "TensorFlow's weights; transformers 4 converts them: from_pretrained(…, from_tf=True)", None),
    ("flax_model*.msgpack", "Flax's weights; transformers 4 converts them: from_pretrained(…, from_flax=True)", None),
    ("*.onnx", "a graph for ONNX; get the safetensors of the original model", None),
    ("*.ckpt*", "a checkpoint of TensorFlow or Lightning; convert it to safetensors with its own library", None),
    ("consolidated*", "the authors' own format; get the model in transformers' form, with model.safetensors", None),
    ("*.h5", "Keras' weights; get the safetensors of the original model", None),
    ("*.np[yz]", "arrays of numpy; get the safetensors of the original model", None),
    ("*.safetensors", "rename it to model.safetensors", "rename the one to serve to model.safetensors"),
    ("*.bin", "rename it to pytorch_model.bin", "rename the one to serve to pytorch_model.bin"),
    ("*.pt", "if it has the weights, rename it to pytorch_model.bin", None),
    ("*.pth", "if it has the weights, rename it to pytorch_model.bin", None),
)  # fmt: skip
# Files of training, which are no weights.
_TRAINING = ("training_args.bin", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*")
_SHOWN = 3


def check_folder(folder: Path) -> None:
    """Raises CheckpointError unless a path is a folder."""
    if folder.is_dir():
        return
    if folder.exists():
        raise CheckpointError(f"{folder}: a file; give its folder, with config.json and tokenizer: {folder.parent}")
    raise CheckpointError(f"{folder}: no such folder")


def config_of(folder: Path) -> Config:
    """The config.json of a checkpoint folder. Raises CheckpointError, which says what is there without one."""
    if not (folder / "config.json").exists():
        names = _names(folder)
        if not names or "adapter_config.json" in names or any(name.endswith(".gguf") for name in names):
            raise CheckpointError(f"{folder}: {in_place_of_weights(names)}{_within(folder)}")
        hint = "; for a published model --preset NAME stands for it"
        raise CheckpointError(f"{folder / 'config.json'}: no such file{_within(folder) or hint}")
    return Config.read(folder)


def unread(folder: Path) -> CheckpointError:
    """The error for a folder without weights that can be read."""
    return CheckpointError(f"{folder}: {in_place_of_weights(_names(folder))}")


def in_place_of_weights(names: Iterable[str]) -> str:
    """What a folder with these files has in place of readable weights: a phrase with the way out."""
    names = sorted(name for name in names if "/" not in name)
    if "adapter_config.json" in names:
        return "an adapter (adapter_config.json), not a model; serve its base model with --adapter NAME=FOLDER"
    weights = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in _TRAINING)]
    shards = [match for name in weights if (match := _SHARD.fullmatch(name))]
    if shards:
        return _without_index(shards)
    for pattern, one, several in _FOREIGN:
        if found := [name for name in weights if fnmatchcase(name, pattern)]:
            wanted = "" if pattern == "*.safetensors" else " and no safetensors"
            return f"holds {listed(found)}{wanted}: {several if several and found[1:] else one}"
    return f"holds {listed(names)} and no weights" if names else "holds no files"


def listed(names: Sequence[str]) -> str:
    """Some names for a message, at most three."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")


def _without_index(shards: list[re.Match[str]]) -> str:
    first = shards[0]
    index = _INDEX if first[3] == "safetensors" else "pytorch_model.bin.index.json"
    alike = {int(match[1]) for match in shards if match[2] == first[2] and match[3] == first[3]}
    absent = int(first[2]) - len(alike)
    rest = f", and {absent} of the {int(first[2])} files" if absent > 0 else ""
    return f"holds {listed([match[0] for match in shards])}: {index} is missing{rest}"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.is_dir())


def _within(folder: Path) -> str:
    """Where the model may be instead: the only folder in this one that has a config.json."""
    found = [path for path in sorted(folder.iterdir()) if (path / "config.json").is_file()]
    return f"; {found[0]} has a config.json" if len(found) == 1 else ""

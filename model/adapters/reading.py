"""Reading an adapter's folder in any of the supported formats."""

from pathlib import Path

from model.adapters.adapter import Adapter
from model.adapters.files import CONFIG, P_TUNING_FILES, PEFT_FILES, Folder, Tensors, config_of
from model.adapters.lora import read_lora
from model.adapters.prefix import is_p_tuning, read_p_tuning, read_prefix_tuning
from model.adapters.target import AdapterTarget
from model.config import CheckpointError, Config

_PEFT = {"LORA": read_lora, "PREFIX_TUNING": read_prefix_tuning}


def read_adapter(path: Path, target: AdapterTarget, root: Path | None = None) -> Adapter:
    """An adapter for a base, or this rank's part of it. With a `root`, all its files must lie below it.

    Raises CheckpointError for a folder in none of the formats, and for an adapter of another kind, shape or base. The
    message is one line and names no path, only the folder's name.
    """
    with Folder(path, root) as folder:
        try:
            return _read(folder, target)
        except (CheckpointError, OSError) as error:
            raise CheckpointError(f"adapter {path.name}: {folder.told(str(error).splitlines()[0])}") from None


def _read(folder: Folder, target: AdapterTarget) -> Adapter:
    if not folder.path.is_dir():
        raise CheckpointError("no such folder")
    config = config_of(folder, CONFIG)
    if config is not None:
        kind = config.get("peft_type")
        if not isinstance(kind, str) or kind not in _PEFT:
            raise CheckpointError(f"{CONFIG}: peft_type {kind!r} is not supported, only {' and '.join(_PEFT)}")
        _check_base(config, target)
        return _PEFT[kind](config, Tensors(folder, PEFT_FILES), target)
    if not any(folder.open(name) for name in P_TUNING_FILES):
        raise CheckpointError(f"holds no {CONFIG}, and no prefix in {' or '.join(P_TUNING_FILES)}")
    tensors = Tensors(folder, P_TUNING_FILES)
    if not is_p_tuning(tensors):
        raise CheckpointError(f"holds no {CONFIG}, and no prefix_encoder in {tensors.source}")
    return read_p_tuning(config_of(folder, "config.json"), tensors, target)


def _check_base(config: Config, target: AdapterTarget) -> None:
    """Refuses an adapter that says of which base it is, where that is another one; most say nothing but a name."""
    given = config.get("base_fingerprint")
    if given is not None and given != target.fingerprint:
        name = config.get("base_model_name_or_path")
        raise CheckpointError(f"{CONFIG}: trained on another base, {name!r}: base_fingerprint differs")

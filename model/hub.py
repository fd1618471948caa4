"""Models by their names on the Hugging Face hub: the folder of a name in the hub's cache, which a download can fill.

The cache is read without any request. Only a download asks the hub, by the library huggingface_hub, and fetches the
files that are read here: never code. Does not import torch.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from model.config import CheckpointError
from model.contents import LICENCES, in_place_of_weights

Part = Literal["config", "weights", "tokenizer"]
Parts = tuple[Part, ...]
WHOLE: Parts = ("config", "weights", "tokenizer")

# The layout of the cache: models--ORG--NAME/snapshots/COMMIT, and models--ORG--NAME/refs/BRANCH with a commit in it.
_ROOT, _SNAPSHOTS = "models--", "snapshots"
_NAME = re.compile(r"(?!.*(?:--|\.\.))(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]{0,249}", re.ASCII)
# The files with weights, in the order of preference: one file, or an index that names several.
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_QUANTIZATION = ("quantize_config.json", "quant_config.json")  # of AutoGPTQ and AutoAWQ, beside config.json
_SETTINGS = ("tokenizer_config.json", "added_tokens.json")  # no tokenizer by themselves


def folder_of(model: Path, revision: str | None = None, download: bool = False, parts: Parts = WHOLE) -> Path:
    """The folder of a model: a path that exists, or the snapshot of a hub name in the cache.

    A path to the root of a name in the cache is its snapshot too. `parts` are those that the folder is needed for. If
    one is not in the cache, `download` fetches it. Another path is returned as it is. Raises CheckpointError for a name
    that is not in the cache or cannot be fetched, and for a revision of a folder that has none.
    """
    if revision is not None and not _REVISION.fullmatch(revision):
        raise CheckpointError(f"--revision {revision!r}: a branch, a tag or a commit is needed")
    if model.name.startswith(_ROOT) and (model / _SNAPSHOTS).is_dir():
        found = _snapshot(model, revision)
        if found is None:
            raise CheckpointError(f"{model}: has no snapshot of {revision or 'main'}")
        return found
    if model.exists() or not _NAME.fullmatch(str(model)):
        if revision is not None:
            raise CheckpointError(f"{model}: a folder has no revisions; --revision is for a name on the hub")
        return model
    return _folder_of_name(str(model), revision, download, parts)


def name_of(folder: Path) -> str:
    """The name of a model: its hub name in the hub's cache, else its folder's, or its file's without the ending."""
    path = folder.resolve()
    if path.is_file():
        return path.stem
    root = path.parent.parent.name
    if path.parent.name == _SNAPSHOTS and root.startswith(_ROOT):
        return root.removeprefix(_ROOT).replace("--", "/", 1)
    return path.name


def cache_folder() -> Path:
    """The cache of the hub, from the variables HF_HUB_CACHE and HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder_of_name(name: str, revision: str | None, download: bool, parts: Parts) -> Path:
    cache = cache_folder()
    found = _snapshot(cache / f"{_ROOT}{name.replace('/', '--')}", revision)
    lacking = None if found is None else _lacking(found, parts)
    if found is not None and lacking is None:
        return found
    if download:
        return _downloaded(name, revision, parts)
    if found is not None:
        raise CheckpointError(f"{name}: {found} has no {lacking}; --download fetches it from the hub")
    sought = name if revision is None else f"{name}, revision {revision}"
    raise CheckpointError(
        f"{sought}: no such folder, and not in the Hugging Face cache {cache}; --download fetches it from the hub"
    )


def _snapshot(root: Path, revision: str | None) -> Path | None:
    """The snapshot of a branch, a tag or a commit in the cache; None if there is none."""
    ref = root / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    if commit is None or Path(commit).name != commit:
        return None
    folder = root / _SNAPSHOTS / commit
    return folder if folder.is_dir() else None


def _lacking(folder: Path, parts: Parts) -> str | None:
    """A part that a snapshot lacks, such as the rest of an interrupted download; None if it has all."""
    checks: dict[Part, Callable[[Path], str | None]] = {
        "config": lambda f: None if (f / "config.json").exists() or _has_gguf(f) else "config.json",
        "weights": _lacking_weights,
        "tokenizer": _lacking_tokenizer,
    }
    return next((lacking for part in parts if (lacking := checks[part](folder)) is not None), None)


def _lacking_weights(folder: Path) -> str | None:
    first = next((folder / name for name in _WEIGHTS if (folder / name).exists()), None)
    if first is not None:
        return next((name for name in _indexed(first) if not (folder / name).exists()), None)
    # Other forms are for the readers: model-parallel ranks, quantized files of other programs.
    others = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "latest*", "rank-*")
    return None if any(path.exists() for pattern in others for path in folder.glob(pattern)) else "weights"


def _lacking_tokenizer(folder: Path) -> str | None:
    names = set(_tokenizer_files()) - set(_SETTINGS)
    found = any((folder / name).exists() for name in names) or _has_gguf(folder)
    return None if found else "tokenizer"


def _has_gguf(folder: Path) -> bool:
    """Whether there is a GGUF file, which has sizes and tokenizer inside."""
    return any(path.exists() for path in folder.glob("*.gguf"))


def _tokenizer_files() -> Sequence[str]:
    from model.tokenizer import FILES

    return FILES


def _indexed(index: Path) -> list[str]:
    """The files that an index names, none for another file. The reader checks the index itself."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.suffix == ".json" else {}
        return sorted(name for name in set(places.values()) if Path(name).name == name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _downloaded(name: str, revision: str | None, parts: Parts) -> Path:
    """Fetches parts of a model into the cache, small files first, so that what has weights is whole.

    huggingface_hub shows the progress. Raises CheckpointError, in one line, for all that prevents it.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{name}: not whole in the Hugging Face cache, and HF_HUB_OFFLINE forbids a download")
    _quieten()
    try:
        siblings = HfApi().model_info(name, revision=revision).siblings or ()
        names = [sibling.rfilename for sibling in siblings]
        weights = next((own for own in _WEIGHTS if own in names), None)
        if "weights" in parts and weights is None:
            gguf = f"; to get one type: hf download {name} FILE" if any(n.endswith(".gguf") for n in names) else ""
            raise CheckpointError(f"{name}: {in_place_of_weights(names)}{gguf}")
        small = [own for own in names if _is_small(own, parts)]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, *_index(weights)]))
        if "weights" in parts and weights is not None:
            large = _indexed(folder / weights) or [weights]
            snapshot_download(name, revision=folder.name, allow_patterns=large)
    except CheckpointError:
        raise
    # Which class an error of the connection has depends on the HTTP library of huggingface_hub's version.
    except Exception as error:
        raise CheckpointError(_refusal(name, revision, error)) from None
    return folder


def _quieten() -> None:
    """Has huggingface_hub write no warnings, and its progress on a terminal only."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.get_logger().setLevel("ERROR")
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty():
        disable_progress_bars()


def _is_small(name: str, parts: Parts) -> bool:
    """Whether a file of the hub is read here beside the weights."""
    wanted: tuple[str, ...] = ("config.json", *_QUANTIZATION)
    if "tokenizer" in parts:
        wanted += tuple(_tokenizer_files())
    if "weights" in parts:
        wanted += LICENCES
    return "/" not in name and not name.endswith(".py") and any(fnmatchcase(name, pattern) for pattern in wanted)


def _index(weights: str | None) -> list[str]:
    return [weights] if weights is not None and weights.endswith(".json") else []


def _refusal(name: str, revision: str | None, error: Any) -> str:
    """One line for an error of huggingface_hub, with what to do about it."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    access = "set HF_TOKEN, or type: hf auth login"
    if isinstance(error, errors.GatedRepoError):
        return f"{name}: gated; accept its conditions at {hub}/{name}, then {access}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: has no revision {revision or 'main'!r} on {hub}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{name}: not on {hub}, or private: for a private one {access}"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"{name}: {hub} answered {error.response.status_code}; the same command goes on with the files it lacks"
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(cause, OSError) and cause.strerror:
        reason = ": ".join(str(part) for part in (cause.filename, cause.strerror) if part)
    else:
        reason = (str(cause).splitlines() or [""])[0] or type(cause).__name__
    return f"{name}: the download from {hub} failed ({reason}); the same command goes on with the files it lacks"

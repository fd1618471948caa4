"""Reads a checkpoint folder into a network: built empty, filled tensor by tensor, nothing missing or left over.

A folder's matrices are float, and quantized while they are read if that is asked for, or stored by a scheme that
`quantization_config` in its config.json names. Beside the network at most one tensor is in memory at a time.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.config import CheckpointError, GLMConfig
from model.glm import GLM
from model.tokenizer import Tokenizer
from quant.linear import Weight
from quant.schemes import Float, Head, Scheme, Tensors, build, build_head

DEMO = Path(__file__).parent / "demo"
METHOD = "glm-infill"
GROUP_SIZE = 32
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHUNK = 2**20  # numbers quantized at once: what is float32 for a moment stays small

Entries = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # dtype None: any floating point


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded folder; `quant` is the scheme of its blocks' matrices, as loaded."""

    name: str
    model: GLM
    tokenizer: Tokenizer
    quant: str = "none"


@dataclass(frozen=True, slots=True)
class Storage:
    """How matrices are stored: names of schemes for the blocks' and for the embedding with the head."""

    scheme: str = "none"
    group_size: int = GROUP_SIZE
    head: str = "none"

    @classmethod
    def read(cls, folder: Path) -> "Storage | None":
        """The `quantization_config` of a folder's config.json, None for a float checkpoint. Raises CheckpointError."""
        path = folder / "config.json"
        data = json.loads(path.read_text(encoding="utf-8")).get("quantization_config")
        if data is None:
            return None
        method = data.get("quant_method") if isinstance(data, dict) else data
        if method != METHOD:
            raise CheckpointError(f'{path}: quantization_config must have quant_method "{METHOD}", not {method!r}')
        known = {name: data[name] for name in ("scheme", "group_size", "head") if name in data}
        for name, value in known.items():
            kind = int if name == "group_size" else str
            if type(value) is not kind:
                raise CheckpointError(f"{path}: {name} of quantization_config must be of type {kind.__name__}")
        storage = cls(**known)
        try:
            storage.schemes(torch.float32, "cuda")  # what a file may hold, whatever this machine can read
        except ValueError as error:
            raise CheckpointError(f"{path}: quantization_config: {error}") from None
        if storage.scheme == "none":
            raise CheckpointError(f"{path}: quantization_config names no scheme")
        return storage

    def to_json(self) -> dict[str, Any]:
        """The `quantization_config`, with what the scheme has a use for."""
        grouped = {"group_size": self.group_size} if hasattr(build(self.scheme), "group_size") else {}
        return {"quant_method": METHOD, "scheme": self.scheme, **grouped, "head": self.head}

    def schemes(self, dtype: torch.dtype, device: str) -> tuple[Scheme, Head]:
        """The blocks' scheme and the head's. Raises ValueError for what there is not, or not on the device."""
        return build(self.scheme, dtype, self.group_size), build_head(self.head, dtype, device)

    def changed(self, scheme: str | None, group_size: int | None, head: str | None) -> "Storage":
        """What someone who asks for these gets to see; None, and "none" for a scheme, ask for nothing."""
        if scheme in (None, "none"):
            scheme, group_size = self.scheme, self.group_size
        return Storage(
            scheme,
            self.group_size if group_size is None else group_size,
            self.head if head in (None, "none") else head,
        )

    def __str__(self) -> str:
        shown = {k: v for k, v in self.to_json().items() if k not in ("quant_method", "scheme") and v != "none"}
        return " ".join([self.scheme, *(f"{name} {value}" for name, value in shown.items())])


def load(
    folder: Path | None = None,
    quant: str | None = None,
    device: str = "cpu",
    group_size: int | None = None,
    head: str | None = None,
) -> Checkpoint:
    """Loads a folder (default: the bundled demo), a float one quantized by the named schemes while it is read.

    A folder that is quantized already says itself how it is stored: `quant` None and "none" take it as it is,
    `group_size` and `head` (the embedding's scheme) may be left out; anything else must agree with it. Computes in
    float32 on a CPU and float16 on a GPU. Raises CheckpointError, in one line, for a folder that is incomplete,
    inconsistent or not of this family.
    """
    name = "glm-demo" if folder is None else folder.resolve().name
    folder = folder or DEMO
    config, tokenizer = read_description(folder)
    weights = Weights(folder)
    if weights.storage is None:
        storage = Storage(quant or "none", GROUP_SIZE if group_size is None else group_size, head or "none")
    else:
        storage = weights.storage
        if (asked := storage.changed(quant, group_size, head)) != storage:
            raise CheckpointError(f"{folder}: stored as {storage}, which cannot be loaded as {asked}")
    dtype = torch.float16 if device == "cuda" else torch.float32
    scheme, head_scheme = storage.schemes(dtype, device)
    with torch.device("meta"):
        plain = GLM(config)
        check_sizes(plain, scheme, head_scheme)
        model = GLM(config, scheme, dtype, head_scheme)
    weights.check(entries(plain if weights.storage is None else model))
    fill(model, weights, dtype, torch.device(device))
    return Checkpoint(name, model.eval().requires_grad_(False), tokenizer, storage.scheme)


def read_description(folder: Path) -> tuple[GLMConfig, Tokenizer]:
    """Everything of a folder but its weights. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    config, tokenizer = GLMConfig.read(folder), Tokenizer.read(folder)
    if tokenizer.size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.size} tokens, the model {config.vocab_size} embeddings"
        )
    return config, tokenizer


class Weights:
    """The tensors of a folder: of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists.

    `storage` tells how its matrices are stored, None for float. A file is opened anew for each tensor, so that the
    pages of those read before do not count as memory in use.
    """

    def __init__(self, folder: Path) -> None:
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        self.storage = Storage.read(folder)
        self.listing = index if index.exists() and not single.exists() else single
        self.entries: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._files: dict[str, Path] = {}
        listed = _listed(index) if self.listing == index else None
        for path in [single] if listed is None else sorted({folder / file for file in listed.values()}):
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118
                    if listed is not None and listed.pop(name, None) != path.name:
                        raise CheckpointError(f"{path.name} has {name}, which {index.name} does not place there")
                    tensor = file.get_tensor(name)  # a view of the file: nothing is read
                    self.entries[name], self._files[name] = (tuple(tensor.shape), tensor.dtype), path
        if listed:
            name = next(iter(listed))
            raise CheckpointError(f"{listed[name]} lacks {name}, which {index.name} places there")

    @property
    def files(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def check(self, wanted: Entries) -> None:
        """Raises CheckpointError unless these are exactly the tensors wanted, in names, shapes and dtypes."""
        names = self.entries.keys()
        for problem, group in (("lacks", wanted.keys() - names), ("has unknown", names - wanted.keys())):
            if group:
                shown = ", ".join(sorted(group)[:3]) + (" …" if len(group) > 3 else "")
                raise CheckpointError(f"{self.listing.name} {problem} {shown}")
        for name, (shape, dtype) in wanted.items():
            found = self.entries[name]
            if found[0] != shape:
                raise CheckpointError(f"{name} has shape {list(found[0])}, config.json asks for {list(shape)}")
            if found[1] not in (_FLOATS if dtype is None else (dtype,)):
                raise CheckpointError(f"{name} has type {found[1]}, expected {dtype or 'floating point'}")

    def read(self, name: str) -> Tensor:
        """A tensor as a view of its file. Raises CheckpointError for NaN and infinity."""
        with opened(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        if tensor.is_floating_point():
            low, high = tensor.aminmax()  # NaN if there is one; unlike isfinite without a copy
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise CheckpointError(f"{name} holds NaN or infinity")
        return tensor


def entries(model: nn.Module) -> Entries:
    """What a folder must hold for a network as it is built: float matrices, or stored ones."""
    wanted: Entries = {}
    for path, module in model.named_modules():
        stored = stored_names(module)
        for leaf, parameter in module.named_parameters(recurse=False):
            wanted[f"{path}.{leaf}"] = tuple(parameter.shape), parameter.dtype if leaf in stored else None
    return wanted


def check_sizes(model: nn.Module, scheme: Scheme, head: Scheme) -> None:
    """Raises CheckpointError, naming the tensor, where a float network's matrix does not fit its scheme."""
    for path, module in matrices(model):
        try:
            (head if path == "word_embeddings" else scheme).tensors(module.out_features, module.in_features)
        except ValueError as error:
            raise CheckpointError(f"{path}.weight: {error}") from None


def matrices(model: nn.Module) -> Iterator[tuple[str, Weight]]:
    """The modules whose weight a scheme stores, with their paths, in the order of computation."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, Weight))


def stored_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the tensors of a weight that is stored otherwise than float."""
    if not isinstance(module, Weight) or isinstance(module.scheme, Float):
        return ()
    return tuple(module.scheme.tensors(module.out_features, module.in_features))


def fill(model: nn.Module, weights: Weights, dtype: torch.dtype, device: torch.device, prefix: str = "") -> None:
    """Assigns its tensors to a network; in the folder their names begin with `prefix`."""
    for path, module in model.named_modules():
        name = f"{prefix}{path}."
        leaves = [leaf for leaf, _ in module.named_parameters(recurse=False)]
        if isinstance(module, Weight):
            own = () if weights.storage is None else stored_names(module)
            if own:
                tensors = {leaf: weights.read(name + leaf).to(device, copy=True) for leaf in own}
            else:
                tensors = quantized(module.scheme, weights.read(f"{name}weight"), f"{name}weight")
                tensors = {leaf: tensor.to(device) for leaf, tensor in tensors.items()}
            leaves = [leaf for leaf in leaves if leaf not in tensors]
            module.assign(tensors)
        for leaf in leaves:
            tensor = weights.read(name + leaf).to(device, dtype, copy=True)
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))


def quantized(scheme: Scheme, weight: Tensor, name: str) -> Tensors:
    """The stored form of a float weight, made from some rows at a time: the same as the scheme's own, with little
    memory beside weight and result. Raises CheckpointError with the tensor's name."""
    outputs, inputs = weight.shape
    rows = max(_CHUNK // inputs // 64, 1) * 64  # whole blocks of every scheme
    try:
        made = {k: torch.empty(shape, dtype=dtype) for k, (shape, dtype) in scheme.tensors(outputs, inputs).items()}
        for start in range(0, outputs, rows):
            length = min(rows, outputs - start)
            for key, part in scheme.quantize(weight[start : start + length]).items():
                cut = scheme.narrow(key, 0, start, length)
                (made[key] if cut is None else made[key].narrow(*cut)).copy_(part)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None
    return made


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file to read from. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _listed(index: Path) -> dict[str, str]:
    """Tensor name → file name, of an index file. Raises CheckpointError."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(Path(file).name == file for file in listed.values()):
            raise ValueError("a file outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors files ({error!r})") from None
    return dict(listed)

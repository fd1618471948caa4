"""Conversion of a float checkpoint folder to a quantized one, tensor by tensor. It can resume after a kill.

The schemes give the sizes of all tensors, so the shards are planned first and then written. A shard gets its name once
it is complete. config.json, without which no folder loads, comes last.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from model.calibration import Calibration, Window, windows
from model.checkpoint import (
    Description,
    check_sizes,
    converted,
    description_weights,
    entries,
    matrices,
    tokenizer_folder,
)
from model.config import CheckpointError
from model.contents import LICENCES
from model.format import same_numbers
from model.network import Network
from model.parallel import Ranks
from model.rank_folders import INDEX, rank_folder
from model.rank_slice import RankSlice
from model.ranked import Ranked
from model.safetensors_file import SafetensorsFile
from model.safetensors_writer import SafetensorsWriter
from model.sharding import Slice, cuts_of
from model.storage import Storage
from model.tokenizer import FILES
from quant.calibrate import check
from quant.linear import Embedding
from quant.scheme import Scheme, Stored, Tensors, num_bytes
from quant.schemes.none import Float
from quant.usage import UsageError

STATE = "quantize.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The target of a conversion.

    `calibrate` is a text for `model.calibration`. A shard holds up to `shard_bytes` bytes. `preset` and `tokenizer` are
    for a source without config.json or tokenizer. With `tp`, every tensor is cut for so many ranks, and each rank reads
    files of its own. `keep_head`: the embedding and head of a foreign format keep their form, whatever `storage` says.
    """

    storage: Storage
    calibrate: Path | None = None
    windows: int = 512
    shard_bytes: int = 4 * 10**9
    preset: str | None = None
    tokenizer: Path | None = None
    tp: int = 1
    keep_head: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """A tensor of the source and its result: a scheme's tensors by full name, or the tensor itself if `scheme` is
    None."""

    source: str
    scheme: Scheme | None
    tensors: Stored

    @property
    def num_bytes(self) -> int:
        """Bytes of the result."""
        return num_bytes(self.tensors)


class Conversion:
    """One conversion. The constructor checks and plans it; `run` carries it out."""

    def __init__(self, source: Path, target: Path, recipe: Recipe) -> None:
        """Raises CheckpointError, in one line, for everything that would make the conversion fail."""
        self.source, self.target, self.recipe = source, target, recipe
        if target.resolve() == source.resolve():
            raise CheckpointError(f"{target}: cannot be converted in place")
        self.description = Description.read(source, recipe.preset, recipe.tokenizer)
        self.weights = description_weights(source, self.description)
        if self.weights.storage is not None:
            raise CheckpointError(f"{source}: quantized already, as {self.weights.storage}")
        self.storage = self._storage()
        # "cuda": another machine may serve the folder, so this one's kernels do not matter.
        self.scheme, self.head = self.storage.schemes(torch.float32, "cuda")
        if isinstance(self.scheme, Float):
            raise CheckpointError("the scheme none quantizes nothing")
        with torch.device("meta"):
            self.model = Network(self.description.architecture)
        check_sizes(self.model, self.scheme, self.head)
        self.weights.check(entries(self.model))
        self.shares = self._shares()
        self.windows: list[Window] = []
        if recipe.calibrate is not None:
            check(self.scheme)
            self.windows = windows(recipe.calibrate, self.description, recipe.windows)
        self.shards = self._planned()
        self._state = self._identity()
        self._check_target()

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(unit.num_bytes for units in self.shards.values() for unit in units)

    def run(self, progress: Callable[[int], object] = lambda num_bytes: None) -> dict[str, Any]:
        """Writes what is not written yet, and returns facts of the result. `progress` takes the bytes of each tensor.

        A second call resumes. Raises CheckpointError for NaN and infinity, naming the tensor, and OSError.
        """
        self.target.mkdir(parents=True, exist_ok=True)
        _write(self.target / STATE, json.dumps(self._state, indent=2) + "\n")
        calibration = self._calibration()
        for name, units in self.shards.items():
            if self._is_written(name):
                progress(sum(unit.num_bytes for unit in units))
                continue
            parts = [{k: v for unit in units for k, v in self._parts(unit, share).items()} for share in self.shares]
            whole = {key: entry for unit in units for key, entry in unit.tensors.items()}
            with ExitStack() as stack:
                writers = []
                for path, part in zip(self._paths(name), parts, strict=True):
                    path.parent.mkdir(exist_ok=True)
                    writers.append(stack.enter_context(SafetensorsWriter(path, _cut_entries(whole, part))))
                for unit in units:
                    for key, tensor in self._made(unit, calibration).items():
                        for writer, part in zip(writers, parts, strict=True):
                            own = part[key]
                            writer.write(key, tensor if own is None else own.of(tensor))
                    progress(unit.num_bytes)
        self._finish()
        return self._facts()

    def _storage(self) -> Storage:
        """The storage of the result."""
        asked = self.recipe.storage
        if self.weights.format is None:
            return asked
        head = None if self.recipe.keep_head else asked.head
        return self.weights.chosen(self.source, asked.scheme, asked.group_size, head)

    def _shares(self) -> list[RankSlice]:
        """The slices of each rank. Raises CheckpointError for heads or groups that the ranks do not divide."""
        a, size = self.description.architecture, self.recipe.tp
        try:
            with torch.device("meta"):
                part = Network(a, ranks=Ranks(0, size))
        except UsageError as error:
            raise CheckpointError(str(error)) from None
        check_sizes(part, self.scheme, self.head, size)
        shapes = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        return [RankSlice(Ranks(rank, size), cuts_of(a), shapes) for rank in range(size)]

    def _parts(self, unit: Unit, share: RankSlice) -> dict[str, Slice | None]:
        """A rank's parts of a unit's tensors."""
        if unit.scheme is None:
            return {unit.source: share.part(unit.source)}
        prefix = unit.source.removesuffix("weight")
        leaves = {key: key.removeprefix(prefix) for key in unit.tensors}
        return {key: share.stored(unit.source, leaf, unit.scheme) for key, leaf in leaves.items()}

    def _paths(self, name: str) -> list[Path]:
        """A shard's file of each rank."""
        return [rank_folder(self.target, rank, self.recipe.tp) / name for rank in range(self.recipe.tp)]

    def _is_written(self, name: str) -> bool:
        """Whether a shard is whole, of every rank."""
        return all(path.exists() for path in self._paths(name))

    def _planned(self) -> dict[str, list[Unit]]:
        """The units of each shard, by its name."""
        shards: list[list[Unit]] = [[]]
        for unit in self._units():
            if shards[-1] and sum(u.num_bytes for u in shards[-1]) + unit.num_bytes > self.recipe.shard_bytes:
                shards.append([])
            shards[-1].append(unit)
        return {f"model-{n:05}-of-{len(shards):05}.safetensors": units for n, units in enumerate(shards, 1)}

    def _units(self) -> Iterable[Unit]:
        """In the network's order, by which calibration goes."""
        schemes = {
            f"{path}.weight": self.head if isinstance(module, Embedding) else self.scheme
            for path, module in matrices(self.model)
        }
        for name, parameter in self.model.named_parameters():
            scheme = schemes.get(name)
            if scheme is None or isinstance(scheme, Float):
                yield Unit(name, None, {name: self.weights.entries[name]})
            else:
                stored = scheme.tensors(*parameter.shape)
                prefix = name.removesuffix("weight")
                yield Unit(name, scheme, {prefix + key: entry for key, entry in stored.items()})

    def _made(self, unit: Unit, calibration: Calibration | None) -> Tensors:
        if unit.scheme is None:
            return {unit.source: self.weights.read(unit.source)}
        path = unit.source.removesuffix(".weight")
        if calibration is not None and path.startswith("transformer.layers."):
            stored = calibration.stored(path)
        else:
            stored = self._quantized(unit.scheme, unit.source)
        return {f"{path}.{key}": tensor for key, tensor in stored.items()}

    def _quantized(self, scheme: Scheme, name: str) -> Tensors:
        """The stored form of a matrix, as the source's format has its numbers if the scheme has the same."""
        if same_numbers(self.weights.form(name), scheme):
            return self.weights.stored(name)
        return converted(scheme, self.weights, name)

    def _calibration(self) -> Calibration | None:
        if not self.windows:
            return None
        written = {
            unit.source.removesuffix(".weight"): (self._paths(name), unit)
            for name, units in self.shards.items()
            if self._is_written(name)
            for unit in units
        }

        def finished(path: str) -> Tensors | None:
            if path not in written:
                return None
            shards, unit = written[path]
            files = Ranked(self.target, [SafetensorsFile(shard) for shard in shards], self.shares[0].cuts, True)
            return {name.removeprefix(f"{path}."): files.read(name) for name in unit.tensors}

        return Calibration(self.model.architecture, self.weights, self.windows, self.scheme, finished)

    def _finish(self) -> None:
        """Everything beside the shards; config.json last."""
        with tokenizer_folder(self.source, self.recipe.tokenizer) as tokenizer:
            for folder, patterns in ((tokenizer, FILES), (self.source, LICENCES)):
                for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
                    shutil.copyfile(path, self.target / path.name)
        places = {key: name for name, units in self.shards.items() for unit in units for key in unit.tensors}
        for rank, share in enumerate(self.shares):
            entries = (
                _cut_entries(unit.tensors, self._parts(unit, share)) for units in self.shards.values() for unit in units
            )
            index = {
                "metadata": {"total_size": sum(map(num_bytes, entries))},
                "weight_map": dict(sorted(places.items())),
            }
            _write(rank_folder(self.target, rank, self.recipe.tp) / INDEX, json.dumps(index, indent=2) + "\n")
        divided = {"tp": self.recipe.tp} if self.recipe.tp > 1 else {}
        config = {
            **self.description.config.fields,
            "quantization_config": self.storage.to_json() | divided,
        }
        _write(self.target / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        (self.target / STATE).unlink()

    def _facts(self) -> dict[str, Any]:
        units = [unit for units in self.shards.values() for unit in units if unit.scheme is not None]
        numbers = sum(prod(self.weights.entries[unit.source][0]) for unit in units)
        stored = sum(unit.num_bytes for unit in units)
        return {
            "model": str(self.target),
            "storage": self.storage.to_json(),
            "calibrated": self.recipe.calibrate is not None,
            "tp": self.recipe.tp,
            "shards": len(self.shards) * self.recipe.tp,
            "bytes": self.num_bytes,
            "quantized_weights": numbers,
            "bytes_per_quantized_weight": stored / numbers,
        }

    def _identity(self) -> dict[str, Any]:
        """The arguments, and sizes and times of the files that are read: all that can be had without reading them."""
        text = self.recipe.calibrate
        paths = [*self.weights.files, *self.source.glob("*.json"), *self.source.glob("*.model")]
        stats = {str(path.resolve()): path.stat() for path in sorted(paths)}
        return {
            "source": {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()},
            **asdict(self.recipe),
            "calibrate": None if text is None else hashlib.sha256(text.read_bytes()).hexdigest(),
            "tokenizer": str(self.recipe.tokenizer),
        }

    def _check_target(self) -> None:
        """Empty, or an unfinished conversion of the same source with the same arguments; with room for the rest."""
        if self.target.exists() and not self.target.is_dir():
            raise CheckpointError(f"{self.target}: not a folder")
        state = self.target / STATE
        if state.exists():
            try:
                begun = json.loads(state.read_text(encoding="utf-8"))
            except ValueError:
                begun = None
            if begun != self._state:
                raise CheckpointError(
                    f"{self.target}: holds an unfinished conversion of another source or with other arguments; "
                    "give the same ones or remove the folder"
                )
        elif self.target.exists() and any(path.name != f"{STATE}.part" for path in self.target.iterdir()):
            raise CheckpointError(f"{self.target}: not empty")
        present = next(path for path in (self.target, *self.target.resolve().parents) if path.exists())
        missing = sum(
            unit.num_bytes for name, units in self.shards.items() if not self._is_written(name) for unit in units
        )
        free = shutil.disk_usage(present).free
        if missing > free:
            raise CheckpointError(f"{self.target}: needs {missing / 1e9:.1f} GB, {free / 1e9:.1f} are free")


def _cut_entries(whole: Stored, parts: Mapping[str, Slice | None]) -> Stored:
    """Shapes and dtypes of parts of tensors."""
    cut: Stored = {}
    for key, (shape, dtype) in whole.items():
        part = parts[key]
        own = shape if part is None else tuple(part.length if dim == part.dim else n for dim, n in enumerate(shape))
        cut[key] = own, dtype
    return cut


def _write(path: Path, text: str) -> None:
    """A small file, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)

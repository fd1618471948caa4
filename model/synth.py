"""Checkpoint folders of true names, shapes and layout with random weights, to test a model without its weights."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import CheckpointError, Config
from model.families import PRESETS
from model.family import Family, Format
from model.naming import Naming
from model.network import Network
from model.safetensors_writer import SafetensorsWriter
from model.sharding import ShardSpec, ShardSpecs, cuts, shard
from quant.scheme import SPREAD, Stored, num_bytes
from quant.usage import UsageError

Progress = Callable[[int], object]
_ITERATION = "1"


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A synthetic checkpoint: shapes by canonical name, published names and cuts, and its sizes.

    `config` is the content of config.json, None for a folder without. The weights depend on `seed` and not on the
    layout, so that folders of several layouts hold the same network.
    """

    shapes: Mapping[str, tuple[int, ...]]
    naming: Naming
    cuts: ShardSpecs
    config: Mapping[str, Any] | None = None
    dtype: torch.dtype = torch.float16
    seed: int = 0
    shard_bytes: int = 2 * 10**9

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, undivided."""
        return num_bytes({name: (shape, self.dtype) for name, shape in self.shapes.items()})


def of_preset(preset: str, layers: int | None = None, format: Format = "hf", seed: int = 0) -> Synthetic:
    """The checkpoint of a published model, or its first `layers` layers, under the names of that format.

    A folder of ranks has no config.json, like the published ones, unless `layers` is given, which no preset has. Raises
    UsageError for an unknown preset, and for a format in which the model was not published.
    """
    family, config = _preset(preset)
    naming = family.published.rank_naming if format == "sat" else family.namings[0]
    if naming is None:
        raise UsageError(f"{preset} is not published in the format {format}")
    fields = dict(config.fields)
    if layers is not None:
        fields[layers_field(fields)] = layers
    a = family.architecture(Config(fields))
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in Network(a).named_parameters()}
    return Synthetic(
        shapes,
        naming,
        cuts(a.qkv_sections, 1 + a.gated),
        fields if format != "sat" or layers is not None else None,
        family.published.dtype,
        seed,
    )


def layers_field(fields: Mapping[str, Any]) -> str:
    """The field of a config.json with the number of layers."""
    return next(name for name in ("num_layers", "num_hidden_layers", "n_layer", "n_layers") if name in fields)


def _preset(name: str) -> tuple[Family, Config]:
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def published_format(preset: str) -> Format:
    """The format of a preset's original files. Raises UsageError for an unknown preset."""
    return _preset(preset)[0].published.format


def write_synthetic(
    folder: Path,
    made: Synthetic,
    format: Format = "hf",
    tp: int = 1,
    progress: Progress = lambda num_bytes: None,
) -> None:
    """Writes a new folder. `progress` takes the bytes of each tensor.

    The formats are hf, safetensors shards, with one tensor in memory at a time; bin, pytorch_model shards, with one
    shard in memory; and sat, `tp` model-parallel ranks, with one rank in memory. Raises UsageError if `tp` does not
    divide the tensors, or the format has no ranks; raises CheckpointError for a folder that is not empty and for a full
    disk.
    """
    if tp > 1 and format != "sat":
        raise UsageError(f"only the format sat is divided among ranks, not {format}")
    if format == "sat":
        for name, shape in made.shapes.items():
            shard(torch.empty(shape, device="meta"), made.cuts(name), 0, tp)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: not an empty folder")
    free = shutil.disk_usage(next(path for path in folder.resolve().parents if path.exists())).free
    if made.num_bytes > free:
        raise CheckpointError(f"{folder}: needs {made.num_bytes / 1e9:.1f} GB, {free / 1e9:.1f} are free")
    folder.mkdir(parents=True, exist_ok=True)
    if format == "sat":
        _write_ranks(folder, made, tp, progress)
    else:
        _write_shards(folder, made, format, progress)
    if made.config is not None:
        (folder / "config.json").write_text(json.dumps(made.config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_ranks(folder: Path, made: Synthetic, size: int, progress: Progress) -> None:
    (folder / _ITERATION).mkdir(exist_ok=True)
    for rank in range(size):
        tensors = {}
        for name in made.shapes:
            for published, tensor in _tensors(made, name):
                # A copy: of a view, torch.save would write the whole tensor.
                tensors[published] = shard(tensor, made.cuts(name), rank, size).clone()
                progress(tensor.nbytes // size)
        _save({"module": tensors}, folder / _ITERATION / f"mp_rank_{rank:02}_model_states.pt")
    (folder / "latest").write_text(_ITERATION, encoding="utf-8")


def _write_shards(folder: Path, made: Synthetic, format: Format, progress: Progress) -> None:
    stem, end = ("model", "safetensors") if format == "hf" else ("pytorch_model", "bin")
    planned: list[dict[str, Stored]] = [{}]  # canonical name → its tensors in the shard
    for name, shape in made.shapes.items():
        tensors = _entries(made, name, shape)
        if planned[-1] and sum(map(num_bytes, planned[-1].values())) + num_bytes(tensors) > made.shard_bytes:
            planned.append({})
        planned[-1][name] = tensors
    places = dict[str, str]()
    for number, group in enumerate(planned, 1):
        file = f"{stem}-{number:05}-of-{len(planned):05}.{end}"
        entries = {published: entry for tensors in group.values() for published, entry in tensors.items()}
        places |= dict.fromkeys(entries, file)
        produced = ((published, tensor) for name in group for published, tensor in _tensors(made, name))
        if format == "bin":
            _save({published: tensor.clone() for published, tensor in produced}, folder / file)
            progress(num_bytes(entries))
        else:
            with SafetensorsWriter(folder / file, entries) as writer:
                for published, tensor in produced:
                    writer.write(published, tensor)
                    progress(tensor.nbytes)
    total = sum(num_bytes(tensors) for group in planned for tensors in group.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(value: dict[str, Any], path: Path) -> None:
    """A file of `torch.save`, whole or not at all. Raises CheckpointError where there is no room for it."""
    part = path.with_name(f"{path.name}.part")
    try:
        torch.save(value, part)
    except RuntimeError:  # its message names only a place in torch
        raise CheckpointError(f"{part}: cannot be written whole; is the disk full?") from None
    os.replace(part, path)


def _tensors(made: Synthetic, name: str) -> Iterator[tuple[str, Tensor]]:
    """A canonical tensor's published parts, made anew."""
    tensor = _random(name, made.shapes[name], made.seed).to(made.dtype)
    names = made.naming.published(name)
    for published, own in zip(names, torch.split(tensor, _rows(made, name, len(tensor))), strict=True):
        yield published, own.t().contiguous() if made.naming.turns(published) else own


def _entries(made: Synthetic, name: str, shape: tuple[int, ...]) -> Stored:
    names = made.naming.published(name)
    shapes = [(own, *shape[1:]) for own in _rows(made, name, shape[0])]
    return {
        published: (own[::-1] if made.naming.turns(published) else own, made.dtype)
        for published, own in zip(names, shapes, strict=True)
    }


def _rows(made: Synthetic, name: str, rows: int) -> list[int]:
    """Rows of the published parts of a tensor: the sections of its cut, where there are several."""
    cut = made.cuts(name)
    sections = cut.sections if isinstance(cut, ShardSpec) and len(made.naming.published(name)) > 1 else (1,)
    return [rows * section // sum(sections) for section in sections]


def _random(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """float16 numbers that depend on name and seed; a norm's weight lies about 1."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    tensor = torch.empty(shape, dtype=torch.float16).normal_(0, SPREAD, generator=generator)
    return tensor.add_(1) if name.endswith("norm.weight") else tensor

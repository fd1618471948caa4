"""Reads a checkpoint folder into a network: it is built empty and filled tensor by tensor, and must match exactly.

A folder has float matrices, which are quantized during loading on request, or matrices that are stored by the scheme in
`quantization_config` of its config.json. Beside the network at most one tensor is in memory at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from model.architecture import Architecture
from model.config import CheckpointError, Config
from model.contents import check_folder, config_of
from model.families import PRESETS, family_of
from model.family import Family
from model.format import same_numbers
from model.formats import format_of
from model.hub import name_of
from model.network import Network
from model.parallel import ALONE, Ranks
from model.preferred import told
from model.rank_slice import WHOLE, RankSlice
from model.sharding import Slice, cuts_of
from model.storage import Storage
from model.tokenizer import Tokenizer
from model.tokenizers.kinds import read_from
from model.weights import Entries, Weights
from quant.heap import give_back
from quant.linear import Embedding, Weight
from quant.memory import huge_page_zeros
from quant.scheme import ReduceMax, Scheme, Tensors, identity
from quant.schemes.none import Float
from quant.usage import UsageError

DEMO = Path(__file__).parent / "demo"
Progress = Callable[[float], object]  # takes the share of the weights that is read, 0 to 1
_CHUNK = 2**20  # numbers quantized at once, which keeps the float32 copy small


def compute_dtype(device: str) -> torch.dtype:
    """The dtype in which a network computes on a "cpu" or "cuda" device."""
    return torch.float16 if device == "cuda" else torch.float32


def matrix_dtype(device: str, found: torch.dtype) -> torch.dtype:
    """The dtype in which float matrices lie on a "cpu" or "cuda" device, if they are `found` in their files."""
    return compute_dtype(device) if device == "cuda" else Float.kept(found)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint. `storage` is that of its matrices in memory; `num_parameters` counts those of all ranks.

    `origin` is one line for people: what became of a foreign format's matrices, empty for other checkpoints.
    """

    name: str
    family: Family
    model: Network
    tokenizer: Tokenizer
    storage: Storage = field(default_factory=Storage)
    num_parameters: int = 0
    origin: str = ""

    @property
    def quant(self) -> str:
        """The scheme of the blocks' matrices."""
        return self.storage.scheme


@dataclass(frozen=True, slots=True)
class Description:
    """A folder without its weights: its config.json, or a preset, and its tokenizer."""

    family: Family
    architecture: Architecture
    config: Config
    tokenizer: Tokenizer

    @staticmethod
    def read(folder: Path, preset: str | None = None, tokenizer: Path | None = None) -> "Description":
        """Reads a folder, or a file of a foreign format.

        `preset` gives family and sizes if config.json is missing; `tokenizer` is the folder of the tokenizer if it is
        another one. Raises CheckpointError for a missing folder, an unknown preset, and a config.json or tokenizer that
        cannot be used.
        """
        form = format_of(folder)
        if form is None:
            check_folder(folder)
        if preset is None:
            config = config_of(folder) if form is None else form.config(folder)
            family = family_of(config)
        elif form is not None or (folder / "config.json").exists():
            own = "a config.json" if form is None else "sizes of its own"
            raise CheckpointError(f"{folder}: has {own}, so no preset can be given")
        elif preset not in PRESETS:
            raise CheckpointError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        else:
            family, config = PRESETS[preset]
        architecture = family.architecture(config)
        with tokenizer_folder(folder, tokenizer) as files:
            tokens = read_from(files, family.tokenizer)
        if tokens.size > architecture.vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer has {tokens.size} tokens, the model {architecture.vocab_size} embeddings"
            )
        dropped, mask = architecture.dropped_token, tokens.special.get("mask")
        if dropped is not None and dropped != mask:
            raise CheckpointError(f"{config.source}: mask_token_id is {dropped}, the tokenizer's mask {mask}")
        return Description(family, architecture, config, tokens)


@contextmanager
def tokenizer_folder(folder: Path, tokenizer: Path | None = None) -> Iterator[Path]:
    """The folder of a checkpoint's tokenizer: `tokenizer` if given, else its own.

    Where a foreign format has the tokenizer inside, its files are written to a folder for a while. Raises
    CheckpointError, with the checkpoint's name for that folder's.
    """
    form = format_of(folder)
    if tokenizer is not None or form is None or form.tokenizer is None:
        yield tokenizer or folder
        return
    with TemporaryDirectory() as made:
        for name, content in form.tokenizer(folder).items():
            (Path(made) / name).write_bytes(content)
        try:
            yield Path(made)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(made, str(folder))) from None


def load(
    folder: Path | None = None,
    quant: str | None = None,
    device: str = "cpu",
    group_size: int | None = None,
    head: str | None = None,
    preset: str | None = None,
    tokenizer: Path | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = lambda done: None,
) -> Checkpoint:
    """Loads a folder (default: the bundled demo). The named schemes quantize a float folder during loading.

    With `head` None the embedding has the default of the scheme `quant`. A quantized folder states its storage: `quant`
    None and "none" accept it; `group_size` and `head` (the embedding's scheme) may be None; other values must agree
    with it. `preset` and `tokenizer` are for folders without config.json or tokenizer. The network computes in float32
    on a CPU, where float matrices stay in the dtype of their files, and in float16 on a GPU. Each of several ranks
    reads its own part, all at the same time. `progress` takes the share of the weights that is read, 0 to 1. Raises
    CheckpointError, in one line, for a folder that is incomplete, inconsistent or of no known family, or that the ranks
    do not divide.
    """
    name = "glm-demo" if folder is None else name_of(folder)
    folder = folder or DEMO
    description = Description.read(folder, preset, tokenizer)
    return assembled(name, folder, description, quant, device, group_size, head, ranks, progress)


def assembled(
    name: str,
    folder: Path,
    description: Description,
    quant: str | None = None,
    device: str = "cpu",
    group_size: int | None = None,
    head: str | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = lambda done: None,
) -> Checkpoint:
    """Loads the network of a folder that is described already; see `load`. Raises CheckpointError as `load` does."""
    weights = description_weights(folder, description)
    storage = weights.chosen(folder, quant, group_size, head)
    kind = torch.device(device).type
    dtype = compute_dtype(kind)
    scheme, head_scheme = storage.schemes(matrix_dtype(kind, weights.float_dtype(storage)), kind)
    a = description.architecture
    with torch.device("meta"):
        plain = Network(a)
        check_sizes(plain, scheme, head_scheme)
        whole = plain if weights.storage is None else Network(a, scheme, dtype, head_scheme)
        try:
            part = Network(a, ranks=ranks)
        except UsageError as error:
            raise CheckpointError(f"{folder}: {error}") from None
        check_sizes(part, scheme, head_scheme, ranks.size)
        model = Network(a, scheme, dtype, head_scheme, ranks)
    weights.check(entries(whole))
    share = RankSlice(ranks, cuts_of(a), {n: tuple(p.shape) for n, p in plain.named_parameters()})
    fill(model, weights, dtype, torch.device(device), share=share, progress=progress)
    give_back()
    model.eval().requires_grad_(False)
    form, chosen, origin = weights.format, quant is not None, ""
    if form is not None:
        origin = told(weights.matrices(), storage, form.name, chosen, form.note(folder))
    return Checkpoint(name, description.family, model, description.tokenizer, storage, plain.num_parameters, origin)


def description_weights(folder: Path, description: Description) -> Weights:
    """The folder's tensors under the network's names. Raises CheckpointError for files that cannot be read."""
    return Weights(folder, description.family.namings, cuts_of(description.architecture))


def entries(model: nn.Module) -> Entries:
    """The tensors that a folder must hold for this network: name → shape and dtype, None for any floating point."""
    wanted: Entries = {}
    for path, module in model.named_modules():
        stored = stored_names(module)
        for leaf, parameter in module.named_parameters(recurse=False):
            wanted[f"{path}.{leaf}"] = tuple(parameter.shape), parameter.dtype if leaf in stored else None
    return wanted


def check_sizes(model: nn.Module, scheme: Scheme, head: Scheme, ranks: int = 1) -> None:
    """Checks that the schemes can hold a float network's matrices, or a rank's share of them.

    Raises CheckpointError, naming the tensor, for a size that does not fit.
    """
    for path, module in matrices(model):
        try:
            (head if isinstance(module, Embedding) else scheme).tensors(module.out_features, module.in_features)
        except UsageError as error:
            share = f" of a rank's share, one of {ranks}" if ranks > 1 else ""
            raise CheckpointError(f"{path}.weight: {error}{share}") from None


def matrices(model: nn.Module) -> Iterator[tuple[str, Weight]]:
    """The modules with a weight that a scheme stores, and their paths, in the order of computation."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, Weight))


def stored_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the tensors of a quantized weight; none for a float weight."""
    if not isinstance(module, Weight) or isinstance(module.scheme, Float):
        return ()
    return tuple(module.scheme.tensors(module.out_features, module.in_features))


def fill(
    model: nn.Module,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    prefix: str = "",
    share: RankSlice = WHOLE,
    progress: Progress = lambda done: None,
) -> None:
    """Assigns a folder's tensors, or a rank's share of them, to a network. `prefix` begins their names in the folder.

    `progress` takes the share that is assigned, 0 to 1. Raises CheckpointError for NaN, infinity and a cut through a
    group.
    """
    done, total = 0, sum(_numbers(module) for module in model.modules())
    for path, module in model.named_modules():
        name = f"{prefix}{path}."
        leaves = [leaf for leaf, _ in module.named_parameters(recurse=False)]
        count = _numbers(module)
        if isinstance(module, Weight):
            own = () if weights.storage is None else stored_names(module)
            matrix = f"{name}weight"
            if not own and same_numbers(weights.form(matrix), module.scheme):
                kept = weights.stored(matrix, share.part(matrix))
                tensors = {leaf: tensor.to(device, copy=True) for leaf, tensor in kept.items()}
                del kept
            elif own:
                parts = {leaf: share.stored(matrix, leaf, module.scheme) for leaf in own}
                tensors = {leaf: weights.read(name + leaf, part).to(device, copy=True) for leaf, part in parts.items()}
            else:
                tensors = converted(module.scheme, weights, matrix, share.part(matrix), share.reduce_max(matrix))
                tensors = {leaf: tensor.to(device) for leaf, tensor in tensors.items()}
            leaves = [leaf for leaf in leaves if leaf not in tensors]
            module.assign(tensors)
            del tensors
        for leaf in leaves:
            tensor = weights.read(name + leaf, share.part(name + leaf)).to(device, dtype, copy=True)
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        done += count
        if count:
            progress(done / total)


def _numbers(module: nn.Module) -> int:
    """Of a module itself, without those in it, on `meta`."""
    if isinstance(module, Weight):
        return module.in_features * module.out_features
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def quantized(scheme: Scheme, weight: Tensor, name: str, reduce_max: ReduceMax = identity) -> Tensors:
    """The stored form of a float weight [out_features, in_features], made from some rows at a time.

    It equals the result of `scheme.quantize` and needs little memory beside weight and result. Raises CheckpointError,
    naming the tensor, where the scheme raises UsageError.
    """
    outputs, inputs = weight.shape
    return _by_rows(scheme, (outputs, inputs), lambda start, n: weight[start : start + n], name, reduce_max)


def converted(
    scheme: Scheme, weights: Weights, name: str, part: Slice | None = None, reduce_max: ReduceMax = identity
) -> Tensors:
    """The stored form of a matrix of a checkpoint, or of a slice of it.

    A foreign format's matrix is dequantized some rows at a time. Raises CheckpointError as `quantized` does, and for
    NaN and infinity.
    """
    if not weights.kinds(name):
        return quantized(scheme, weights.read(name, part), name, reduce_max)
    outputs, inputs = weights.entries[name][0]
    rows = part if part is not None and part.dim == 0 else Slice(0, ((0, outputs),))
    columns = part if part is not None and part.dim == 1 else Slice(1, ((0, inputs),))

    def read(start: int, count: int) -> Tensor:
        return columns.of(weights.read(name, rows.stretch(start, count)))

    return _by_rows(scheme, (rows.length, columns.length), read, name, reduce_max)


def _by_rows(
    scheme: Scheme, shape: tuple[int, int], read: Callable[[int, int], Tensor], name: str, reduce_max: ReduceMax
) -> Tensors:
    """The stored form of a weight of this shape, of which `read` gives some rows, from a first one on."""
    outputs, inputs = shape
    rows = max(_CHUNK // inputs // 64, 1) * 64  # whole blocks of every scheme
    try:
        made = {k: huge_page_zeros(shape, dtype) for k, (shape, dtype) in scheme.tensors(outputs, inputs).items()}
        for start in range(0, outputs, rows):
            length = min(rows, outputs - start)
            for key, part in scheme.quantize(read(start, length), reduce_max).items():
                cut = scheme.narrow(key, 0, start, length)
                (made[key] if cut is None else made[key].narrow(*cut)).copy_(part)
    except UsageError as error:
        raise CheckpointError(f"{name}: {error}") from None
    return made

"""Networks of true sizes with random weights, to measure time and memory without a checkpoint."""

from pathlib import Path

import torch
from torch import Tensor, nn

from model.architecture import Architecture
from model.checkpoint import DEMO, Checkpoint, Description, check_sizes, matrix_dtype
from model.config import CheckpointError
from model.hub import name_of
from model.network import Network, Norm
from model.outline import published_dtype
from model.parallel import ALONE, Ranks
from model.storage import Storage
from quant.linear import Weight
from quant.scheme import SPREAD, HeadScheme, Scheme
from quant.usage import UsageError


def synthetic(
    architecture: Architecture, scheme: Scheme, head: HeadScheme, seed: int = 0, ranks: Ranks = ALONE
) -> Network:
    """A network, or a rank's part of one, filled tensor by tensor in its stored form, without float copies."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = Network(architecture, scheme, torch.float32, head, ranks)
    for module in model.modules():
        if isinstance(module, Weight):
            module.assign(module.scheme.random(module.out_features, module.in_features, generator))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                norm = isinstance(module, Norm) and name == "weight"
                filled = torch.ones(parameter.shape) if norm else _random(parameter.shape, generator)
                setattr(module, name, nn.Parameter(filled, requires_grad=False))
    return model.eval().requires_grad_(False)


def invented(
    folder: Path | None = None,
    quant: str | None = None,
    device: str = "cpu",
    group_size: int | None = None,
    head: str | None = None,
    preset: str | None = None,
    tokenizer: Path | None = None,
    ranks: Ranks = ALONE,
) -> Checkpoint:
    """Like `model.checkpoint.load`, but with random weights; the folder needs none. Raises CheckpointError as `load`
    does."""
    name, folder = ("glm-demo", DEMO) if folder is None else (name_of(folder), folder)
    description = Description.read(folder, preset, tokenizer)
    kind = torch.device(device).type
    storage = Storage.chosen(folder, None, quant, group_size, head)
    floats = published_dtype(description.config, description.architecture)
    scheme, head_scheme = storage.schemes(matrix_dtype(kind, floats), kind)
    with torch.device("meta"):
        plain = Network(description.architecture)
    check_sizes(plain, scheme, head_scheme)
    try:
        model = synthetic(description.architecture, scheme, head_scheme, ranks=ranks).to(device)
    except UsageError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    model = model.half() if kind == "cuda" else model
    return Checkpoint(name, description.family, model, description.tokenizer, storage, plain.num_parameters)


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A bias is the same small number throughout, a table random."""
    if len(shape) == 1:
        return torch.full(shape, SPREAD / 64)
    return torch.randn(shape, generator=generator).mul_(SPREAD)

"""Networks of true sizes with invented weights: to measure time and memory without anybody's checkpoint."""

import torch
from torch import Tensor, nn

from model.architecture import Architecture
from model.network import Network, Norm
from model.parallel import ALONE, Ranks
from quant.linear import Weight
from quant.schemes import Head, Scheme

_SPREAD = 0.02  # the standard deviation that such weights are initialized with


def synthetic(architecture: Architecture, scheme: Scheme, head: Head, seed: int = 0, ranks: Ranks = ALONE) -> Network:
    """A network, or a rank's part of one, filled tensor by tensor in its stored form; no float copy of a quantized
    weight is made."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = Network(architecture, scheme, torch.float32, head, ranks)
    for module in model.modules():
        if isinstance(module, Weight):
            stored = module.scheme.tensors(module.out_features, module.in_features)
            module.assign({name: _random(shape, kind, generator) for name, (shape, kind) in stored.items()})
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                norm = isinstance(module, Norm) and name == "weight"
                filled = torch.ones(parameter.shape) if norm else _random(parameter.shape, torch.float32, generator)
                setattr(module, name, nn.Parameter(filled, requires_grad=False))
    return model.eval().requires_grad_(False)


def _random(shape: tuple[int, ...], kind: torch.dtype, generator: torch.Generator) -> Tensor:
    if kind == torch.int8:
        return torch.randint(-119, 120, shape, dtype=torch.int8, generator=generator)
    if kind == torch.float16 or len(shape) == 1:
        # Scales: a code of middling size stands for a weight of the usual spread.
        return torch.full(shape, _SPREAD / (4 if kind == torch.float16 else 64), dtype=kind)
    return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(_SPREAD).to(kind)

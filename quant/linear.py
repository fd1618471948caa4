"""Layers whose weight a scheme stores."""

import torch
from torch import Tensor, nn

from quant.adapted import Adapted
from quant.scheme import HeadScheme, Scheme, Tensors


class Weight(nn.Module):
    """A weight [out_features, in_features] as a scheme's tensors. Each tensor is a parameter of this module.

    A new weight has the stored form. `assign` replaces it by the packed form, which the machine's kernels read.
    """

    def __init__(self, in_features: int, out_features: int, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.in_features = in_features
        self.out_features = out_features
        self.adapted: Adapted | None = None
        self._names: tuple[str, ...] = ()
        stored = scheme.tensors(out_features, in_features)
        self._register({name: torch.empty(shape, dtype=kind) for name, (shape, kind) in stored.items()})

    def assign(self, stored: Tensors) -> None:
        """Packs a stored weight, for inference. The caller has checked names, dtypes and shapes (see
        `Scheme.tensors`)."""
        self._register(self.scheme.pack(stored))
        self.requires_grad_(False)

    def packed(self) -> Tensors:
        """The packed tensors by name, as `Scheme.matmul` takes them; their shapes are the scheme's."""
        return {name: getattr(self, name) for name in self._names}

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., in_features] · weightᵀ + bias [out_features], with the changes of adapters → [..., out_features]."""
        out = self.scheme.matmul(x, self.packed(), bias, self.out_features)
        return out if self.adapted is None else self.adapted.added(out, x)

    def _register(self, tensors: Tensors) -> None:
        for name in self._names:
            delattr(self, name)
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
        self._names = tuple(tensors)


class Linear(Weight):
    """y = x·Wᵀ + b, or y = x·Wᵀ without a bias."""

    def __init__(
        self, in_features: int, out_features: int, scheme: Scheme, dtype: torch.dtype, bias: bool = True
    ) -> None:
        super().__init__(in_features, out_features, scheme)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] → [..., out_features]."""
        return self.product(x, self.bias)


class Embedding(Weight):
    """The embedding table [num_rows, width], which is also the head: it looks up rows and computes logits."""

    def __init__(self, num_rows: int, width: int, scheme: HeadScheme, dtype: torch.dtype) -> None:
        super().__init__(width, num_rows, scheme)
        self.scheme: HeadScheme = scheme
        self.dtype = dtype

    def forward(self, index: Tensor) -> Tensor:
        """Token ids [...] → embeddings [..., width]."""
        return self.scheme.rows(self.packed(), index, self.in_features).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., width] → logits [..., num_rows] in float32."""
        return self.product(hidden).float()

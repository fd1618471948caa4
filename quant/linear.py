"""A linear layer whose weight is stored by a scheme."""

import torch
from torch import Tensor, nn

from quant.schemes import Scheme


class Linear(nn.Module):
    """y = x·Wᵀ + b with W stored as the scheme's tensors, each a parameter of this module by the scheme's name."""

    def __init__(self, in_features: int, out_features: int, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__()
        self.scheme = scheme
        self.in_features = in_features
        self.out_features = out_features
        for name, (shape, stored) in scheme.tensors(out_features, in_features).items():
            tensor = torch.empty(shape, dtype=stored)
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=stored.is_floating_point))
        self._names = tuple(scheme.tensors(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] → [..., out_features]."""
        return self.scheme.matmul(x, {name: getattr(self, name) for name in self._names}, self.bias)

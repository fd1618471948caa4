"""Adapters in training: LoRA by the peft library, and prefixes, over a network whose own weights do not change.

`model.adapters` and peft itself read the files.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.adapters.target import AdapterTarget
from model.architecture import Architecture
from model.attention import DenseAttention, visible
from model.checkpoint import matrices
from model.network import Network
from quant.linear import Linear
from quant.schemes.none import Float
from quant.usage import UsageError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """The options of an adapter.

    `target_modules` are ends of paths; empty means all linears of the blocks. `projection` is the width of a prefix's
    network, 0 for none.
    """

    method: Literal["lora", "prefix"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    rslora: bool = False
    prefix_length: int = 16
    projection: int = 0
    base: Literal["float", "nf4"] = "float"


class Learner(Protocol):
    """An adapter in training."""

    network: Any  # called as a `Network`
    starts_as_nothing: bool  # changes no number before it has learned

    def attend(self, num_tokens: int, context_len: Tensor) -> Any:
        """The attention of a batch of sequences [batch, num_tokens] with contexts of `context_len` [batch] tokens."""

    @property
    def shift(self) -> int:
        """The number that it adds to positions."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by name."""

    def save(self, folder: Path) -> None:
        """Writes the adapter to a folder."""


def learner(model: Network, options: AdapterOptions, target: AdapterTarget, name: str) -> Learner:
    """A new adapter. Raises UsageError for unknown modules and for sizes out of range."""
    model.requires_grad_(False)
    fingerprint = target.fingerprint
    _in_float32(model)
    _as_torch(model, options.base)
    return (LoRA if options.method == "lora" else Prefix)(model, options, fingerprint, name)


class LoRA:
    """Low-rank products (arXiv 2106.09685), by peft. Raises UsageError for unknown target modules."""

    shift = 0
    starts_as_nothing = True

    def __init__(self, model: Network, options: AdapterOptions, fingerprint: str, name: str) -> None:
        import peft

        linears = [
            path for path, module in model.named_modules() if isinstance(module, nn.Linear) and "layers." in path
        ]
        for target in options.target_modules:
            if not any(path == target or path.endswith(f".{target}") for path in linears):
                known = sorted({path.split(".", 3)[-1] for path in linears})
                raise UsageError(f"target-modules: {target!r} is none of {', '.join(known)}")
        targets = list(options.target_modules) or sorted({path.rpartition(".")[2] for path in linears})
        config = peft.LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,  # type: ignore[arg-type]
            lora_dropout=options.dropout,
            target_modules=targets,
            use_rslora=options.rslora,
        )
        self._fingerprint, self._name = fingerprint, name
        self._peft = peft.get_peft_model(model, config)
        self.network: Any = self._peft

    def attend(self, num_tokens: int, context_len: Tensor) -> Any:
        return DenseAttention(visible(num_tokens, context_len))

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._peft.named_parameters() if p.requires_grad}

    def save(self, folder: Path) -> None:
        self._peft.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # peft's own says nothing yet
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        _write(folder / CONFIG, config | {"base_model_name_or_path": self._name, "base_fingerprint": self._fingerprint})


class Prefix(nn.Module):
    """Keys and values of some tokens before every text, in peft's form.

    With a projection, a small network computes them during training (arXiv 2101.00190, section 4.3).
    """

    def __init__(self, model: Network, options: AdapterOptions, fingerprint: str, name: str) -> None:
        super().__init__()
        a = model.architecture
        if a.local is not None:
            raise UsageError(
                "method prefix: a prefix is seen by all tokens; in layers of this model tokens see near ones"
            )
        self._architecture, self._options, self._fingerprint, self._name = a, options, fingerprint, name
        object.__setattr__(self, "network", model)  # not a part of what learns
        width = a.num_layers * 2 * a.num_key_value_heads * a.head_dim
        inner = options.projection or width
        # As small as a network's own keys when it begins: what is far off draws all attention.
        self.embedding = nn.Parameter(torch.randn(options.prefix_length, inner) * (1.0 if options.projection else 0.1))
        self.trans: nn.Module | None = None
        if options.projection:
            self.trans = nn.Sequential(nn.Linear(inner, inner), nn.Tanh(), nn.Linear(inner, width))

    network: Any
    starts_as_nothing = False

    @property
    def shift(self) -> int:
        """The number of its tokens for a causal model, which counts them among its positions like transformers; else
        0."""
        return self._options.prefix_length if self._architecture.causal else 0

    def table(self) -> Tensor:
        """The prefix as one table [tokens, layers · 2 · kv_heads · head_dim]."""
        out: Tensor = self.embedding if self.trans is None else self.trans(self.embedding)
        return out

    def attend(self, num_tokens: int, context_len: Tensor) -> Any:
        return _Prefixed(visible(num_tokens, context_len), self.table(), self._architecture)

    def parameters(self) -> dict[str, nn.Parameter]:  # type: ignore[override]
        return dict(self.named_parameters())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"prompt_embeddings": self.table().detach().contiguous().cpu()}, folder / WEIGHTS)
        a = self._architecture
        config = {
            "peft_type": "PREFIX_TUNING",
            "task_type": None,
            "base_model_name_or_path": self._name,
            "inference_mode": True,
            "num_virtual_tokens": self._options.prefix_length,
            "num_layers": a.num_layers,
            "num_attention_heads": a.num_key_value_heads,
            "token_dim": a.num_key_value_heads * a.head_dim,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": self._options.projection or None,
            "prefix_projection": False,  # the table is its result
            "base_fingerprint": self._fingerprint,
        }
        _write(folder / CONFIG, config)


class _Prefixed:
    """Dense attention with keys and values of a prefix, which all rows see."""

    def __init__(self, mask: Tensor, table: Tensor, architecture: Architecture) -> None:
        a = architecture
        self.both = table.view(len(table), a.num_layers, 2, a.num_key_value_heads, a.head_dim).permute(1, 2, 0, 3, 4)
        self.plain = DenseAttention(mask)
        self.dense = DenseAttention(torch.cat([mask.new_ones(*mask.shape[:-1], len(table)), mask], dim=-1))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reach: int | None = None) -> Tensor:
        keys, values = (x.expand(len(k), *x.shape) for x in self.both[layer])
        return self.dense(layer, q, torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1))

    def share(self, marked: Tensor) -> Tensor:
        return self.plain.share(marked)


def _in_float32(model: Network) -> None:
    """Float matrices in the dtype of the rows: else each step would convert them again for its gradients."""
    for _, module in matrices(model):
        if isinstance(module.scheme, Float):
            module.weight = nn.Parameter(module.get_parameter("weight").float(), requires_grad=False)


def _as_torch(model: Network, base: str) -> None:
    """Gives the blocks torch's own linears, or bitsandbytes' in NF4, which peft knows; the numbers are the same."""
    for path, module in list(model.named_modules()):
        if not isinstance(module, Linear) or "layers." not in path:
            continue
        weight, bias = module.get_parameter("weight"), module.bias
        own: nn.Linear
        if base == "nf4":
            from bitsandbytes.nn.modules import Linear4bit, Params4bit

            own = Linear4bit(  # type: ignore[no-untyped-call]
                module.in_features, module.out_features, bias is not None, weight.dtype, quant_type="nf4"
            )
            own.weight = Params4bit(weight.detach(), requires_grad=False, quant_type="nf4")
            own = own.to(weight.device)
        else:
            own = nn.Linear(module.in_features, module.out_features, bias is not None, device="meta")
            own.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            own.bias = nn.Parameter(bias.detach(), requires_grad=False)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, own)


def restore(adapter: Learner, tensors: dict[str, Tensor]) -> None:
    """Assigns saved tensors [...] to an adapter's parameters, by name."""
    with torch.no_grad():
        for name, parameter in adapter.parameters().items():
            parameter.copy_(tensors[name])


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", "utf-8")


def num_bytes(folder: Path) -> int:
    """Bytes of the adapter's tensors."""
    return sum(math.prod(t.shape) * t.element_size() for t in load_file(folder / WEIGHTS).values())

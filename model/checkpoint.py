"""Reads a checkpoint folder into a network: built empty, filled tensor by tensor, nothing missing or left over."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.config import CheckpointError, GLMConfig
from model.glm import GLM
from model.tokenizer import Tokenizer
from quant.linear import Linear
from quant.schemes import SCHEMES, Float, Scheme

DEMO = Path(__file__).parent / "demo"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded folder."""

    name: str
    model: GLM
    tokenizer: Tokenizer


def load(folder: Path | None = None, quant: str = "none", device: str = "cpu") -> Checkpoint:
    """Loads a folder (default: the bundled demo), quantizing its linear layers by the named scheme.

    Computes in float32 on a CPU and float16 on a GPU. Raises CheckpointError, in one line, for a folder that is
    incomplete, inconsistent or not of this family.
    """
    name = "glm-demo" if folder is None else folder.resolve().name
    folder = folder or DEMO
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    config = GLMConfig.read(folder)
    tokenizer = Tokenizer.read(folder)
    if tokenizer.size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.size} tokens, the model {config.vocab_size} embeddings"
        )
    dtype = torch.float16 if device == "cuda" else torch.float32
    scheme: Scheme = Float(dtype) if quant == "none" else SCHEMES[quant]()
    with torch.device("meta"):
        model = GLM(config, scheme, dtype)
    fill(model, folder / "model.safetensors", dtype, torch.device(device))
    return Checkpoint(name, model.eval().requires_grad_(False), tokenizer)


def fill(model: nn.Module, path: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Assigns every tensor of a safetensors file to the network, quantizing linear weights one at a time."""
    wanted = _wanted(model)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for problem, group in (("lacks", wanted.keys() - names), ("has unknown", names - wanted.keys())):
                if group:
                    shown = ", ".join(sorted(group)[:3]) + (" …" if len(group) > 3 else "")
                    raise CheckpointError(f"{path.name} {problem} {shown}")
            for name, (module, shape) in wanted.items():
                _assign(module, name, _checked(file.get_tensor(name), name, shape), dtype, device)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _wanted(model: nn.Module) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Float tensor name → the module that takes it, and its shape."""
    wanted: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            wanted[f"{path}.weight"] = module, (module.out_features, module.in_features)
            wanted[f"{path}.bias"] = module, (module.out_features,)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                wanted[f"{path}.{name}"] = module, tuple(parameter.shape)
    return wanted


def _checked(tensor: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}")
    if not tensor.is_floating_point():
        raise CheckpointError(f"{name} has type {tensor.dtype}, expected floating point")
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds NaN or infinity")
    return tensor


def _assign(module: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    leaf = name.rsplit(".", 1)[-1]
    if isinstance(module, Linear) and leaf == "weight":
        stored = module.scheme.quantize(tensor)
    else:
        stored = {leaf: tensor.to(dtype)}
    for key, value in stored.items():
        setattr(module, key, nn.Parameter(value.to(device), requires_grad=False))

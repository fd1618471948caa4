"""The architectures of GGUF files: their sizes as fields of a config.json, and the published names of their tensors.

llama.cpp's converter makes a GGUF file of a folder of transformers. An entry of `ARCHITECTURES` undoes it: model_type,
names, and what else the converter changed. So a family reads a GGUF file as it reads that folder, and a further
architecture is a further entry. Source: llama.cpp, conversion/ (one file each) and src/models/.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.config import CheckpointError, Config
from model.gguf.header import Header

_LAYER = re.compile(r"(?<=^blk\.)\d+(?=\.)")
_HF = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_qkv": "transformer.layers.{i}.attention.query_key_value",  # the network's own name
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
_GLM = _HF | {"blk.{i}.ffn_up": "model.layers.{i}.mlp.gate_up_proj"}


@dataclass(frozen=True, slots=True)
class GGUFArchitecture:
    """How one architecture of GGUF files reads as a folder of transformers.

    `names` maps a tensor's path to its published path; `{i}` is a layer's number. `epsilon` is the config's name of
    the norms' epsilon. `unused` are paths that llama.cpp itself does not read. `interleaved` are last parts of paths,
    such as "attn_q", whose rows the converter put into another order: pairs of a head's numbers side by side instead
    of its two halves. `fields` are further fields of the config.
    """

    model_type: str
    names: Mapping[str, str]
    epsilon: str = "rms_norm_eps"
    unused: tuple[str, ...] = ()
    interleaved: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    def published(self, name: str, source: Path) -> str | None:
        """The published name of a tensor; None for one that is not used. Raises CheckpointError for an unknown one."""
        path, _, leaf = name.rpartition(".")
        if path in self.unused:
            return None
        number = _LAYER.search(path)
        found = self.names.get(_LAYER.sub("{i}", path))
        if found is None:
            raise CheckpointError(f"{source}: has the unknown tensor {name}")
        return f"{found.replace('{i}', number[0]) if number else found}.{leaf}"


# chatglm and glm4 turn neighbouring numbers of a head in llama.cpp too, so that their rows stay in order.
ARCHITECTURES = {
    "chatglm": GGUFArchitecture("glm", _GLM, unused=("rope_freqs",)),
    "glm4": GGUFArchitecture(
        "glm4",
        _GLM
        | {
            "blk.{i}.post_attention_norm": "model.layers.{i}.post_self_attn_layernorm",
            "blk.{i}.post_ffw_norm": "model.layers.{i}.post_mlp_layernorm",
        },
        unused=("rope_freqs",),
    ),
    "llama": GGUFArchitecture("llama", _HF, interleaved=("attn_q", "attn_k")),
    "qwen2": GGUFArchitecture("qwen2", _HF),
    # The file does not say how far rows see; all published models see 4096 tokens.
    "starcoder2": GGUFArchitecture(
        "starcoder2",
        _HF | {"blk.{i}.ffn_up": "model.layers.{i}.mlp.c_fc", "blk.{i}.ffn_down": "model.layers.{i}.mlp.c_proj"},
        epsilon="norm_epsilon",
        fields={"hidden_act": "gelu_pytorch_tanh", "sliding_window": 4096},
    ),
}
_REASONS = {
    "bert": "llama.cpp's converter leaves out the head that fills masks; serve the original folder",
    "clip": "it is the image part of another model",
}


def architecture_of(header: Header) -> GGUFArchitecture:
    """The entry of a file's architecture. Raises CheckpointError for an unknown one."""
    name = header.metadata.get("general.architecture")
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        reason = _REASONS.get(str(name), f"known are {', '.join(ARCHITECTURES)}")
        raise CheckpointError(f"{header.path}: the architecture {name!r} cannot be served: {reason}")
    return found


def config_of(header: Header) -> Config:
    """The metadata and tensors of a file as the fields of transformers' config.json.

    Raises CheckpointError for an unknown architecture and for a size that is missing or of a wrong type.
    """
    architecture = architecture_of(header)
    given = Config(_own(header), f"{header.path}: {header.metadata['general.architecture']}")
    given.only("attention.value_length", given.get("attention.key_length"), None)
    given.only("rope.dimension_sections", None)
    hidden_size, heads = given.whole("embedding_length"), given.whole("attention.head_count")
    head_dim = given.whole("attention.key_length", hidden_size // heads or 1)
    layers = given.whole("block_count")
    given.only("nextn_predict_layers", None, 0)
    attention_bias = any(f"blk.0.{path}.bias" in header.tensors for path in ("attn_q", "attn_qkv"))
    return Config(
        {
            "model_type": architecture.model_type,
            "num_hidden_layers": layers,
            "hidden_size": hidden_size,
            "intermediate_size": given.whole("feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": given.whole("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "vocab_size": _rows(header, "token_embd.weight"),
            "max_position_embeddings": given.whole("context_length"),
            architecture.epsilon: _epsilon(given),
            "rope_theta": given.number("rope.freq_base", 10000.0),
            "partial_rotary_factor": given.whole("rope.dimension_count", head_dim) / head_dim,
            "rope_scaling": _scaling(given),
            "attention_bias": attention_bias,
            "use_bias": attention_bias,
            "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
            "tie_word_embeddings": "output.weight" not in header.tensors,
            **architecture.fields,
        },
        str(header.path),
    )


def _own(header: Header) -> dict[str, Any]:
    """The metadata of the file's architecture, without its name before each key."""
    prefix = f"{header.metadata['general.architecture']}."
    return {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}


def _rows(header: Header, name: str) -> int:
    if name not in header.tensors:
        raise CheckpointError(f"{header.path}: lacks {name}")
    return header.tensors[name].shape[0]


def _epsilon(given: Config) -> float:
    name = "attention.layer_norm_rms_epsilon"
    return given.number("attention.layer_norm_epsilon" if given.get(name) is None else name)


def _scaling(given: Config) -> dict[str, Any] | None:
    """The stretch of rotary positions, in transformers' form."""
    kind = given.get("rope.scaling.type", "none")
    if kind == "none":
        given.only("rope.scale_linear", None, 1.0)
        return None
    given.only("rope.scaling.type", "linear", "yarn")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": given.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = given.whole("rope.scaling.original_context_length")
        for name in ("attn_factor", "beta_fast", "beta_slow", "ext_factor"):
            given.only(f"rope.scaling.yarn_{name}", None)
    return scaling

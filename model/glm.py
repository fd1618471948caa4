"""GLM v1: the network of "GLM: General Language Model Pretraining with Autoregressive Blank Infilling".

Two learned position tables, pre-LayerNorm blocks, a head tied to the embedding. Parameter names are those of
the published checkpoints. Where keys and values live is the caller's business (`model.attention`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attend
from model.config import GLMConfig
from quant import cpu
from quant.linear import Embedding, Linear, Weight
from quant.schemes import Float, Head, Scheme


class SelfAttention(nn.Module):
    """Multi-head attention; the rows of `query_key_value` are all queries, all keys, all values."""

    def __init__(self, config: GLMConfig, layer: int, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__()
        h = config.hidden_size
        self.layer = layer
        self.heads = (config.num_attention_heads, config.head_dim)
        self.query_key_value = Linear(h, 3 * h, scheme, dtype)
        self.dense = Linear(h, h, scheme, dtype)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        q, k, v = (t.unflatten(-1, self.heads) for t in self.query_key_value(x).chunk(3, dim=-1))
        mixed: Tensor = self.dense(attend(self.layer, q, k, v).flatten(-2))
        return mixed


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation of GELU.

    Not `F.gelu`, but for training: on a CPU it computes the last elements of each thread's share by another formula,
    so that a row's bits would depend on the rows beside it.
    """
    if x.requires_grad:
        return F.gelu(x, approximate="tanh")
    if x.device.type == "cpu" and x.dtype == torch.float32 and cpu.variant() is not None:
        return cpu.gelu(x)
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))


class MLP(nn.Module):
    """Two linears with the tanh approximation of GELU, as the original code has it."""

    def __init__(self, config: GLMConfig, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__()
        h = config.hidden_size
        self.dense_h_to_4h = Linear(h, 4 * h, scheme, dtype)
        self.dense_4h_to_h = Linear(4 * h, h, scheme, dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense_4h_to_h(gelu(self.dense_h_to_4h(x)))
        return out


class Block(nn.Module):
    """h += Attention(LN(h)); h += MLP(LN(h))."""

    def __init__(self, config: GLMConfig, layer: int, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon, dtype=dtype)
        self.attention = SelfAttention(config, layer, scheme, dtype)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon, dtype=dtype)
        self.mlp = MLP(config, scheme, dtype)

    def forward(self, h: Tensor, attend: Attend) -> Tensor:
        h = h + self.attention(self.input_layernorm(h), attend)
        out: Tensor = h + self.mlp(self.post_attention_layernorm(h))
        return out


class Transformer(nn.Module):
    """Position tables, blocks and the final norm."""

    def __init__(self, config: GLMConfig, scheme: Scheme, dtype: torch.dtype) -> None:
        super().__init__()
        rows = config.max_sequence_length + 1
        self.position_embeddings = nn.Embedding(rows, config.hidden_size, dtype=dtype)
        self.block_position_embeddings = nn.Embedding(rows, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(Block(config, i, scheme, dtype) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon, dtype=dtype)


class GLM(nn.Module):
    """Token ids, positions and block positions, each [...], to hidden states [..., hidden_size]."""

    def __init__(
        self,
        config: GLMConfig,
        scheme: Scheme | None = None,
        dtype: torch.dtype = torch.float32,
        head: Head | None = None,
    ) -> None:
        """`scheme` stores the blocks' matrices, `head` the embedding and head; both are `dtype` when left out."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, head or Float(dtype), dtype)
        self.transformer = Transformer(config, scheme or Float(dtype), dtype)

    def forward(self, token_ids: Tensor, positions: Tensor, block_positions: Tensor, attend: Attend) -> Tensor:
        t = self.transformer
        h = (
            self.word_embeddings(token_ids)
            + t.position_embeddings(positions)
            + t.block_position_embeddings(block_positions)
        )
        for block in t.layers:
            h = block(h, attend)
        out: Tensor = t.final_layernorm(h)
        return out

    @property
    def num_parameters(self) -> int:
        """Weights, however they are stored."""
        count = 0
        for module in self.modules():
            own = module.packed() if isinstance(module, Weight) else {}
            count += module.in_features * module.out_features if isinstance(module, Weight) else 0
            count += sum(p.numel() for n, p in module.named_parameters(recurse=False) if n not in own)
        return count

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] → [..., vocab_size] float32, by the tied embedding."""
        return self.word_embeddings.logits(hidden)

"""The network of every family: embeddings, transformer blocks and head, built from an `Architecture`.

Parameter names are those of GLM's published checkpoints. The caller keeps keys and values (`model.attention`).
`model.families` names the sources of each family's choices.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.architecture import Architecture
from model.attention import Attend
from model.parallel import ALONE, Ranks, RowLinear, VocabularyEmbedding
from model.rotary import RotaryAngles, rotate, rotation
from quant.adapted import Adapted
from quant.linear import Linear, Weight
from quant.operators.gelu_tanh import gelu_tanh
from quant.scheme import HeadScheme, Scheme
from quant.schemes.none import Float

_DROPPED_IN_TRAINING = 0.15 * 0.8  # of 15 % of the tokens, which were predicted, four in five were masks


class SelfAttention(nn.Module):
    """Multi-head attention, or grouped-query attention if there are fewer key and value heads. A rank has its own
    heads."""

    def __init__(
        self, architecture: Architecture, layer: int, scheme: Scheme, dtype: torch.dtype, ranks: Ranks
    ) -> None:
        super().__init__()
        a = architecture
        self.layer = layer
        self.heads = ranks.share(a.num_attention_heads, "num_attention_heads")
        self.kv_heads = ranks.share_or_copy(a.num_key_value_heads, "num_key_value_heads")
        self.head_dim = a.head_dim
        self.by_head = a.qkv_rows == "heads"
        self.rotary, self.reach = a.rotary_of(layer), a.reach(layer)
        rows = (self.heads + 2 * self.kv_heads) * a.head_dim
        self.query_key_value = Linear(a.hidden_size, rows, scheme, dtype, a.qkv_bias)
        self.dense = RowLinear(self.heads * a.head_dim, a.hidden_size, scheme, dtype, a.bias, ranks)

    def forward(self, x: Tensor, cos_sin: RotaryAngles | None, attend: Attend) -> Tensor:
        """x [..., hidden_size] → [..., hidden_size]. `cos_sin` rotates queries and keys; None does not."""
        q, k, v = self._split(self.query_key_value(x))
        if cos_sin is not None and self.rotary is not None:
            q, k = rotate(q, cos_sin, self.rotary), rotate(k, cos_sin, self.rotary)
        mixed: Tensor = self.dense(attend(self.layer, q, k, v, self.reach).flatten(-2))
        return mixed

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., heads, head_dim], and keys and values [..., kv_heads, head_dim]."""
        if self.by_head:
            q, k, v = qkv.reshape(*qkv.shape[:-1], self.heads, 3 * self.head_dim).chunk(3, dim=-1)
            return q, k, v
        heads = qkv.reshape(*qkv.shape[:-1], -1, self.head_dim)
        first, second = self.heads, self.heads + self.kv_heads
        return heads[..., :first, :], heads[..., first:second, :], heads[..., second:, :]


# On a CPU torch's own gelu and silu compute the last elements of each thread's share by another formula than the rest,
# so that a row's bits would depend on the rows beside it. The operations of these functions do not. Training uses
# torch's own, whose gradients are faster.


def gelu(x: Tensor) -> Tensor:
    """x [...] → GELU(x) [...], by the error function."""
    return F.gelu(x) if x.requires_grad else 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))


def silu(x: Tensor) -> Tensor:
    """x [...] → x · sigmoid(x) [...]."""
    return F.silu(x) if x.requires_grad else x / (1.0 + torch.exp(-x))


class MLP(nn.Module):
    """Two linears with an activation between them. A gated MLP's first linear gives gate and values as two halves of
    rows."""

    def __init__(self, architecture: Architecture, scheme: Scheme, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        a = architecture
        self.activation = a.activation
        inner = ranks.share(a.inner_hidden_size, "inner_hidden_size")
        bias = a.bias if a.mlp_bias is None else a.mlp_bias
        self.dense_h_to_4h = Linear(a.hidden_size, (1 + a.gated) * inner, scheme, dtype, bias)
        self.dense_4h_to_h = RowLinear(inner, a.hidden_size, scheme, dtype, bias, ranks)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] → [..., hidden_size]."""
        out: Tensor = self.dense_4h_to_h(self._activated(self.dense_h_to_4h(x)))
        return out

    def _activated(self, x: Tensor) -> Tensor:
        if self.activation == "gelu_tanh":
            return F.gelu(x, approximate="tanh") if x.requires_grad else gelu_tanh(x)
        if self.activation == "gelu":
            return gelu(x)
        first, second = x.chunk(2, dim=-1)
        if self.activation == "geglu":
            return first * gelu(second)
        return (silu(first) if self.activation == "swiglu" else gelu(first)) * second


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (arXiv 1910.07467)."""

    def __init__(self, architecture: Architecture, dtype: torch.dtype) -> None:
        super().__init__()
        width = architecture.hidden_size
        self.epsilon = architecture.epsilon
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))
        self.is_rms = architecture.norm == "rms"
        with_bias = architecture.norm_bias and not self.is_rms
        self.bias = nn.Parameter(torch.zeros(width, dtype=dtype)) if with_bias else None
        self.adapted: Adapted | None = None  # biases only

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] → [..., hidden_size]."""
        if self.is_rms:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)
        out = F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.epsilon)
        return out if self.adapted is None else self.adapted.added(out, x)


class Block(nn.Module):
    """Attention and MLP, each a branch beside the residual stream (see `Architecture.residual`)."""

    def __init__(
        self, architecture: Architecture, layer: int, scheme: Scheme, dtype: torch.dtype, ranks: Ranks = ALONE
    ) -> None:
        super().__init__()
        self.residual, self.alpha = architecture.residual, architecture.alpha
        self.input_layernorm = Norm(architecture, dtype) if layer or architecture.first_norm else nn.Identity()
        self.attention = SelfAttention(architecture, layer, scheme, dtype, ranks)
        self.post_attention_layernorm = Norm(architecture, dtype)
        self.mlp = MLP(architecture, scheme, dtype, ranks)
        if self.residual == "sandwich":
            self.post_self_attn_layernorm = Norm(architecture, dtype)
            self.post_mlp_layernorm = Norm(architecture, dtype)

    def forward(self, h: Tensor, cos_sin: RotaryAngles | None, attend: Attend) -> Tensor:
        """h [..., hidden_size] → [..., hidden_size]. `attend` has this layer's keys and values."""
        if self.residual == "post":
            h = self.input_layernorm(h + self.attention(h, cos_sin, attend))
            out: Tensor = self.post_attention_layernorm(h + self.mlp(h))
            return out
        x: Tensor = self.input_layernorm(h)
        branch: Tensor = self.attention(x, cos_sin, attend)
        if self.residual == "sandwich":
            branch = self.post_self_attn_layernorm(branch)
        h = self.alpha * x + branch if self.residual == "deep" else h + branch
        x = self.post_attention_layernorm(h)
        branch = self.mlp(x)
        if self.residual == "sandwich":
            branch = self.post_mlp_layernorm(branch)
        out = self.alpha * x + branch if self.residual == "deep" else h + branch
        return out


def table(rows: int, width: int, dtype: torch.dtype) -> nn.Embedding:
    """A learned table without values. torch's own would draw numbers, and import its compiler for that on `meta`."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width, dtype=dtype))


class Transformer(nn.Module):
    """The learned position tables, blocks and final norm of an architecture."""

    def __init__(self, architecture: Architecture, scheme: Scheme, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        a = architecture
        if a.position_rows:
            self.position_embeddings = table(a.position_rows, a.hidden_size, dtype)
        if a.block_rows:
            self.block_position_embeddings = table(a.block_rows, a.hidden_size, dtype)
        if a.embedding_norm:
            self.embedding_layernorm = Norm(a, dtype)
        self.layers = nn.ModuleList(Block(a, i, scheme, dtype, ranks) for i in range(a.num_layers))
        if a.final_norm:
            self.final_layernorm = Norm(a, dtype)


class MaskedLMHead(nn.Module):
    """BERT's transform before its tied head, complete on every rank, and the head's bias for this rank's ids."""

    def __init__(self, architecture: Architecture, scheme: Scheme, dtype: torch.dtype, num_ids: int) -> None:
        super().__init__()
        a = architecture
        self.dense = Linear(a.hidden_size, a.hidden_size, scheme, dtype, a.head_bias)
        self.layernorm = Norm(a, dtype)
        self.bias = nn.Parameter(torch.zeros(num_ids, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., hidden_size] → transformed [..., hidden_size]."""
        out: Tensor = self.layernorm(gelu(self.dense(hidden)))
        return out


def dropout_scale(dropped: Tensor, share: Tensor) -> Tensor:
    """Factors [...] of token embeddings, of which some are `dropped` [...]; `share` [...] of a text are (see
    `Architecture.dropped_token`)."""
    return torch.where(dropped, 0.0, (1 - _DROPPED_IN_TRAINING) / (1 - share))


def rotations(
    a: Architecture, positions: Tensor, block_positions: Tensor, dtype: torch.dtype
) -> list[RotaryAngles | None]:
    """For each layer the cosines and sines of positions [...], as `Network.rotations` gives them."""
    kinds = [a.rotary_of(layer) for layer in range(a.num_layers)]
    made = {r: rotation(r, a.max_sequence_length + 1, positions, block_positions, dtype) for r in {*kinds} if r}
    return [made[r] if r else None for r in kinds]


class Network(nn.Module):
    """A network: token ids, positions and block positions, each [...] → hidden states [..., hidden_size]."""

    def __init__(
        self,
        architecture: Architecture,
        scheme: Scheme | None = None,
        dtype: torch.dtype = torch.float32,
        head: HeadScheme | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """`scheme` stores the blocks' matrices, `head` the embedding and head; both are `dtype` when left out.

        Of several ranks each makes its own part. Raises UsageError for heads or widths that they do not divide.
        """
        super().__init__()
        a = architecture
        scheme, head = scheme or Float(dtype), head or Float(dtype)
        self.architecture = a
        self.dtype = dtype
        self.word_embeddings = VocabularyEmbedding(a.vocab_size, a.hidden_size, head, dtype, ranks)
        self.vocabulary = self.word_embeddings.vocabulary
        self.transformer = Transformer(a, scheme, dtype, ranks)
        self.kv_heads = ranks.share_or_copy(a.num_key_value_heads, "num_key_value_heads")  # of keys and values
        if a.head == "own":
            self.lm_head = VocabularyEmbedding(a.vocab_size, a.hidden_size, head, dtype, ranks)
        if a.head == "masked_lm":
            self.mlm_head = MaskedLMHead(a, scheme, dtype, self.vocabulary.span[1])
        if a.next_sentence:
            self.pooler = nn.Linear(a.hidden_size, a.hidden_size, dtype=dtype)
            self.next_sentence = nn.Linear(a.hidden_size, 2, dtype=dtype)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.transformer.parameters()).device

    def forward(self, token_ids: Tensor, positions: Tensor, block_positions: Tensor, attend: Attend) -> Tensor:
        """Token ids, positions and block positions, each [...] → hidden states [..., hidden_size]."""
        h = self.embedded(token_ids, positions, block_positions, attend)
        angles = self.rotations(positions, block_positions)
        for block, cos_sin in zip(self.transformer.layers, angles, strict=True):
            h = block(h, cos_sin, attend)
        return self.transformer.final_layernorm(h) if self.architecture.final_norm else h

    def embedded(self, token_ids: Tensor, positions: Tensor, block_positions: Tensor, attend: Attend) -> Tensor:
        """Input of the first block, [..., hidden_size], for ids and positions [...]."""
        t, a = self.transformer, self.architecture
        h = self.word_embeddings(token_ids)
        if a.dropped_token is not None:
            dropped = token_ids == a.dropped_token
            h = h * dropout_scale(dropped, attend.share(dropped))[..., None].to(h.dtype)
        if a.position_rows:
            h = h + t.position_embeddings(positions + a.position_offset)
        if a.block_rows:
            h = h + t.block_position_embeddings(block_positions)
        out: Tensor = t.embedding_layernorm(h) if a.embedding_norm else h
        return out

    def rotations(self, positions: Tensor, block_positions: Tensor) -> list[RotaryAngles | None]:
        """For each layer the cosines and sines [..., 1, axes, size / axes / 2] that rotate queries and keys; None
        without rotary positions."""
        return rotations(self.architecture, positions, block_positions, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., hidden_size] → logits [..., vocab_size] float32, or this rank's part (see
        `vocabulary`)."""
        if self.architecture.head == "own":
            return self.lm_head.logits(hidden)
        if self.architecture.head == "masked_lm":
            return self.word_embeddings.logits(self.mlm_head(hidden)) + self.mlm_head.bias.float()
        return self.word_embeddings.logits(hidden)

    def next_sentence_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., hidden_size] of the first token → [..., 2] float32: the second sentence follows, or does
        not."""
        out: Tensor = self.next_sentence(torch.tanh(self.pooler(hidden))).float()
        return out

    @property
    def num_parameters(self) -> int:
        """Number of this rank's weights, whatever their storage."""
        count = 0
        for module in self.modules():
            own = module.packed() if isinstance(module, Weight) else {}
            count += module.in_features * module.out_features if isinstance(module, Weight) else 0
            count += sum(p.numel() for n, p in module.named_parameters(recurse=False) if n not in own)
        return count

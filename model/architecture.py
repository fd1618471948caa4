"""The architecture of a network: the sizes and choices by which the families differ, as data."""

from dataclasses import dataclass
from typing import Literal

from model.stretch import Stretch


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding (arXiv 2104.09864): it rotates pairs of a head's numbers by position × frequency.

    It rotates the first `size` numbers of a head and keeps the rest. With `axes` 2 the first half of them rotates by
    the position, the second by the block position. A pair is (i, i + half) of its axis, or (2i, 2i + 1) if
    `interleaved`. `angles` is the precision of frequencies and angles in training: float16 rounds them by up to half a
    radian at far positions, and the weights are trained with that. A `stretch` changes frequencies for texts longer
    than those of training.
    """

    size: int
    base: float = 10000.0
    axes: int = 1
    interleaved: bool = False
    angles: Literal["float32", "float16"] = "float32"
    stretch: Stretch | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """Attention of some layers to near tokens only (sliding windows: Longformer, arXiv 2004.05150).

    In these `layers` a row sees the tokens at most `reach` places away, on both sides, and positions turn by a `rotary`
    of their own.
    """

    layers: tuple[int, ...]
    reach: int  # tokens
    rotary: Rotary


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes and choices of a network, from which `model.network` builds it.

    `vocab_size` counts rows of the embedding, which may be padded past the tokenizer's last id. `position_rows` and
    `block_rows` are the rows of learned tables that are added to the embedding, 0 for none (BERT's second table holds
    its token types). `position_offset` is the row of position 0.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    inner_hidden_size: int  # of the MLP
    vocab_size: int
    max_sequence_length: int  # tokens
    epsilon: float = 1e-5  # of the norms
    position_rows: int = 0
    position_offset: int = 0
    block_rows: int = 0
    # In ESM-2 (bioRxiv 2022.07.20.500902) the embedding of this token, the mask, is zero, and the others are scaled to
    # the sum of training, where 12 % of a text were masks.
    dropped_token: int | None = None
    embedding_norm: bool = False
    rotary: Rotary | None = None
    local: Local | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True  # of a LayerNorm
    first_norm: bool = True  # before the first layer's attention; ModernBERT has the embedding's norm there
    # pre:      h += f(norm(h))           GLM, GLM-4
    # sandwich: h += norm'(f(norm(h)))    GLM-4-0414
    # deep:     n = norm(h); h = α·n + f(n)   GLM-130B, ChatGLM-6B (arXiv 2203.00555, with the norm before the branch)
    # post:     h = norm(h + f(h))        BERT
    residual: Literal["pre", "sandwich", "deep", "post"] = "pre"
    alpha: float = 1.0
    # Gated: GLM-130B's geglu gates by the second half of its rows, ModernBERT's geglu_first by the first.
    activation: Literal["gelu_tanh", "gelu", "geglu", "geglu_first", "swiglu"] = "gelu_tanh"
    # Rows of query_key_value: all queries, all keys, all values; or the three of head 0, of head 1, …
    qkv_rows: Literal["parts", "heads"] = "parts"
    qkv_bias: bool = True
    bias: bool = True  # of the other linears
    mlp_bias: bool | None = None  # of the MLP's linears; None: as `bias`
    head: Literal["tied", "own", "masked_lm"] = "tied"
    head_bias: bool = True  # of the linear in a masked language model's head
    next_sentence: bool = False  # has a pooler and a next-sentence classifier
    causal: bool = False  # a context's tokens see only those before them
    in_place: bool = False  # a mask's own row predicts its token, as with a masked_lm head

    @property
    def masked(self) -> bool:
        """Whether it is a masked language model, which writes each mask's token in its own place."""
        return self.in_place or self.head == "masked_lm"

    @property
    def gated(self) -> bool:
        """Whether the MLP is gated: GeGLU or SwiGLU (arXiv 2002.05202)."""
        return self.activation in ("geglu", "geglu_first", "swiglu")

    @property
    def final_norm(self) -> bool:
        """Whether a norm follows the last block."""
        return self.residual != "post"

    def reach(self, layer: int) -> int | None:
        """How many places away the tokens are that a layer's rows see; None: all."""
        return self.local.reach if self.local is not None and layer in self.local.layers else None

    def rotary_of(self, layer: int) -> Rotary | None:
        """A layer's rotary positions."""
        return self.local.rotary if self.local is not None and layer in self.local.layers else self.rotary

    @property
    def qkv_sections(self) -> tuple[int, ...]:
        """Rows of the sections of query_key_value. The ranks divide each section."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return (queries, keys, keys) if self.qkv_rows == "parts" else (queries + 2 * keys,)

    @property
    def qkv_heads(self) -> tuple[int, ...]:
        """Heads of each section of query_key_value."""
        heads = self.num_attention_heads, self.num_key_value_heads
        return (heads[0], heads[1], heads[1]) if self.qkv_rows == "parts" else heads[:1]

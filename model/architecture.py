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


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes and choices of a network, from which `model.network` builds it.

    `vocab_size` counts rows of the embedding, which may be padded past the tokenizer's last id. `position_rows` and
    `block_rows` are the rows of learned tables that are added to the embedding, 0 for none (BERT's second table holds
    its token types).
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
    block_rows: int = 0
    rotary: Rotary | None = None
    norm: Literal["layer", "rms"] = "layer"
    # pre:      h += f(norm(h))           GLM, GLM-4
    # sandwich: h += norm'(f(norm(h)))    GLM-4-0414
    # deep:     n = norm(h); h = α·n + f(n)   GLM-130B, ChatGLM-6B (arXiv 2203.00555, with the norm before the branch)
    # post:     h = norm(h + f(h))        BERT
    residual: Literal["pre", "sandwich", "deep", "post"] = "pre"
    alpha: float = 1.0
    activation: Literal["gelu_tanh", "gelu", "geglu", "swiglu"] = "gelu_tanh"
    # Rows of query_key_value: all queries, all keys, all values; or the three of head 0, of head 1, …
    qkv_rows: Literal["parts", "heads"] = "parts"
    qkv_bias: bool = True
    bias: bool = True  # of the other linears
    head: Literal["tied", "own", "masked_lm"] = "tied"
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
        return self.activation in ("geglu", "swiglu")

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

"""The roofline: the time of a step if memory, arithmetic units and links are as busy as they can be.

The efficiencies are the same for all cards. They are those of good kernels, not measurements of this program on these
cards; docs/planning.md compares the results with published times.
"""

from dataclasses import dataclass

from engine.planning.cards import Card
from engine.planning.deployment import Deployment
from engine.planning.footprint import Footprint
from model.checkpoint import compute_dtype
from model.parallel import SMALL
from quant.scheme import Scheme

# Share of the nominal bandwidth for weights that are read once and in order. The CPU kernels here reach 85 % of the
# measured bandwidth, which is less than nominal. llama.cpp is reported at 65-70 % of nominal on a desktop. In float16
# FasterTransformer reached 56 % on eight A100, all other work of a step included.
BANDWIDTH_SHARE = 0.7
# Share of the rate at boost clock, over a whole encoding. No card keeps that clock in products, and the norms,
# activations and attention between them run at the memory's speed. Megatron reached 46-56 % on eight A100.
RATE_SHARE = 0.5
# Share of a link's nominal rate, which packets and short messages lower.
LINK_SHARE = 0.7
# Minimum seconds from the start of a kernel to the next one's, if a captured graph launches it or it is launched ahead.
# From Python it is 5e-6 or more, a Triton kernel's 20e-6 or more; on a CPU it is an operator's dispatch.
KERNEL_S = 4e-6
BLOCK_KERNELS = 40  # kernels of a block: each family has 23 to 48 operators; a quantized product on a GPU is two
STEP_KERNELS = 40  # kernels of a step outside the blocks
# Bytes of memory traffic per weight if quant/gpu.py makes float copies (before Ampere, more than 64 rows): int8 codes,
# float32 and float16, each written and read again.
_COPIED_BYTES = 14


@dataclass(frozen=True, slots=True)
class Roofline:
    """The times of one rank, in seconds."""

    deployment: Deployment
    card: Card
    footprint: Footprint

    def token(self, num_tokens: float) -> float:
        """Seconds of a decode step of one row that sees so many tokens."""
        f, a = self.footprint, self.deployment.architecture
        read = self._read(f.step_bytes + num_tokens * f.kv_bytes_per_token)
        macs = f.layer_macs + f.head_macs + num_tokens * f.score_macs
        return max(read, self._computed(macs)) + self._sums(1) + self._kernels() + self._gathered(a.vocab_size * 4)

    def generate(self, num_tokens: int) -> float:
        """Seconds of generating so many tokens. The time of a token grows linearly with the tokens before it."""
        return num_tokens * self.token((num_tokens + 1) / 2)

    def encode(self, num_tokens: int) -> float:
        """Seconds of one step that encodes a context of so many tokens, with the logits of one row."""
        f = self.footprint
        macs = num_tokens * f.layer_macs + f.head_macs + num_tokens**2 * f.score_macs
        computed = self._computed(macs)
        if self._scheme.copies_weight(self.card.capability, num_tokens):
            computed += self._read(_COPIED_BYTES * f.layer_macs)
        slower = max(self._read(f.step_bytes), computed)
        return slower + self._sums(num_tokens) + self._kernels()

    @property
    def _scheme(self) -> Scheme:
        return self.deployment.schemes(self.card.kind)[0]

    def _read(self, num_bytes: float) -> float:
        return num_bytes / (self.card.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE)

    def _computed(self, macs: float) -> float:
        """At the rate of the numbers that the scheme multiplies."""
        bits = self._scheme.activation_bits(self.card.kind)
        rate = self.card.int8_tops if bits <= 8 else self.card.float_tflops
        return 2 * macs / (rate * 1e12 * RATE_SHARE)

    def _sums(self, rows: int) -> float:
        """Partial sums over all ranks, two a block and one of the embedding, as model/parallel.py makes them."""
        a, ranks = self.deployment.architecture, self.deployment.ranks
        numbers = rows * a.hidden_size
        num_bytes = numbers * compute_dtype(self.card.kind).itemsize
        if ranks > 2 and numbers <= SMALL:
            one = self._exchanged(num_bytes * (ranks - 1), ranks - 1)
        else:
            one = self._exchanged(2 * num_bytes * (ranks - 1) / ranks, 2 * (ranks - 1))
        return (2 * a.num_layers + 1) * one

    def _gathered(self, num_bytes: float) -> float:
        """A row of log-probabilities, collected by one rank."""
        ranks = self.deployment.ranks
        return self._exchanged(num_bytes * (ranks - 1) / ranks, ranks - 1)

    def _exchanged(self, num_bytes: float, hops: int) -> float:
        return hops * self.card.hop_us * 1e-6 + num_bytes / (self.card.link_gb_s * 1e9 * LINK_SHARE)

    def _kernels(self) -> float:
        return (self.deployment.architecture.num_layers * BLOCK_KERNELS + STEP_KERNELS) * KERNEL_S

"""GPUs before Ampere: Triton does not reach their tensor cores. Imports neither torch nor Triton."""

AMPERE = 8  # the compute capability from which Triton reaches tensor cores
ORDINARY_ROWS = 64  # rows up to which the ordinary units compute the product
COPIED_OUTPUTS = 1024  # outputs whose weights are floats in memory at once, above that
# Bytes of memory a weight that is copied: int8 codes, float32 numbers, and two more of float16.
COPY_BYTES = 8


def copies_before_ampere(capability: float | None, rows: int) -> bool:
    """Whether a product of quantized weights with `rows` rows makes float copies of them. `capability` None is a
    CPU."""
    return capability is not None and capability < AMPERE and rows > ORDINARY_ROWS

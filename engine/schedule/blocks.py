"""The block pool: integers with reference counts, no tensors."""

from collections.abc import Sequence


class BlockPool:
    """Hands out blocks 0 … num_blocks − 1; a block is free again when its last holder lets go."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks that many tokens need."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks held once, or None (and no change) if fewer are free."""
        if count > len(self._free):
            return None
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._counts[block] = 1
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """One more holder for each block."""
        for block in blocks:
            assert self._counts[block] > 0, f"block {block} is free"
            self._counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each block."""
        for block in blocks:
            assert self._counts[block] > 0, f"block {block} is free"
            self._counts[block] -= 1
            if not self._counts[block]:
                self._free.append(block)

    def holders(self, block: int) -> int:
        return self._counts[block]

    def check(self) -> None:
        """Asserts that no block is lost, held while free, or free twice."""
        assert len(set(self._free)) == len(self._free)
        assert all((self._counts[b] == 0) == (b in set(self._free)) for b in range(self.num_blocks))

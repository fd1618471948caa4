"""The block pool: block numbers with reference counts, no tensors."""

from collections.abc import Sequence


class BlockPool:
    """The blocks 0 … num_blocks − 1. A block is free again when its last holder releases it."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Number of free blocks."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Number of blocks for that many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """`count` free blocks, held once each; None, without a change, if fewer are free."""
        if count > len(self._free):
            return None
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._counts[block] = 1
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """Adds one holder to each block."""
        for block in blocks:
            assert self._counts[block] > 0, f"block {block} is free"
            self._counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Removes one holder from each block."""
        for block in blocks:
            assert self._counts[block] > 0, f"block {block} is free"
            self._counts[block] -= 1
            if not self._counts[block]:
                self._free.append(block)

    def holders(self, block: int) -> int:
        """Number of holders of a block."""
        return self._counts[block]

    def check(self) -> None:
        """Asserts that no block is lost, held while free, or free twice."""
        assert len(set(self._free)) == len(self._free)
        assert all((self._counts[b] == 0) == (b in set(self._free)) for b in range(self.num_blocks))

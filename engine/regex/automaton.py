"""A finite automaton over bytes, as arrays: a compiled regular expression."""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SPACE = 0x20
_HEADER = struct.Struct("=II")


@dataclass(frozen=True, slots=True)
class Automaton:
    """An automaton over bytes. From every state an accepting one can be reached.

    `table` [states + 1, 256] int16 has the next state for each byte, −1 for none; its last row is that of −1.
    `accepting` [states + 1] bool has the states in which a text may end.
    """

    table: NDArray[np.int16]
    accepting: NDArray[np.bool_]
    start: int

    @classmethod
    def read(cls, data: bytes) -> "Automaton":
        """Reads the output of `engine.regex.child` behind its "D". Raises ValueError for anything else."""
        if len(data) < _HEADER.size:
            raise ValueError("an automaton without its header")
        num_states, start = _HEADER.unpack_from(data)
        if start >= num_states or len(data) != _HEADER.size + num_states + 512 * num_states:
            raise ValueError("an automaton of another size than it says")
        ends = np.frombuffer(data, np.uint8, num_states, _HEADER.size)
        table = np.frombuffer(data, np.int16, 256 * num_states, _HEADER.size + num_states).reshape(-1, 256)
        if table.min() < -1 or table.max() >= num_states:
            raise ValueError("an automaton that leads to states which it does not have")
        return cls(*_closed(table, ends > 0), start)

    @property
    def num_states(self) -> int:
        """Number of states."""
        return len(self.table) - 1

    def after(self, state: int, data: bytes) -> int:
        """The state after some bytes; −1 if they lead nowhere."""
        for byte in data:
            state = int(self.table[state, byte])
        return state

    def losing_space(self, behind: int) -> "Automaton":
        """The automaton of texts that lose a space behind a byte; it reads them with that space."""
        n, rows = self.num_states, self.table[:-1].copy()
        marked = rows[:, behind] >= 0
        rows[marked, behind] += n
        marked_rows = rows.copy()
        marked_rows[:, _SPACE] = np.arange(n)
        table = np.concatenate([rows, marked_rows])
        return Automaton(*_closed(table, np.tile(self.accepting[:-1], 2)), self.start)

    def with_row(self, row: NDArray[np.int16], accepting: bool) -> tuple["Automaton", int]:
        """The automaton with one more state, and the number of that state."""
        table = np.concatenate([self.table[:-1], row[None]])
        return Automaton(*_closed(table, np.append(self.accepting[:-1], accepting)), self.start), self.num_states

    def with_optional_space(self, state: int) -> tuple["Automaton", int]:
        """The automaton with one more state, like `state` except that it ignores a first space."""
        row = self.table[state].copy()
        row[_SPACE] = state
        return self.with_row(row, bool(self.accepting[state]))

    def with_space(self, state: int) -> tuple["Automaton", int]:
        """The automaton with one more state, from which only a space leads on, to `state`."""
        row = np.full(256, -1, np.int16)
        row[_SPACE] = state
        return self.with_row(row, False)


def _closed(table: NDArray[np.int16], accepting: NDArray[np.bool_]) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """With a last row, which index −1 is, for being nowhere."""
    return np.pad(table, ((0, 1), (0, 0)), constant_values=-1), np.append(accepting, False)

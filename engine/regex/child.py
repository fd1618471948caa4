"""The process that compiles one regular expression: `python -m engine.regex.child SECONDS KIND`.

It reads the pattern, or the JSON schema if KIND says so, from standard input. It first writes "S": from here on, the
pattern causes any failure. Then it writes "D", the seconds of processor time as a double, the number of states and the
start state as two uint32, one byte per state that is 1 if a text may end there, and 256 int16 per state: the next state
for each byte, −1 for none. Or it writes "E" and the reason of a failure, "U" for an unsupported part of a schema.
outlines-core does the work, over a vocabulary of the 256 bytes, within a limit of memory and of SECONDS of processor
time; the caller has a clock and may kill the process at any moment.
"""

import resource
import struct
import sys
import time
from array import array

import outlines_core

from engine.regex.anchors import plain
from engine.regex.json_schema import Unsupported, expression
from quant.usage import UsageError

MEMORY = 1 << 30  # bytes of address space
MAX_STATES = 8_000
# Stands before the pattern: with nothing before it, outlines-core takes no pattern that looks at the end. Behind the
# end of a line a line begins, as at the start of a text.
_FIRST = ord("\n")
# outlines-core's own message would quote the pattern.
_REASONS = {
    "word boundaries": "a word boundary must be of ASCII words, (?-u:\\b)",
    "no transitions": "a part of it matches no text, such as what stands behind a $ or in an empty class",
    "error building NFA": "it is not valid in the syntax of Rust's regex crate",
}
_OTHER = "outlines-core does not take it"


def compiled(pattern: str) -> bytes:
    """The automaton of all texts that the pattern matches as a whole. Raises UsageError with the reason if there is
    none."""
    body, is_extended = plain(pattern)
    return automaton(body + "\n" if is_extended else body)  # a line's end is that of a comment


def compiled_schema(text: str) -> bytes:
    """The automaton of texts that fulfil a JSON schema. Raises UsageError with the reason if there is none."""
    return automaton(expression(text, _bytes_of))


def _bytes_of(pattern: str) -> set[int]:
    """The bytes of all texts that a pattern matches whole. Raises UsageError."""
    data = compiled(pattern)
    (count, _), table = struct.unpack_from("=II", data), array("h")
    table.frombytes(data[8 + count :])
    return {at % 256 for at, target in enumerate(table) if target >= 0}


def automaton(pattern: str) -> bytes:
    """The automaton of a pattern without anchors at its ends.

    Raises UsageError if no text matches, and for too many states.
    """
    vocabulary = outlines_core.Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    try:
        # A pattern alone takes the first branch that matches, so that `a|ab` would never be "ab"; with the end behind
        # it every branch counts.
        index = outlines_core.Index(f"\\n(?:{pattern})\\z", vocabulary)
    except ValueError as error:
        raise UsageError(next((reason for sign, reason in _REASONS.items() if sign in str(error)), _OTHER)) from None
    steps: dict[int, dict[int, int]] = index.get_transitions()
    first = steps[index.get_initial_state()].get(_FIRST)
    finals = set(index.get_final_states())
    live = _live(steps, finals)
    if first not in live:
        raise UsageError("no text matches it")
    states = _reached(steps, first, live)
    if len(states) > MAX_STATES:
        raise UsageError(f"it needs {len(states)} states, the limit is {MAX_STATES}")
    numbers = {state: number for number, state in enumerate(states)}
    table = array("h", [-1]) * (256 * len(states))
    for state, number in numbers.items():
        for byte, target in steps.get(state, {}).items():
            if byte < 256 and target in live:
                table[256 * number + byte] = numbers[target]
    ends = bytes(state in finals for state in states)
    return struct.pack("=II", len(states), numbers[first]) + ends + table.tobytes()


def _live(steps: dict[int, dict[int, int]], finals: set[int]) -> set[int]:
    """The states from which an end can be reached."""
    before: dict[int, list[int]] = {}
    for state, targets in steps.items():
        for target in set(targets.values()):
            before.setdefault(target, []).append(state)
    live, left = set(finals), list(finals)
    while left:
        fresh = [state for state in before.get(left.pop(), ()) if state not in live]
        live.update(fresh)
        left += fresh
    return live


def _reached(steps: dict[int, dict[int, int]], first: int, live: set[int]) -> list[int]:
    """The live states that can be reached from the first one, that one first."""
    order = {first: None}
    left = [first]
    while left:
        targets = steps.get(left.pop(), {})
        fresh = dict.fromkeys(t for byte, t in targets.items() if byte < 256 and t in live and t not in order)
        order |= fresh
        left += fresh
    return list(order)


def main() -> None:
    """Compiles the pattern on standard input."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # The soft limit's signal is SIGXCPU. The hard one's is SIGKILL, which others send too.
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    out = sys.stdout.buffer
    out.write(b"S")
    out.flush()
    try:
        compile_ = compiled_schema if sys.argv[2] == "json_schema" else compiled
        found = compile_(sys.stdin.buffer.read().decode())
        answer = b"D" + struct.pack("=d", time.process_time()) + found
    except RecursionError:
        answer = b"Eit is nested too deeply"
    except Unsupported as error:
        answer = b"U" + str(error).encode()
    except (UsageError, MemoryError) as error:
        answer = b"E" + (str(error) or "too much memory").encode()
    out.write(answer)


if __name__ == "__main__":
    main()

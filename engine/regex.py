"""Regular expressions compiled in a process of their own, which may be slow or hungry and is then killed.

Nothing but numbers comes back, and they are checked: an automaton, with which a step has as little to do whatever the
pattern was.
"""

import subprocess
import sys

from engine.automaton import Automaton
from engine.regex_child import MEMORY
from engine.regex_child import SECONDS as PROCESSOR_SECONDS
from engine.requests import RequestError

# Of the clock, for all patterns of a request: where the processors are busy each gets its own time nevertheless.
SECONDS = 6.0


def compile_regex(pattern: str, seconds: float = SECONDS) -> Automaton:
    """The automaton of all texts that a pattern, in the syntax of Rust's regex crate, matches whole.

    Waits for the process; to be called where nothing else has to wait. Raises RequestError for a pattern that there is
    no automaton for, or none within the limits of time, memory and states.
    """
    limits = f"{PROCESSOR_SECONDS} s of a processor, {SECONDS:g} s in all or {MEMORY >> 20} MiB"
    refusal = RequestError(f"regex takes more than {limits} to compile", "regex")
    command = [sys.executable, "-m", "engine.regex_child"]
    try:
        process = subprocess.run(command, input=pattern.encode(), capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise refusal from None
    kind, data = process.stdout[:1], process.stdout[1:]
    if kind == b"D" and process.returncode == 0:
        return Automaton.read(data)
    if kind == b"E":
        raise RequestError(f"regex cannot be used: {data.decode()}", "regex")
    raise refusal

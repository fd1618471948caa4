"""The compiler of regular expressions. It runs in a process of its own, which is killed if it is slow or hungry.

Only numbers come back, and they are checked: an automaton, whose cost per step does not depend on the pattern.
"""

import math
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field

from engine.regex.automaton import Automaton
from engine.regex.child import MEMORY
from engine.requests import JsonSchema, Regex, RequestError, regex_param

PATTERN_S = 2  # of a processor, for one pattern
REQUEST_S = 4.0  # of a processor, for all patterns of a request
# Clock seconds for all patterns of a request, so that each gets its processor time on a busy machine.
CLOCK_S = 6.0
_SPENT = struct.Struct("=d")


@dataclass(slots=True)
class Allowance:
    """The rest of a request's allowance for patterns: seconds of processor time, and a time on the monotonic clock."""

    processor_s: float = REQUEST_S
    until: float = field(default_factory=lambda: time.monotonic() + CLOCK_S)


def compile_regex(pattern: Regex, allowance: Allowance | None = None) -> Automaton:
    """The automaton of all texts that a pattern (in the syntax of Rust's regex crate) matches, or of a JSON schema.

    It waits for the process, so call it where nothing else must wait. Raises RequestError for a pattern without an
    automaton, or without one within the limits of processor time, memory and states. If the machine has no time,
    process or memory left, the error's outcome is "overloaded": the same request may succeed later.
    """
    left, param = allowance or Allowance(), regex_param((pattern,))
    if left.processor_s <= 0:
        raise RequestError(f"the patterns take more than {REQUEST_S:g} s of a processor to compile", param)
    seconds = min(PATTERN_S, math.ceil(left.processor_s))
    # -P: never import from the current folder.
    command = [sys.executable, "-P", "-m", "engine.regex.child", str(seconds), param]
    text = pattern.text if isinstance(pattern, JsonSchema) else pattern
    clock_s = left.until - time.monotonic()
    try:
        process = subprocess.run(command, input=text.encode(), capture_output=True, timeout=clock_s, check=False)
    except subprocess.TimeoutExpired:
        raise _busy(f"took more than {CLOCK_S:g} s", param) from None
    except OSError as error:
        raise _busy(f"could not begin ({error.strerror})", param) from None
    if not process.stdout.startswith(b"S"):
        raise _busy("could not begin", param)
    if process.returncode == -signal.SIGKILL:
        raise _busy("was killed", param)
    kind, data = process.stdout[1:2], process.stdout[2:]
    if kind == b"D" and process.returncode == 0:
        left.processor_s -= _SPENT.unpack_from(data)[0]
        return Automaton.read(data[_SPENT.size :])
    if kind in (b"E", b"U"):
        code = "invalid_value" if kind == b"E" else "unsupported"
        raise RequestError(f"{param} cannot be used: {data.decode()}", param, code)
    raise RequestError(f"{param} takes more than {seconds} s of a processor or {MEMORY >> 20} MiB to compile", param)


def _busy(what: str, param: str) -> RequestError:
    message = f"the machine is busy: compiling {param} {what}; try again later"
    return RequestError(message, param, "regex_timeout", "overloaded")

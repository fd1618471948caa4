"""Patterns compiled in a process of their own: whose doing it is when none comes back."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from engine.regex.compiler import Allowance, compile_regex
from engine.requests import RequestError
from tests.litter import litter

BOMB = "(a|b)*a(a|b){24}"
PATIENCE_S = 60.0
# Compiles under a limit of open files that leaves so many, with what is needed here imported before.
FEW_FILES = """
import os, resource, sys
import numpy
from engine.regex.compiler import RequestError, compile_regex
used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
resource.setrlimit(resource.RLIMIT_NOFILE, (used + int(sys.argv[1]),) * 2)
try:
    print(compile_regex("a|b").num_states)
except RequestError as error:
    print(error.outcome, error.code, error.param, error.message)
"""


def refusal(pattern: str, allowance: Allowance | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        compile_regex(pattern, allowance)
    assert caught.value.param == "regex"
    return caught.value


def child() -> int | None:
    """The process that compiles for this one."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread or a process has ended
            for pid in (task / "children").read_text().split():
                if b"engine.regex.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
    return None


def signalled(number: signal.Signals) -> threading.Thread:
    """Sends a signal to the next process that compiles."""

    def send() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (pid := child()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(pid, number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_time_of_a_processor_is_the_pattern_s_own_doing() -> None:
    error = refusal(BOMB, Allowance(until=time.monotonic() + PATIENCE_S))
    assert (error.outcome, error.code) == ("invalid", "invalid_value")
    assert "2 s of a processor" in error.message


def test_patterns_share_the_time_of_their_request() -> None:
    allowance = Allowance()
    compile_regex("[0-9]{4}", allowance)
    assert 3.0 < allowance.processor_s < 4.0
    error = refusal("[0-9]{4}", Allowance(processor_s=0.0))
    assert (error.outcome, error.code) == ("invalid", "invalid_value")


@pytest.mark.parametrize(
    ("number", "clock_s", "says"), [(signal.SIGSTOP, 2.0, "took more"), (signal.SIGKILL, PATIENCE_S, "was killed")]
)
def test_time_of_the_clock_and_a_kill_from_outside_are_the_machine_s(
    number: signal.Signals, clock_s: float, says: str
) -> None:
    sender = signalled(number)
    error = refusal(BOMB, Allowance(until=time.monotonic() + clock_s))
    sender.join()
    # Killed before it began or after, which nothing here decides.
    assert (error.outcome, error.code) == ("overloaded", "regex_timeout")
    assert says in error.message or "could not begin" in error.message
    assert child() is None


@pytest.mark.parametrize("left", [0, 3, 5, 7, 9])
def test_no_descriptor_left_is_the_machine_s(left: int) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FEW_FILES, str(left)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("overloaded regex_timeout regex the machine is busy") or done.stdout == "2\n"
    assert left > 0 or done.stdout != "2\n"


def test_nothing_is_imported_from_where_a_process_stands(tmp_path: Path) -> None:
    littered = litter(tmp_path)
    code = "from engine.regex.compiler import compile_regex; print(compile_regex('a|b').num_states)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=littered, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert not (littered / "canary").exists()

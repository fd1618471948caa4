"""A rank's process with a fault, as `python -m tests.engine.processes.faulty_worker`: GLM_TEST_FAULT says which.

`raise:RANK:STEP` raises in a rank's forward pass, `hang:RANK:STEP` waits there for ever, `skip:0:STEP` has rank 0 leave
a step's number out. Rank 0 tells its faults apart by a file, so that only its first life has one.
"""

import os
import sys
import time
from pathlib import Path

from engine import loading, ranks, runner
from engine.processes import rank_process
from engine.schedule.batch import Batch, Result

KIND, RANK, STEP = os.environ["GLM_TEST_FAULT"].split(":")
ONCE = Path(os.environ["GLM_TEST_ONCE"])


class FaultyRunner(runner.Runner):
    """A runner that fails in one step."""

    steps = 0

    def run(self, batch: Batch, num_top: int) -> tuple[list[Result], int]:
        self.steps += 1
        if self.steps == int(STEP) and not ONCE.exists():
            ONCE.touch()
            if KIND == "raise":
                raise RuntimeError("at /a/path and 0x7fff")
            time.sleep(600)
        return super().run(batch, num_top)


class FaultyChannel(ranks.Channel):
    """A channel on which a step is lost."""

    def tell(self, batch: Batch, num_top: int) -> None:
        if self._step == int(STEP) and not ONCE.exists():
            ONCE.touch()
            self._step += 1
        super().tell(batch, num_top)


if __name__ == "__main__":
    if KIND == "skip":
        ranks.Channel = FaultyChannel  # type: ignore[misc]
    elif f'"rank": {RANK},' in sys.argv[3]:
        loading.Runner = FaultyRunner  # type: ignore[misc, attr-defined]
    rank_process.main()

"""A rank's own process: `python -P -m engine.processes.rank_process FD CONFIG PLACE`, started by the supervisor.

It uses the socket FD from its first moment, so that every failure, also of imports, reaches the supervisor in one line.
It ends when the supervisor closes the socket.
"""

import json
import signal
import socket
import sys
from typing import NoReturn

from engine.config import EngineConfig
from engine.processes.ending import leave, reason_of
from engine.processes.link import Link
from engine.processes.messages import NotReady
from engine.rank_info import RankInfo


def main() -> NoReturn:
    """Runs the rank of the command line, then exits with 0, or with 1 after a failure."""
    # Python's own way would end it with a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    rank_info = RankInfo(**json.loads(sys.argv[3]))
    config = EngineConfig(**json.loads(sys.argv[2]))
    try:
        from engine.processes.worker import Rank
    except BaseException as error:  # a module may even exit
        link.send(NotReady(reason_of(error)))
        leave(1)
    leave(Rank(link, config, rank_info).run())


if __name__ == "__main__":
    main()

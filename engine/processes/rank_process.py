"""A rank's own process: `python -P -m engine.processes.rank_process FD CONFIG PLACE`, which the supervisor starts.

It speaks on the socket FD from its first moment, so that whatever fails, the imports too, is told in one line. It ends
when its supervisor closes the socket.
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

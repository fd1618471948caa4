"""A rank's process without a model, as `python -m tests.engine.processes.odd_rank`: each life goes as ODD_LIVES has it.

Lives are separated by commas and the last one repeats: `exit:CODE`, `signal:NUMBER`, `fails:TEXT` (it says so itself),
`serves` (answers every request), `serves-exit:CODE` (ends with its first request),
`serves-babbles` (answers it with what is no message). ODD_COUNT is a file with a byte for
each life so far.
"""

import os
import socket
import sys
from pathlib import Path

from engine.answers import Usage
from engine.events import Done, ModelCard
from engine.processes.messages import FROM_RANK, HEADER, TO_RANK, FromRank, Happened, Loading, NotReady, Ready, Submit

CARD = ModelCard(
    name="odd", family="glm", quant="none", quant_head="none", tp=1, masks=["[MASK]"], max_context=9, max_positions=9,
    max_span=9, vocab_size=9, strategies=["append"], num_parameters=1, kernels="none", created=1,
    kv_cache_type="float32", kv_cache_tokens=9,
)  # fmt: skip


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    count = Path(os.environ["ODD_COUNT"])
    lives = os.environ["ODD_LIVES"].split(",")
    number = count.stat().st_size if count.exists() else 0
    with count.open("a") as file:
        file.write(".")
    way, _, value = lives[min(number, len(lives) - 1)].partition(":")

    def say(message: FromRank) -> None:
        line.sendall(FROM_RANK.frame(message))

    match way:
        case "exit":
            os._exit(int(value))
        case "signal":
            os.kill(os.getpid(), int(value))
        case "fails":
            say(NotReady(value))
            os._exit(1)
    say(Loading(0.5))
    say(Ready(CARD))
    stream = line.makefile("rb")
    while len(header := stream.read(HEADER.size)) == HEADER.size:
        message = TO_RANK.decode(stream.read(HEADER.unpack(header)[0]))
        if way == "serves-exit":
            os._exit(int(value))
        if way == "serves-babbles":
            line.sendall(HEADER.pack(2) + b"{}")
        elif isinstance(message, Submit):
            say(Happened([Done(message.id, Usage())]))


if __name__ == "__main__":
    main()

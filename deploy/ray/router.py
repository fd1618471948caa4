"""Which replica a request goes to: the one that has its context, unless that one is loaded.

Replicas are ranked for every context by rendezvous hashing (Thaler and Ravishankar, 1998): all gateways agree on the
order without a word, and a replica that comes or goes moves only its own share of the contexts. The first one is passed
over when it has more than its share of the load (Mirrokni, Thorup and Zadimoghaddam, 2018); then it is the less loaded
of the next two, which are again the same ones for a context (Nasir et al., 2015).
"""

from collections.abc import Sequence
from hashlib import blake2b

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

# A replica may hold so much more than the average, and so many requests on top, before others are asked.
SURPLUS = 1.25
SPARE = 4


def ranked(key: str, names: Sequence[str]) -> list[str]:
    """The names in the order in which a context's requests go to them."""
    return sorted(names, key=lambda name: blake2b(f"{key} {name}".encode(), digest_size=8).digest())


def is_loaded(name: str, loads: dict[str, int]) -> bool:
    """Whether one has more than its share of the requests in flight."""
    return loads[name] >= SURPLUS * sum(loads.values()) / len(loads) + SPARE


def groups(key: str, attempt: int, loads: dict[str, int]) -> list[list[str]]:
    """Names to be asked one group after the other; of a group it is the least loaded one.

    `loads` has the requests in flight of each; `attempt` of them, the first in order, have failed the request already.
    """
    order = ranked(key, list(loads))
    start = attempt % len(order)
    home, *others = order[start:] + order[:start]
    chosen = [[] if is_loaded(home, loads) else [home], others[:2], order]
    return [group for group in chosen if group]


class ContextRouter(RequestRouter):
    """Reads the key of the context from a request's `session_id`, and the attempt from its argument of that name."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        # When all are full, ask again after a pause and not at once.
        pending_request.routing_context.should_backoff = True
        key = pending_request.metadata.session_id or pending_request.metadata.internal_request_id
        attempt = pending_request.kwargs.get("attempt", 0)
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        in_flight = self.replica_queue_len_cache
        loads = {name: in_flight.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        return [[replicas[name] for name in group] for group in groups(key, attempt, loads)]

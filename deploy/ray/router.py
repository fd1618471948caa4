"""The router: a request goes to the replica with its context, unless that replica is loaded.

Rendezvous hashing (Thaler and Ravishankar, 1998) ranks the replicas for every context: all gateways agree on the order
without communication, and a replica that comes or goes moves only its own share of the contexts. The first replica is
skipped if it has more than its share of the load (Mirrokni, Thorup and Zadimoghaddam, 2018); then the less loaded of
the next two gets the request, which are the same two for a context (Nasir et al., 2015).
"""

from collections.abc import Sequence
from hashlib import blake2b

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

# A replica may hold so much more than the average, and so many requests on top, before others are asked.
SURPLUS = 1.25
SPARE = 4


def ranked(key: str, names: Sequence[str]) -> list[str]:
    """The names in the order in which a context's requests prefer them."""
    return sorted(names, key=lambda name: blake2b(f"{key} {name}".encode(), digest_size=8).digest())


def is_loaded(name: str, loads: dict[str, int]) -> bool:
    """Whether a replica has more than its share of the requests in flight."""
    return loads[name] >= SURPLUS * sum(loads.values()) / len(loads) + SPARE


def groups(key: str, attempt: int, loads: dict[str, int]) -> list[list[str]]:
    """Groups of names to ask one after the other. Of a group, the least loaded one gets the request.

    `loads` has the number of requests in flight of each. The first `attempt` names in order have failed the request
    already.
    """
    order = ranked(key, list(loads))
    start = attempt % len(order)
    home, *others = order[start:] + order[:start]
    chosen = [[] if is_loaded(home, loads) else [home], others[:2], order]
    return [group for group in chosen if group]


class ContextRouter(RequestRouter):
    """Ray's router, by the context's key in a request's `session_id` and by its argument `attempt`."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in groups, as Ray asks for them."""
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

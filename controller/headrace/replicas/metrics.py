"""Metrics of the other replicas, and their page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from headrace.serving.metrics import MetricSet, counter, gauges

if TYPE_CHECKING:
    from headrace.replicas.peer_accounts import Peer
    from headrace.replicas.peering import Peering

_OWN = "headrace_epp"


class PeerMetrics(MetricSet):
    """What is counted as it happens."""

    sent = counter(f"{_OWN}_peer_updates_sent_total", "Updates told to other replicas.")
    received = counter(f"{_OWN}_peer_updates_received_total", "Updates that other replicas told.")
    dropped = counter(
        f"{_OWN}_peer_updates_dropped_total",
        "Updates that a slow replica never got: it was told the account as a whole instead.",
    )
    out_of_step = counter(
        f"{_OWN}_peer_out_of_step_total",
        "Streams of other replicas begun anew, for an update was missing or could not be read.",
    )


@dataclass(eq=False)
class PeerCollector(Collector):
    """What holds when somebody asks."""

    peering: Peering

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        peering = self.peering
        now = peering.clock()
        behind = max((peering.journal.lag(sequence) for sequence in peering.followers.values()), default=0.0)
        # A Pod that started anew a moment ago may still be there as it was.
        peers = {peer.name or peer.replica: peer for peer in peering.accounts.peers()}
        of_all = (
            ("peers", "Other replicas that are heard.", len(peering.accounts)),
            ("peer_followers", "Other replicas that are told of our requests.", len(peering.followers)),
            ("peer_unsent_seconds", "Age of the oldest update that a replica has not taken yet.", behind),
        )
        of_each: tuple[tuple[str, str, Callable[[Peer], float]], ...] = (
            ("peer_lag_seconds", "How much longer than the fastest one the last update took.", lambda peer: peer.lag),
            ("peer_silence_seconds", "Time since anything was heard of a replica.", lambda peer: now - peer.heard_at),
            ("peer_inflight_requests", "Requests that are a replica's account.", lambda peer: len(peer.entries)),
        )
        for name, text, value in of_all:
            yield gauges(f"{_OWN}_{name}", text, {(): value})
        for name, text, value_of in of_each:
            yield gauges(f"{_OWN}_{name}", text, {(of,): value_of(peer) for of, peer in peers.items()}, "peer")


def peer_page(peering: Peering | None) -> dict[str, Any]:
    """/debug/peers: whom we follow, and who follows us."""
    if peering is None:
        return {"replica": "", "sequence": 0, "peers": [], "followers": []}
    now = peering.clock()
    peers = []
    for link in peering.links.values():
        peer = peering.accounts.get(link.replica)
        peers.append(
            {
                "address": link.address,
                "replica": link.replica,
                "name": peer.name if peer is not None else "",
                "ourselves": link.ourselves,
                "problem": link.problem,
                "in_flight": len(peer.entries) if peer is not None else 0,
                "sequence": peer.sequence if peer is not None else 0,
                "updates": peer.updates if peer is not None else 0,
                "lag_seconds": round(peer.lag, 6) if peer is not None else None,
                "silence_seconds": round(now - peer.heard_at, 3) if peer is not None else None,
            }
        )
    followers = [
        {"address": address, "sequence": sequence, "unsent_seconds": round(peering.journal.lag(sequence), 6)}
        for address, sequence in peering.followers.items()
    ]
    own = {"replica": peering.replica, "sequence": peering.journal.sequence, "in_flight": len(peering.ledger)}
    return {**own, "peers": peers, "followers": followers}

"""Metrics of the other replicas, and their page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from headrace.replicas.peering import Peering

_OWN = "headrace_epp"


class PeerMetrics:
    """What is counted as it happens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sent = Counter(f"{_OWN}_peer_updates_sent_total", "Updates told to other replicas.", registry=registry)
        self.received = Counter(
            f"{_OWN}_peer_updates_received_total", "Updates that other replicas told.", registry=registry
        )
        self.dropped = Counter(
            f"{_OWN}_peer_updates_dropped_total",
            "Updates that a slow replica never got: it was told the account as a whole instead.",
            registry=registry,
        )
        self.out_of_step = Counter(
            f"{_OWN}_peer_out_of_step_total",
            "Streams of other replicas begun anew, for an update was missing or could not be read.",
            registry=registry,
        )


class PeerCollector(Collector):
    """What holds when somebody asks."""

    def __init__(self, peering: Peering) -> None:
        self._peering = peering

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        peering = self._peering
        now = peering.clock()

        def gauge(name: str, text: str, value: float) -> Metric:
            family = GaugeMetricFamily(f"{_OWN}_{name}", text)
            family.add_metric((), value)
            return family

        yield gauge("peers", "Other replicas that are heard.", len(peering.accounts))
        yield gauge("peer_followers", "Other replicas that are told of our requests.", len(peering.followers))
        behind = max((peering.journal.lag(sequence) for sequence in peering.followers.values()), default=0.0)
        yield gauge("peer_unsent_seconds", "Age of the oldest update that a replica has not taken yet.", behind)
        lag = GaugeMetricFamily(
            f"{_OWN}_peer_lag_seconds", "How much longer than the fastest one the last update took.", labels=("peer",)
        )
        silence = GaugeMetricFamily(
            f"{_OWN}_peer_silence_seconds", "Time since anything was heard of a replica.", labels=("peer",)
        )
        requests = GaugeMetricFamily(
            f"{_OWN}_peer_inflight_requests", "Requests that are a replica's account.", labels=("peer",)
        )
        # A Pod that started anew a moment ago may still be there as it was.
        for name, peer in {peer.name or peer.replica: peer for peer in peering.accounts.peers()}.items():
            labels = (name,)
            lag.add_metric(labels, peer.lag)
            silence.add_metric(labels, now - peer.heard_at)
            requests.add_metric(labels, len(peer.entries))
        yield lag
        yield silence
        yield requests


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

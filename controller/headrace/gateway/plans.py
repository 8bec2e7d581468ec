"""How a pool's requests are picked for, in words: for its status, and to tell whether a translation is old. Pure.

It says all that a translation takes from objects whose changes Envoy Gateway does not tell the hook of: annotations of
the pool, the picker's Service, its BackendTLSPolicy."""

from __future__ import annotations

from headrace.core import Pool
from headrace.gateway.filters import plan_pick
from headrace.gateway.snapshot import Snapshot
from headrace.gateway.trust import find_trust


def pool_plan(snapshot: Snapshot, pool: Pool) -> str:
    """The plan of a pool, one line. Equal lines are equal translations of the pool and its picker."""
    service, _ = snapshot.picker_or_none(pool)
    plan = plan_pick(pool, service)
    transport = "cleartext"
    if not service.cleartext:
        transport = f"TLS as {find_trust(snapshot, service).hostname}"
    streams = f"a stream of its own, observation {plan.observation}" if service.is_ours else "one stream both ways"
    return f"{plan.pool.failure_mode}, {transport}, request bodies {plan.body_mode}, responses in {streams}"

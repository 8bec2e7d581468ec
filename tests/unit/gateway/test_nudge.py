"""Whether a translation is out of date, by the plans of pools."""

from __future__ import annotations

import pytest

from headrace.core import GA_GROUP
from headrace.gateway.metrics import Metrics
from headrace.gateway.nudge import Nudge
from headrace.gateway.plans import pool_plan
from headrace.gateway.snapshot import Snapshot
from headrace.gateway.translate import translate
from tests.unit.gateway import objects as o

KEY = (GA_GROUP, "default", "pool")


def plan(found: Snapshot) -> str:
    return pool_plan(found, found.pools[KEY])


def policy(hostname: str) -> dict:
    target = {"group": "", "kind": "Service", "name": "epp"}
    return {"metadata": o.metadata("p"), "spec": {"targetRefs": [target], "validation": {"hostname": hostname}}}


BASE = plan(o.snapshot([o.pool()], services=[o.service()]))


@pytest.mark.parametrize(
    "changed",
    [
        o.snapshot([o.pool()]),
        o.snapshot([o.pool()], services=[o.service(ours=False)]),
        o.snapshot([o.pool()], services=[o.service(appProtocol="kubernetes.io/h2c")]),
        o.snapshot([o.pool()], services=[o.service()], backend_tls_policies=[policy("other.test")]),
        o.snapshot([o.pool(failure_mode="FailOpen")], services=[o.service()]),
        o.snapshot([o.pool(annotations={"headrace.dev/request-body-mode": "BUFFERED"})], services=[o.service()]),
        o.snapshot([o.pool(annotations={"headrace.dev/response-observation": "all"})], services=[o.service()]),
    ],
)
def test_a_plan_says_what_a_translation_takes(changed: Snapshot):
    assert plan(changed) != BASE


def test_a_plan_says_nothing_of_what_a_translation_does_not_take():
    same = o.snapshot(
        [o.pool(annotations={"other": "x"}, labels={"a": "b"}, resourceVersion="9")],
        services=[o.service()],
        pods=[o.pod("a", "10.0.0.1")],
    )
    assert plan(same) == BASE


def test_a_translation_tells_its_plans():
    found = o.snapshot([o.pool()], http_routes=[o.route("r", [o.pool_ref()])], services=[o.service()])
    result = translate(o.hook_input([o.xds_route("httproute/default/r/rule/0/match/0/*")]), found)
    assert result.pools == {KEY: BASE}


async def test_what_is_out_of_date():
    held = [o.snapshot([o.pool()])]
    nudge = Nudge(None, "ns", lambda: held[0], Metrics(), verify_by_default=True)
    assert nudge.stale() == {}
    nudge.changed()
    # What was there at the start is taken for translated.
    assert nudge.stale() == {}
    held[0] = o.snapshot([o.pool()], services=[o.service()])
    assert nudge.stale() == {KEY: BASE}
    nudge.translated({KEY: BASE})
    assert nudge.stale() == {}
    # A pool that is gone is nobody's.
    held[0] = o.snapshot([])
    assert nudge.stale() == {}
    held[0] = o.snapshot([o.pool()])
    assert nudge.stale() == {}

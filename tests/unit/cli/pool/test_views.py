"""Pool states and decisions as people read them."""

from __future__ import annotations

from typing import Any

from headrace.cli.pool import views
from headrace.cli.pool.cluster import Parent, PoolStatus, parents_of
from headrace.config.pools import parse_pool

from .test_lint import GA, NEW, X

VIEW = {
    "endpoints": [
        {
            "endpoint": "10.0.0.1:8000",
            "pod": "a",
            "running": 3,
            "waiting": 1,
            "in_flight": 4,
            "kv_usage": 0.5,
            "metrics_age_seconds": 0.21,
            "metrics_fresh": True,
            "running_adapters": ["x", "y"],
            "health": "out",
            "health_reason": "asleep",
        },
        {"endpoint": "10.0.0.2:8000", "pod": "b", "metrics_age_seconds": None, "metrics_fresh": False},
    ]
}


def status(**changes: Any) -> PoolStatus:
    fields: dict[str, Any] = {
        "namespace": "n",
        "name": "pool",
        "group": GA,
        "pool": parse_pool(NEW),
        "pods": 3,
        "ready_pods": 2,
        "pickers": 1,
        "ready_pickers": 1,
        "parents": (Parent("gw", ({"type": "Accepted", "status": "True"},)),),
        "view": VIEW,
        "trouble": (),
        **changes,
    }
    return PoolStatus(**fields)


def test_the_table_of_pools() -> None:
    heading, line = views.statuses([status()], endpoints=False).splitlines()
    assert heading.split("  ")[0] == "NAMESPACE"
    assert line.split() == ["n", "pool", "v1", "2/3", "1/1", "?", "2", "FailClose", "gw"]


def test_whether_the_picker_is_trusted() -> None:
    def entry(status: str, reason: str) -> dict[str, Any]:
        condition = {"type": "ResolvedRefs", "status": status, "reason": reason, "message": ""}
        return {"parentRef": {"name": "gw"}, "conditions": [condition]}

    good, bad = entry("True", "ResolvedRefs"), entry("False", "EndpointPickerNotTrusted")
    other = entry("False", "InvalidExtensionRef")
    for entries, trusted, shown in (
        ([good], True, "yes"),
        ([bad], False, "no"),
        ([good, bad], False, "no"),
        ([other], None, "?"),
        ([], None, "?"),
    ):
        found = status(parents=parents_of({"status": {"parents": entries}}))
        assert found.as_json()["pickers"]["trusted"] is trusted
        heading, line = views.statuses([found], endpoints=False).splitlines()[:2]
        at = heading.index("PICKER TRUSTED")
        assert line[at : at + 4].strip() == shown


def test_what_is_wrong_comes_last() -> None:
    refused = {"type": "Accepted", "status": "False", "reason": "HTTPRouteNotAccepted", "message": "no"}
    parent = Parent("gw", (refused,))
    text = views.statuses([status(view=None, pool=None, parents=(parent,), trouble=("it is broken",))], endpoints=True)
    assert "gw (not accepted)" in text
    assert text.splitlines()[-2:] == [
        "n/pool: it is broken",
        "n/pool: gateway gw: Accepted=False (HTTPRouteNotAccepted: no)",
    ]


def test_the_endpoints() -> None:
    lines = views.statuses([status()], endpoints=True).splitlines()
    assert lines[4].split() == ["10.0.0.1:8000", "a", "out", "(asleep)", "3", "1", "4", "50%", "0.2s", "x,", "y"]
    assert "never (stale)" in lines[5]


def test_parents_of_both_versions_without_the_placeholder() -> None:
    conditions = [{"type": "Accepted", "status": "False", "reason": "R", "message": "m"}]
    old = {"status": {"parent": [{"parentRef": {"kind": "Status", "name": "default"}, "conditions": conditions}]}}
    assert parents_of(old) == ()
    new = {"status": {"parents": [{"parentRef": {"name": "gw"}, "conditions": conditions}]}}
    (parent,) = parents_of(new)
    assert (parent.name, parent.conditions) == ("gw", {"Accepted": "False"})
    assert parent.reasons == ["Accepted=False (R: m)"]
    assert parents_of({}) == ()
    assert status(group=X).as_json()["apiVersion"] == f"{X}/v1alpha2"


DECISION = {
    "request_id": "r1",
    "time": "2026-01-01T00:00:00Z",
    "model": "b",
    "asked_model": "a",
    "objective": "chat",
    "priority": 7,
    "path": "/v1/completions",
    "body_bytes": 10,
    "prompt_blocks": 2,
    "winner": "10.0.0.1:8000",
    "winner_pod": "pod-a",
    "fallbacks": ["10.0.0.2:8000"],
    "reason": "queue-scorer 2*1.000 = 2.000",
    "refused": None,
    "decision_seconds": 0.00012,
    "candidates": [
        {"endpoint": "10.0.0.2:8000", "total": 1.0, "scores": {"queue-scorer": 0.5}, "prefix_blocks_matched": 0},
        {"endpoint": "10.0.0.1:8000", "total": 2.0, "scores": {"queue-scorer": 1.0}, "prefix_blocks_matched": 2},
    ],
}


def test_a_decision() -> None:
    text = views.decision(DECISION)
    for line in (
        "model      b (asked for a)",
        "objective  chat, priority 7",
        "went to    10.0.0.1:8000 (Pod pod-a)",
        "fallbacks  10.0.0.2:8000",
        "took       0.12 ms",
    ):
        assert line in text
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["CANDIDATE", "10.0.0.1:8000", "10.0.0.2:8000"]


def test_a_refusal() -> None:
    refused = {"status": 429, "reason": "rejected-saturated"}
    text = views.decision({**DECISION, "refused": refused, "winner": None, "candidates": [], "fallbacks": []})
    assert "refused    429 rejected-saturated" in text
    assert "went to" not in text

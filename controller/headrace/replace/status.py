"""A replacement as people and playbooks see it: the plan before it begins, then its state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from headrace.core.fields import mapping, number
from headrace.kube.lease import holder_of
from headrace.kube.objects import LEASES, find
from headrace.replace.gates import table
from headrace.replace.machine import Found, Refused, old_is_kept, percent_of
from headrace.replace.plan import Plan, PoolRef
from headrace.replace.routes import swap_of
from headrace.replace.state import Phase, State
from headrace.replace.store import Store, object_name
from headrace.replace.weights import Refs, Swap, Unsplittable, refs_at, weight_of

# Phases that a follower is shown at once.
_MILESTONES = frozenset({Phase.APPROVAL, Phase.RESTORE, Phase.DRAIN})


async def read(client: Any, pool: PoolRef) -> dict[str, Any]:
    """The replacement of a pool, for JSON; `phase` is "" where none is recorded. Raises ApiError, Unreadable."""
    stored = await Store(client, pool).load()
    holder = await _holder(client, pool)
    if stored is None:
        return {"phase": "", "holder": holder, "finished": True, "share": -1, "milestones": 0, "lines": [], "run": ""}
    plan, state = stored.plan, stored.state
    return {
        "phase": state.phase.value,
        "finished": state.is_finished,
        "holder": holder,
        "run": state.run,
        "old": str(plan.old),
        "new": str(plan.new),
        "old_name": plan.old.name,
        "new_name": plan.new.name,
        "new_group": plan.new.group,
        "share": percent_of(state, plan) if state.phase is Phase.APPROVAL else state.share,
        "reason": state.reason,
        "plan": plan.as_json(),
        "old_is_kept": old_is_kept(state, plan),
        "milestones": milestones(state),
        "routes": [f"{record.namespace}/{record.name}" for record in state.records],
        "lines": lines(plan, state),
        "latest": table(state.history[-1]) if state.history else [],
    }


async def _holder(client: Any, pool: PoolRef) -> str:
    lease = await find(client, LEASES.path(pool.namespace, object_name(pool)))
    spec = mapping(mapping(lease).get("spec"))
    try:
        renewed = datetime.fromisoformat(str(spec.get("renewTime")))
    except ValueError:
        return holder_of(lease)
    # Whoever has not renewed it for several times its duration is gone.
    age = (datetime.now(UTC) - renewed).total_seconds()
    return holder_of(lease) if age < 4 * number(spec.get("leaseDurationSeconds"), 15) else ""


def milestones(state: State) -> int:
    """How many things happened that somebody who follows wants to be told of at once."""
    return len(state.history) + (state.phase in _MILESTONES) + (state.share >= 0) + state.is_finished


def lines(plan: Plan, state: State) -> list[str]:
    """The state as lines for people: where it is, the log, the newest gate."""
    share = f", {max(0, state.share)} % go to the new pool" if state.records else ""
    head = f"{plan.old} -> {plan.new}: {state.phase.value}{share}"
    shown = [head] if not state.reason else [head, f"because: {state.reason}"]
    shown += [f"{_clock(entry.at)}  {entry.message}" for entry in state.log]
    return shown + (table(state.history[-1]) if state.history else [])


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%SZ")


def plan_as_json(plan: Plan, found: Refused | Found) -> dict[str, Any]:
    """What a replacement would do: routes with their weights at every step, gates, time, and what is in its way."""
    routes = []
    for record in found.records:
        swap = swap_of(plan, record.namespace)
        for rule in record.rules:
            steps = {str(percent): _weights(rule.refs, swap, percent) for percent in (0, *plan.steps)}
            routes.append(
                {"kind": record.kind, "route": f"{record.namespace}/{record.name}", "rule": rule.index, "steps": steps}
            )
    return {
        "plan": plan.as_json(),
        "old": str(plan.old),
        "new": str(plan.new),
        "problems": list(found.problems) if isinstance(found, Refused) else [],
        "facts": found.facts,
        "routes": routes,
        "expected_seconds": plan.expected_seconds,
    }


def _weights(refs: Refs, swap: Swap, percent: int) -> list[str]:
    try:
        return [f"{ref.get('name')}={weight_of(ref)}" for ref in refs_at(refs, swap, percent)]
    except Unsplittable:
        return ["cannot be written"]


def plan_lines(shown: dict[str, Any]) -> list[str]:
    """The same as lines for people."""
    plan = shown["plan"]
    found = [f"{shown['old']} -> {shown['new']}"]
    if shown["problems"]:
        found += ["In the way:", *(f"  - {problem}" for problem in shown["problems"])]
    found += [shown["facts"], "Weights:"]
    for entry in shown["routes"]:
        found.append(f"  {entry['kind']} {entry['route']}, rule {entry['rule']}")
        found += [f"    {percent:>3} %: {', '.join(refs)}" for percent, refs in entry["steps"].items()]
    ask = f", and an approval after {', '.join(f'{step} %' for step in plan['manual'])}" if plan["manual"] else ""
    found.append(
        f"After each step a gate: {', '.join(plan['gates']) or 'none'} over {plan['interval']:g} s and at least "
        f"{plan['min_sample']} requests, alpha {plan['alpha']:g}{ask}"
    )
    kept = f"remove {len(plan['remove_old'])} objects of the old pool" if plan["remove_old"] else "keep the old pool"
    found.append(f"Then drain for up to {plan['drain_timeout']:g} s, and {kept}")
    found.append(f"Expected: about {shown['expected_seconds']:.0f} s if all goes well, {plan['timeout']:g} s at most")
    return found

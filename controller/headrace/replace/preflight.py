"""Checks of both pools before a replacement begins. Changes nothing."""

from __future__ import annotations

from headrace.core import InvalidPool
from headrace.kube.client import ApiError
from headrace.replace.measure import Measure, Members
from headrace.replace.plan import Plan, PoolRef


async def of_pools(plan: Plan, measure: Measure, *, new_is_made: bool = False) -> tuple[list[str], list[str]]:
    """(problems, facts) of both pools. Raises ApiError.

    `new_is_made`: the caller makes the new pool next, so that what it lacks is a fact and no problem."""
    problems: list[str] = []
    facts: list[str] = []
    lacks: list[str] = []
    members: dict[str, Members] = {}
    for what, ref, to in (("old", plan.old, problems), ("new", plan.new, lacks)):
        try:
            members[what] = await measure.members(ref)
        except InvalidPool as error:
            to.append(f"{what} pool {ref}: {error}")
        except ApiError as error:
            if error.status != 404:
                raise
            made = new_is_made and what == "new"
            advice = "" if made else ": make it first (role inference_pool), or name another"
            to.append(f"there is no {what} pool {ref}{advice}")
        else:
            pool = members[what]
            facts.append(f"{what} pool: {pool.ready_servers} ready endpoints, {pool.ready_pickers} ready pickers")
            to += await _of_pickers(plan, measure, what, ref, pool)
    if len(members) == 2:
        lacks += _of_capacity(plan, members["old"], members["new"])
    facts += await _of_models(measure, members)
    if new_is_made:
        return problems, facts + [f"before the new pool is made: {lack}" for lack in lacks]
    return problems + lacks, facts


async def lacks_to_serve(measure: Measure, pool: PoolRef) -> str:
    """What a pool needs to serve and does not have; "" for nothing. Raises ApiError."""
    try:
        members = await measure.members(pool)
    except InvalidPool as error:
        return str(error)
    except ApiError as error:
        if error.status != 404:
            raise
        return "there is no such pool"
    if not members.ready_servers:
        return "it has no ready endpoint"
    return "" if members.ready_pickers else "its endpoint picker has no ready Pod"


async def _of_pickers(plan: Plan, measure: Measure, what: str, ref: PoolRef, pool: Members) -> list[str]:
    if not pool.ready_pickers:
        return [f"the endpoint picker of the {what} pool {ref} has no ready Pod: see its Deployment"]
    # Its page would say nothing at a gate, and a picker that says nothing counts as dead.
    if not plan.prometheus_url and await measure.asks_who_reads(pool):
        return [
            f"the endpoint picker of the {what} pool {ref} asks who reads its metrics (metrics_auth): measure with a "
            "Prometheus that may (prometheus_url), or turn metrics_auth off for as long"
        ]
    return []


def _of_capacity(plan: Plan, old: Members, new: Members) -> list[str]:
    needed = max(1, round(old.ready_servers * plan.capacity_ratio + 0.499))
    if new.ready_servers >= needed:
        return []
    return [
        f"the new pool {plan.new} has {new.ready_servers} ready endpoints, {needed} are needed for "
        f"the {old.ready_servers} of the old one: add some, or lower capacity_ratio "
        f"({plan.capacity_ratio:g}) where the new ones are stronger"
    ]


async def _of_models(measure: Measure, members: dict[str, Members]) -> list[str]:
    """What only the old pool serves: no problem where requests are rewritten, a 404 where they are not."""
    served = {what: await measure.models(pool) for what, pool in members.items()}
    missing = sorted(served.get("old", frozenset()) - served.get("new", frozenset()))
    if not missing or not served.get("new"):
        return []
    return [f"models that only the old pool serves (rewrite them, or requests for them fail): {', '.join(missing)}"]

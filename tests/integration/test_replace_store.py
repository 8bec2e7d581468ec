"""The record of a replacement on a real API server: whoever lost the Lease writes no more, and no request is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace.kube.client import connect
from headrace.kube.lease import LeaseLost
from headrace.replace.plan import Plan, PoolRef
from headrace.replace.state import Phase, State
from headrace.replace.store import Request, Store

from .apiserver import ApiServer

GA = "inference.networking.k8s.io"


@pytest.fixture
async def client(api: ApiServer) -> AsyncIterator[Any]:
    found = await connect(str(api.kubeconfig))
    try:
        yield found
    finally:
        await found.close()


def plan(name: str) -> Plan:
    return Plan(old=PoolRef(GA, "default", name), new=PoolRef(GA, "default", f"{name}-new"))


async def test_who_lost_the_lease_writes_no_more_even_after_a_look(client: Any) -> None:
    ours = plan("fenced")
    first, second = Store(client, ours.old), Store(client, ours.old)
    await first.save(ours, State(run="1", phase=Phase.GATE), 1)
    assert await second.load() is not None
    await second.save(ours, State(run="1", phase=Phase.DRAIN), 2)
    assert await first.load() is not None, "it looks for what people ask, and knows the newest version by that"
    with pytest.raises(LeaseLost):
        await first.save(ours, State(run="1", phase=Phase.SHIFT), 1)
    stored = await second.load()
    assert stored is not None
    assert (stored.state.phase, stored.epoch) == (Phase.DRAIN, 2)


async def test_a_request_that_comes_while_another_is_dealt_with_stays(client: Any) -> None:
    ours = plan("asked")
    store, people = Store(client, ours.old), Store(client, ours.old)
    await store.save(ours, State(run="1", phase=Phase.APPROVAL), 1)
    await people.ask(Request("approve", "me", 50))
    assert await store.load() is not None
    await people.ask(Request("rollback", "somebody else"))
    await store.save(ours, State(run="1", phase=Phase.SHIFT), 1)
    await store.clear_request()
    stored = await store.load()
    assert stored is not None
    assert stored.request == Request("rollback", "somebody else")
    await store.clear_request()
    await store.clear_request()
    stored = await store.load()
    assert stored is not None
    assert stored.request is None
    await store.save(ours, State(run="1", phase=Phase.RESTORE), 1)

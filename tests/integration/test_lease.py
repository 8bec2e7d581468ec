"""A Lease on a real API server: one holder at a time, taken over only from who is gone, lost only once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.kube.client import connect
from headrace.kube.lease import Lease, LeaseHeld, LeaseLost

from ..hang import HANG_SECONDS
from .apiserver import ApiServer


async def test_one_holder_at_a_time(api: ApiServer) -> None:
    client = await connect(str(api.kubeconfig))
    try:
        now = 100.0
        first = Lease(client, "default", "one-holder", "first", duration=2.0, labels={"app": "test"}, clock=lambda: now)
        second = Lease(client, "default", "one-holder", "second", duration=2.0, clock=lambda: now)
        assert await first.try_acquire() == ""
        assert await second.try_acquire() == "first"
        # Longer than the duration: a lease that is renewed does not run out.
        for _ in range(4):
            now += 1.5
            await first.ensure()
            assert await second.try_acquire() == "first"
        with pytest.raises(LeaseHeld, match="held by first"):
            await second.acquire(0.0)
        await first.release()
        await second.acquire(0.0)
        assert second.transitions == 1
        with pytest.raises(LeaseLost, match="taken over by second"):
            await first.renew()
        found = api.get("lease", "one-holder", "-n", "default")
        assert found["metadata"]["labels"] == {"app": "test"}
        assert found["spec"]["holderIdentity"] == "second"
    finally:
        await client.close()


async def test_who_is_gone_is_followed_after_the_duration(api: ApiServer) -> None:
    client = await connect(str(api.kubeconfig))
    try:
        gone = Lease(client, "default", "gone", "gone", duration=2.0)
        await gone.acquire(0.0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        heir = Lease(client, "default", "gone", "heir", duration=2.0)
        await heir.acquire(HANG_SECONDS)
        assert loop.time() - began >= 2.0
        with pytest.raises(LeaseLost):
            await gone.ensure()
    finally:
        await client.close()


async def test_a_holder_renews_by_itself(api: ApiServer) -> None:
    client = await connect(str(api.kubeconfig))
    try:
        lease = Lease(client, "default", "kept", "holder", duration=1.0)
        await lease.acquire(0.0)

        def renewed() -> str:
            return str(api.get("lease", "kept", "-n", "default")["spec"]["renewTime"])

        before = renewed()
        keeping = asyncio.create_task(lease.keep())
        try:
            async with asyncio.timeout(HANG_SECONDS):
                while await asyncio.to_thread(renewed) == before:
                    assert not keeping.done()
        finally:
            keeping.cancel()
    finally:
        await client.close()


async def test_of_many_that_want_it_at_once_one_gets_it(api: ApiServer) -> None:
    clients: list[Any] = [await connect(str(api.kubeconfig)) for _ in range(5)]
    try:
        wanted = [Lease(client, "default", "race", f"holder-{at}") for at, client in enumerate(clients)]
        answers = await asyncio.gather(*(lease.try_acquire() for lease in wanted))
        assert answers.count("") == 1
    finally:
        for client in clients:
            await client.close()

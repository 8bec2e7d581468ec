"""A step is done when the gateway has translated it, as far as the gateway tells."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.kube import objects
from headrace.kube.client import ApiError
from headrace.protocol.objects import ROUTES_TRANSLATED
from headrace.protocol.translated import TranslatedRoute, write_routes
from headrace.replace.translated import Translations, behind

from .test_routes import PLAN

KEY = ("HTTPRoute", "serving", "r")


def route(generation: int, uid: str = "12345678-abcd") -> dict[str, Any]:
    return {"metadata": {"namespace": "serving", "name": "r", "generation": generation, "uid": uid}}


def pool(*generations: int, field: str = "parents", uid: str = "12345678", type_: str = ROUTES_TRANSLATED) -> Any:
    """A pool whose status has a Gateway for each of these generations of the route."""
    return {
        "status": {
            field: [
                {
                    "parentRef": {"name": f"gateway-{number}"},
                    "conditions": [
                        {"type": "Accepted", "status": "True", "message": "fine"},
                        {"type": type_, "message": write_routes([TranslatedRoute(KEY, generation, uid, "0")])},
                    ],
                }
                for number, generation in enumerate(generations)
            ]
        }
    }


@pytest.mark.parametrize(
    ("pools", "is_behind"),
    [
        ([], False),
        ([{}], False),
        ([{"status": {"parents": "odd"}}], False),
        ([pool(7)], False),
        ([pool(8)], False),
        ([pool(6)], True),
        ([pool(6, field="parent")], True),
        # Each Gateway has Envoys of its own.
        ([pool(7, 6)], True),
        ([pool(7), pool(6)], True),
        # Of a route of the same name that was there before, nothing follows; nor from a gateway that does not tell.
        ([pool(6, uid="99999999")], False),
        ([pool(6, type_="example.com/Other")], False),
    ],
)
def test_what_is_behind(pools: list[Any], is_behind: bool) -> None:
    assert behind({KEY: route(7)}, pools) == (("HTTPRoute serving/r",) if is_behind else ())


class Bench:
    """A gateway that translates at a time, and a clock that passes with sleeps alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: float) -> None:
        self.now, self.at, self.status = 0.0, at, 0

        async def request(client: Any, method: str, path: str) -> Any:
            if self.status:
                raise ApiError(self.status, "Refused", "")
            return pool(7 if self.now >= self.at else 6)

        monkeypatch.setattr(objects, "request", request)
        self.translations = Translations(None, (PLAN.old, PLAN.new), clock=lambda: self.now, sleep=self.sleep)
        self.translations.note(KEY, route(7))

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def until_complete(self) -> float:
        while not await self.translations.complete():
            assert self.now < 1_000
        return self.now


@pytest.mark.parametrize(("at", "done"), [(0.0, 0.0), (1.0, 1.0), (30.0, 30.0), (59.0, 59.0), (1e9, 60.0)])
async def test_the_wait_is_as_long_as_it_takes_and_bounded(
    monkeypatch: pytest.MonkeyPatch, at: float, done: float
) -> None:
    bench = Bench(monkeypatch, at)
    assert await bench.until_complete() == pytest.approx(done, abs=0.5)
    # What was waited for is behind it: the next step has its own time.
    bench.at = bench.now + 59.0
    bench.translations.note(KEY, route(7))
    assert await bench.until_complete() == pytest.approx(done + 59.0, abs=0.5)


async def test_another_generation_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, 1e9)
    while bench.now < 40.0:
        assert not await bench.translations.complete()
    noted = bench.now
    bench.translations.note(KEY, route(8))
    assert await bench.until_complete() == pytest.approx(noted + 60.0, abs=0.5)


async def test_the_same_generation_has_no_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, 1e9)
    while bench.now < 40.0:
        assert not await bench.translations.complete()
    bench.translations.note(KEY, route(7))
    assert await bench.until_complete() == pytest.approx(60.0, abs=0.5)


async def test_a_look_hands_back_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, 1e9)
    assert not await bench.translations.complete()
    assert bench.now <= 2.0


async def test_a_pool_that_is_gone_says_nothing_and_an_api_server_that_is_away_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, 1e9)
    bench.status = 404
    assert await bench.translations.complete()
    bench.translations.note(KEY, route(7))
    bench.status = 503
    with pytest.raises(ApiError):
        await bench.translations.complete()

"""Fairness policies: which flow of a priority band goes next.

A flow is what shares a fairness id. Source: Gateway API Inference Extension v1.5.0 and llm-d-router, fairness
policies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

from msgspec import field

from headrace.config.decode import Number, Parameters

# Flows are named by clients: of the service they got, so many are remembered.
MAX_FLOWS = 10_000
INPUT_TOKEN_COST = 1
OUTPUT_TOKEN_COST = 2


class Service:
    """What each flow has got lately, in weighted tokens, halved every `half_life` seconds (0: never)."""

    def __init__(self) -> None:
        self._flows: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, flow: str, cost: float, now: float, half_life: float) -> None:
        """A flow got so much."""
        self._flows[flow] = (self.of(flow, now, half_life) + cost, now)
        self._flows.move_to_end(flow)
        if len(self._flows) > MAX_FLOWS:
            self._flows.popitem(last=False)

    def of(self, flow: str, now: float, half_life: float) -> float:
        """What a flow has got, as it counts now."""
        amount, since = self._flows.get(flow, (0.0, now))
        return amount * 0.5 ** ((now - since) / half_life) if half_life and now > since else amount

    def forget(self, before: float) -> None:
        """Drop the flows that got nothing since."""
        while self._flows and next(iter(self._flows.values()))[1] < before:
            self._flows.popitem(last=False)


class Flow(Protocol):
    """A flow with requests waiting."""

    @property
    def head_came_at(self) -> float:
        """When the request came that is next in it."""


@runtime_checkable
class Fairness(Protocol):
    """Chooses among the flows of a band that have requests waiting."""

    type_name: ClassVar[str]
    # Whether the policy tells flows apart: without, all wait in one queue.
    by_flow: ClassVar[bool]

    @property
    def half_life(self) -> float | None:
        """Seconds after which half of the service a flow got no longer counts; 0: it always does; None: never did."""

    def choose(self, flows: Mapping[str, Flow], service: Service, now: float) -> str:
        """The flow to take from. They come in the order in which they were last served, longest ago first."""


class GlobalStrict(Parameters, frozen=True):
    """No fairness: the band's best request goes first, whosever it is."""

    type_name: ClassVar[str] = "global-strict-fairness-policy"
    by_flow: ClassVar[bool] = False
    half_life: ClassVar[None] = None

    def choose(self, flows: Mapping[str, Flow], service: Service, now: float) -> str:
        return next(iter(flows))


class RoundRobin(Parameters, frozen=True):
    """Each flow with requests waiting has its turn."""

    type_name: ClassVar[str] = "round-robin-fairness-policy"
    by_flow: ClassVar[bool] = True
    half_life: ClassVar[None] = None

    def choose(self, flows: Mapping[str, Flow], service: Service, now: float) -> str:
        return next(iter(flows))


class LeastAttainedService(Parameters, frozen=True):
    """The flow with the highest sum of `weight_service` * (1 - service) + `weight_head_wait` * (wait of its next
    request), both scaled to 0..1 over the flows (0 where all are equal)."""

    type_name: ClassVar[str] = "program-aware-fairness"
    by_flow: ClassVar[bool] = True
    weight_service: Number = field(default=0.8, name="lasWeightService")
    weight_head_wait: Number = field(default=0.2, name="lasWeightHeadWait")
    half_life: Number = field(default=60.0, name="lasHalfLifeSeconds")
    strategy: Literal["las"] = "las"

    def choose(self, flows: Mapping[str, Flow], service: Service, now: float) -> str:
        got = [service.of(flow, now, self.half_life) for flow in flows]
        came = [flow.head_came_at for flow in flows.values()]
        least_got, latest = min(got), max(came)
        span_got, span_came = max(got) - least_got, latest - min(came)
        best, chosen = -1.0, ""
        for flow, amount, when in zip(flows, got, came, strict=True):
            score = self.weight_service * (1.0 - ((amount - least_got) / span_got if span_got else 0.0))
            score += self.weight_head_wait * ((latest - when) / span_came if span_came else 0.0)
            if score > best:
                best, chosen = score, flow
        return chosen

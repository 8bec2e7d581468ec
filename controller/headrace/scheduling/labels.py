"""Filters and scorers by Pod label.

Source: llm-d-router, by-label and label selector filters, role filters, context length aware; label selectors as in
the Kubernetes API (`matchLabels`, `matchExpressions`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

from msgspec import field

from headrace.config.decode import Parameters, Refused, Text
from headrace.protocol.objects import CONTEXT_LENGTH_LABEL
from headrace.scheduling.facts import EndpointState, Facts
from headrace.scheduling.tokens import input_tokens

# The roles that do each part of the work, and whether a Pod without a role does it.
ROLES: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "decode-filter": (("decode", "prefill-decode", "both", "encode-prefill-decode"), True),
    "prefill-filter": (("prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"), False),
    "encode-filter": (("encode", "encode-prefill", "encode-prefill-decode"), False),
}


class ByLabelFilter(Parameters, frozen=True):
    """Keeps Pods whose label has one of some values; with `allows_no_label`, those without the label too."""

    type_name: ClassVar[str] = "by-label"
    label: Text
    valid_values: frozenset[str] = frozenset()
    allows_no_label: bool = False

    def __post_init__(self) -> None:
        if not self.valid_values and not self.allows_no_label:
            raise Refused("validValues", "give at least one value, or allowsNoLabel: true")

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        kept = []
        for state in states:
            value = state.endpoint.labels.get(self.label)
            if value in self.valid_values or (value is None and self.allows_no_label):
                kept.append(state)
        return kept


class Requirement(Parameters, frozen=True):
    """One term of a label selector."""

    key: Text
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if bool(self.values) != (self.operator in ("In", "NotIn")):
            raise Refused("values", "give values with In and NotIn, and only with them")

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels satisfy it. NotIn holds where the label is missing, as in the Kubernetes API."""
        value = labels.get(self.key)
        if self.operator == "In":
            return value in self.values
        if self.operator == "NotIn":
            return value not in self.values
        return (value is not None) == (self.operator == "Exists")


class LabelSelectorFilter(Parameters, frozen=True):
    """Keeps Pods that a label selector matches; an empty one matches all."""

    type_name: ClassVar[str] = "label-selector-filter"
    match_labels: dict[str, Any] = {}
    match_expressions: tuple[Requirement, ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.match_labels.items():
            if not isinstance(value, str | None):
                raise Refused(f"matchLabels.{name}", "give a text", value)

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        return [state for state in states if self._matches(state.endpoint.labels)]

    def _matches(self, labels: Mapping[str, str]) -> bool:
        # A label without a value is the empty text.
        named = all(labels.get(name) == (value or "") for name, value in self.match_labels.items())
        return named and all(term.holds(labels) for term in self.match_expressions)


@lru_cache(maxsize=1024)
def context_range(text: str) -> tuple[int, int] | None:
    """The bounds of a label such as `0-8192`; None where it is not such a range."""
    low, dash, high = (part.strip() for part in text.partition("-"))
    if not dash or not all(part.isascii() and part.isdigit() and len(part) < 12 for part in (low, high)):
        return None
    return (int(low), int(high)) if int(low) <= int(high) else None


class ContextLengthAware(Parameters, frozen=True):
    """Prompts go to Pods labelled for their length, `min-max` in tokens; lengths are estimated.

    Scores: within the range 0.3 + 0.7 * (0.7 / (1 + width / 10000) + 0.3 * (max - length) / width), 1 for a width of
    0; outside 0.3 / (1 + distance / 1000); 0.5 without the label; 0 with one that is no range. With `filtering`, only
    Pods whose range holds the length, or without the label, stay."""

    type_name: ClassVar[str] = "context-length-aware"
    label: Text = CONTEXT_LENGTH_LABEL
    filtering: bool = field(default=False, name="enableFiltering")

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        if not self.filtering:
            return states
        length = input_tokens(facts.request)
        return [s for s in states if self._fits(s.endpoint.labels.get(self.label), length)]

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        length = input_tokens(facts.request)
        return [_range_score(s.endpoint.labels.get(self.label), length) for s in states]

    def _fits(self, text: str | None, length: int) -> bool:
        if text is None:
            return True
        bounds = context_range(text)
        return bounds is not None and bounds[0] <= length <= bounds[1]


def _range_score(text: str | None, length: int) -> float:
    if text is None:
        return 0.5
    bounds = context_range(text)
    if bounds is None:
        return 0.0
    low, high = bounds
    if not low <= length <= high:
        distance = length - high if length > high else low - length
        return 0.3 / (1.0 + distance / 1000.0)
    width = high - low
    if not width:
        return 1.0
    return 0.3 + 0.7 * (0.7 / (1.0 + width / 10_000.0) + 0.3 * (high - length) / width)

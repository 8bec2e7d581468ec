"""Sending a session, or a tenant, where it was before.

Source: llm-d-router, session affinity scorer and filter, header label affinity scorer. What has to be remembered is
handed out as notes and comes back in the facts."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from msgspec import field

from headrace.config.decode import Parameters, Text
from headrace.protocol import http
from headrace.scheduling.facts import EndpointState, Facts
from headrace.scheduling.plugin import AddResponseHeader, BindSession, Note

# A longer identifier is not remembered: clients write it.
MAX_SESSION_LENGTH = 256


def pod_name(state: EndpointState) -> str:
    """An endpoint as a session remembers it: the Pod and which of its ports. Addresses are given to other Pods."""
    endpoint = state.endpoint
    return f"{endpoint.namespace}/{endpoint.pod_name}-rank-{endpoint.rank}"


class SessionStrategy(Protocol):
    """How a request says which session it is of, and how that is remembered."""

    def bound(self, facts: Facts) -> str:
        """The Pod the session is bound to, as `pod_name` writes it; "" where it is not bound."""

    def notes(self, picked: EndpointState, facts: Facts) -> Sequence[Note]:
        """What to remember of a pick."""


class TokenSession(Parameters, frozen=True):
    """The client brings back, in a header, the token it got with its last answer: base64 of the Pod's name."""

    header: str = http.SESSION_TOKEN

    def bound(self, facts: Facts) -> str:
        token = facts.request.headers.get(self.header, "")
        if not token or len(token) > 2 * MAX_SESSION_LENGTH:
            return ""
        try:
            return base64.b64decode(token, validate=True).decode()
        except (binascii.Error, ValueError):
            return ""

    def notes(self, picked: EndpointState, facts: Facts) -> Sequence[Note]:
        return (AddResponseHeader(self.header, base64.b64encode(pod_name(picked).encode()).decode()),)


@dataclass(frozen=True)
class IdentifiedSession:
    """The client names its session in a header; the picker remembers where it went, `ttl_seconds` from the last use.

    A session whose Pod is still a candidate stays bound to it, even if other scorers outweigh it once."""

    headers: tuple[str, ...] = (http.SESSION_ID,)
    ttl_seconds: float = 300.0

    def bound(self, facts: Facts) -> str:
        found = facts.sessions.get(self._session(facts))
        if found is None or facts.now - found.used_at > self.ttl_seconds:
            return ""
        return found.pod

    def notes(self, picked: EndpointState, facts: Facts) -> Sequence[Note]:
        session = self._session(facts)
        return (BindSession(session, pod_name(picked), self.ttl_seconds),) if session else ()

    def _session(self, facts: Facts) -> str:
        for name in self.headers:
            session = facts.request.headers.get(name, "").strip()
            if session:
                # Two plugins with headers of their own must not take each other's sessions.
                return f"{name}={session}" if len(session) <= MAX_SESSION_LENGTH else ""
        return ""


def _is(state: EndpointState, bound: str) -> bool:
    """Whether an endpoint is what a session is bound to; a token without a rank means any port of the Pod."""
    endpoint = state.endpoint
    return bound in (pod_name(state), f"{endpoint.namespace}/{endpoint.pod_name}")


@dataclass(frozen=True)
class SessionAffinityScorer:
    """1 on the endpoint the session is bound to, 0 elsewhere."""

    type_name: ClassVar[str] = "session-affinity-scorer"
    strategy: SessionStrategy = dataclasses.field(default_factory=TokenSession)

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        bound = self.strategy.bound(facts)
        if not bound:
            return [0.0] * len(states)
        return [1.0 if _is(state, bound) else 0.0 for state in states]

    def notes(self, picked: EndpointState, facts: Facts) -> Sequence[Note]:
        return self.strategy.notes(picked, facts)


@dataclass(frozen=True)
class SessionAffinityFilter:
    """Keeps the endpoint the session is bound to; all, where it is not a candidate or the session not bound."""

    type_name: ClassVar[str] = "session-affinity-filter"
    strategy: SessionStrategy = dataclasses.field(default_factory=TokenSession)

    def keep(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[EndpointState]:
        bound = self.strategy.bound(facts)
        return ([state for state in states if _is(state, bound)] if bound else []) or states

    def notes(self, picked: EndpointState, facts: Facts) -> Sequence[Note]:
        return self.strategy.notes(picked, facts)


class HeaderLabelAffinityScorer(Parameters, frozen=True):
    """1 where a Pod label has the value of a request header, else 0; 0 for all without the header."""

    type_name: ClassVar[str] = "header-label-affinity-scorer"
    header: Text = field(name="headerName")
    label: Text = field(name="labelKey")

    def score(self, states: Sequence[EndpointState], facts: Facts) -> Sequence[float]:
        wanted = facts.request.headers.get(self.header, "")
        return [1.0 if wanted and state.endpoint.labels.get(self.label) == wanted else 0.0 for state in states]

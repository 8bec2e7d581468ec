"""What the picker knows of a request before it picks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct


class Asked(NamedTuple):
    """What of a request still matters at its end, when prompt and headers are long gone.

    `model` is the client's own name for it; the rest as in Request."""

    model: str = ""
    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None


# Placeholder for an in-flight request that was reported without its attributes.
NOT_ASKED = Asked()


class Request(Struct, frozen=True):
    """One client request, as read from its headers and body.

    Everything here was written by a client, but for `subset`, which the gateway writes: none of it is trusted beyond
    its type. `headers` have lower-case names; destination, served and subset headers are never in it."""

    request_id: str
    method: str = "POST"
    path: str = "/"
    headers: Mapping[str, str] = {}
    # The name the server will see, a base model or an adapter; "" where the request names none (bodyless, or not an
    # inference).
    model: str = ""
    # What prefix caches see, in order: the prompt's bytes, or the messages' roles and contents. Empty where unknown.
    prompt: bytes = b""
    body_size: int = 0
    # Why a body that may name a model was not read; "" where it was, or there is none.
    unread: str = ""
    # As it came, where it was read; what is kept of a request for longer than its pick does without.
    body: bytes = b""
    # The prompt's tokens, where somebody has told them.
    tokens: tuple[int, ...] | None = None
    streaming: bool = False
    # The most tokens the client will take back, where it says so.
    max_tokens: int | None = None
    objective: str = ""
    fairness_id: str = ""
    # From the request's InferenceObjective. Higher goes first; below 0 the request may be shed.
    priority: int = 0
    # The endpoints the gateway allows, each `ip:port` or `ip`; None: all. An empty tuple allows none.
    subset: tuple[str, ...] | None = None
    # Milliseconds to the first token, and for each of the next, that the client asks for; None where it does not.
    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None
    # The name the client gave, where `model` is another one that its request is rewritten to; else "".
    asked_model: str = ""
    # The name a header asks to have put into the body, "" for none. Not yet in `model`.
    wanted_model: str = ""

    @property
    def asked(self) -> Asked:
        """What is to be kept of the request while it is in flight."""
        return Asked(self.asked_model or self.model, self.slo_ttft_ms, self.slo_tpot_ms)

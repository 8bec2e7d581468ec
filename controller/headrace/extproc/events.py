"""What a stream tells its driver besides the bytes to send."""

from __future__ import annotations

from msgspec import Struct

from headrace.core import Request
from headrace.extproc.usage import Usage


class PickNeeded(Struct, frozen=True):
    """The request is known; the stream waits until it is resumed with a Decision or a Refusal.

    `covers_response`: this stream also sees the response to its end, so its own end is the request's end."""

    request: Request
    covers_response: bool


class RequestRefused(Struct, frozen=True):
    """The stream itself refused the request (an unreadable or too large body): no pick was asked for."""

    request: Request
    status: int
    reason: str


class RequestObserved(Struct, frozen=True):
    """An observation stream began: this request was sent with this pick (`ip:port[,...]`, "" where there is none)."""

    request_id: str
    destination: str
    # Whose it is: its fairness id, else the address that the gateway has seen it come from.
    flow: str = ""


class ResponseStarted(Struct, frozen=True):
    """The response's headers. `status` is 0 if unreadable; `served` the endpoint that answered, if the gateway says."""

    status: int
    served: str
    streaming: bool


class ResponseChunk(Struct, frozen=True):
    """A piece of the response's body went by; `size` in bytes."""

    size: int


class ResponseEnded(Struct, frozen=True):
    """The response is complete. `usage` is what it reported of its tokens, where its body was seen and says so."""

    usage: Usage | None = None


Event = PickNeeded | RequestRefused | RequestObserved | ResponseStarted | ResponseChunk | ResponseEnded

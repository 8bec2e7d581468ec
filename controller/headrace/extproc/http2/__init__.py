"""An HTTP/2 server connection that speaks gRPC, for one kind of peer: a gateway that holds an ext_proc conversation for
each request of its users. No I/O and no clock; bytes in, bytes out."""

from __future__ import annotations

from headrace.extproc.http2.budget import BufferBudget
from headrace.extproc.http2.connection import Connection
from headrace.extproc.http2.headers import RequestHeaders
from headrace.extproc.http2.limits import Limits
from headrace.extproc.http2.stream import Application, Call, Stream

__all__ = ["Application", "BufferBudget", "Call", "Connection", "Limits", "RequestHeaders", "Stream"]

"""The ext_proc conversation between a gateway and the endpoint picker. No I/O, no clock: bytes in, bytes out.

`ExtProcStream` is the entrance; what it tells its driver is in `headrace.extproc.events`."""

from headrace.extproc.conversation import BodyMode, ConversationSettings, ProtocolViolation
from headrace.extproc.stream import ExtProcStream
from headrace.extproc.wire import MalformedMessage

__all__ = ["BodyMode", "ConversationSettings", "ExtProcStream", "MalformedMessage", "ProtocolViolation"]

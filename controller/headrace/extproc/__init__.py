"""The ext_proc conversation between a gateway and the endpoint picker. No I/O, no clock: bytes in, bytes out.

`ExtProcStream` is the entrance; what it tells its driver is in `headrace.extproc.events`."""

from headrace.extproc.modes import BodyMode, ProtocolViolation
from headrace.extproc.settings import ConversationSettings
from headrace.extproc.stream import ExtProcStream
from headrace.extproc.usage import Usage
from headrace.extproc.wire import MalformedMessage

__all__ = ["BodyMode", "ConversationSettings", "ExtProcStream", "MalformedMessage", "ProtocolViolation", "Usage"]

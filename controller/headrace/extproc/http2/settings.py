"""What a peer sets (RFC 9113, 6.5)."""

from __future__ import annotations

from typing import Any

from headrace.extproc.http2.frames import (
    ENABLE_PUSH,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_BYTES,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    PROTOCOL_ERROR,
    SETTING,
    ConnectionFault,
)
from headrace.extproc.http2.sending import Sender

_LARGEST_FRAME = (1 << 24) - 1


def apply_settings(payload: bytes, sender: Sender[Any]) -> None:
    """Send by these settings from now on. Of our answers no header is kept in a table, so the peer's table does not
    matter. Raises ConnectionFault."""
    if len(payload) % SETTING.size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "SETTINGS of a length that is no multiple of 6")
    for name, value in SETTING.iter_unpack(payload):
        if name == INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR, f"an initial window of {value}")
            sender.initial_window = value
        elif name == MAX_FRAME_SIZE:
            if not MAX_FRAME_BYTES <= value <= _LARGEST_FRAME:
                raise ConnectionFault(PROTOCOL_ERROR, f"a frame size of {value}")
            sender.max_frame = value
        elif name == ENABLE_PUSH and value > 1:
            raise ConnectionFault(PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")

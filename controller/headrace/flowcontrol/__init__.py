"""Admission: which requests may go on, in which order, and which are turned away.

`queue` holds the rules, without a clock or an event loop; `controller` makes requests wait by them."""

from headrace.flowcontrol.config import FlowControlConfig, read_flow_control
from headrace.flowcontrol.controller import FlowController
from headrace.flowcontrol.queue import FlowQueue, Outcome, Ticket

__all__ = [
    "FlowControlConfig",
    "FlowController",
    "FlowQueue",
    "Outcome",
    "Ticket",
    "read_flow_control",
]

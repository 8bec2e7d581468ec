"""The values every other package speaks of: Pool, Endpoint, Request, Decision. Frozen; no I/O, no clock."""

from headrace.core.decision import Decision, Refusal, RefusalReason
from headrace.core.endpoint import Endpoint, InvalidAddress, endpoint_key, split_key
from headrace.core.pool import (
    EXTENSION_GROUP,
    GA_GROUP,
    FailureMode,
    InvalidPool,
    PickerReference,
    Pool,
    parse_pool,
)
from headrace.core.request import Request

__all__ = [
    "EXTENSION_GROUP",
    "GA_GROUP",
    "Decision",
    "Endpoint",
    "FailureMode",
    "InvalidAddress",
    "InvalidPool",
    "PickerReference",
    "Pool",
    "Refusal",
    "RefusalReason",
    "Request",
    "endpoint_key",
    "parse_pool",
    "split_key",
]

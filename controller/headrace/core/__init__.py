"""The values every other package speaks of: Pool, Endpoint, Request, Decision. Frozen; no I/O, no clock."""

from headrace.core.decision import Decision, Refusal, RefusalReason
from headrace.core.endpoint import Endpoint, InvalidAddress, endpoint_key, split_key
from headrace.core.model_rewrite import ModelRewrite, RewriteTable
from headrace.core.objective import InvalidObject, Objective
from headrace.core.pool import EXTENSION_GROUP, GA_GROUP, H2C, FailureMode, InvalidPool, PickerReference, Pool
from headrace.core.request import NOT_ASKED, Asked, Request

__all__ = [
    "EXTENSION_GROUP",
    "GA_GROUP",
    "H2C",
    "NOT_ASKED",
    "Asked",
    "Decision",
    "Endpoint",
    "FailureMode",
    "InvalidAddress",
    "InvalidObject",
    "InvalidPool",
    "ModelRewrite",
    "Objective",
    "PickerReference",
    "Pool",
    "Refusal",
    "RefusalReason",
    "Request",
    "RewriteTable",
    "endpoint_key",
    "split_key",
]

"""Every change of weights under traffic reaches the Envoys: 300 of them at 30 requests/s on the local cluster.

Whom the requests reach tells which weights an Envoy has: all to one pool, then all to the other. The routes that hold
both pools in the gateway stay, as in a replacement."""

from __future__ import annotations

import json
import time

import pytest

from ..e2e.stack import Stack
from .load import Load
from .replacing import forget, specs, traffic

FLIPS = 300
RATE = 30.0
LIMIT_SECONDS = 5.0
POOLS = ("blue", "green")


def weighted(backends: list[dict[str, object]], chosen: str) -> list[dict[str, object]]:
    """The backendRefs of a rule with all weight on one pool; the other keeps a thousandth, as it would be left out."""
    first = backends[0]
    return [{**first, "name": pool, "weight": 999 if pool == chosen else 1} for pool in POOLS]


def flip(stack: Stack, rules: list[dict[str, object]], chosen: str) -> None:
    """Give one pool nearly everything."""
    wanted = [{**rule, "backendRefs": weighted(rule["backendRefs"], chosen)} for rule in rules]  # type: ignore[arg-type]
    stack.kubectl("patch", "httproute", "chat", "--type=merge", "-p", json.dumps({"spec": {"rules": wanted}}))

"""What a replacement is asked to do: pools, steps, gates and limits. Pure; read from JSON and written to it.

The plan is kept in the cluster beside the state, so that whoever takes over does what was asked and not what its own
defaults say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from headrace.config.decode import Share, decode
from headrace.core import GA_GROUP
from headrace.core.invalid import InvalidField
from headrace.core.pool import VERSION_OF_GROUP

DEFAULT_STEPS = (1, 5, 25, 50, 100)
# Kubernetes' own rules: names become parts of the API server's paths and of the Job's rights.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_GROUP = re.compile(r"[a-z0-9.-]{0,253}")
_WORD = re.compile(r"[a-z0-9]{1,63}")


class InvalidPlan(InvalidField):
    """A plan that cannot be carried out: names the field, its value and the fix."""


def is_name(text: str) -> bool:
    """Whether an object may have this name (RFC 1123 subdomain)."""
    return _NAME.fullmatch(text) is not None


def is_namespace(text: str) -> bool:
    """Whether a namespace may have this name (RFC 1123 label)."""
    return _NAMESPACE.fullmatch(text) is not None


class PoolRef(Struct, frozen=True, order=True):
    """An InferencePool by API group, namespace and name."""

    group: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name} ({self.group}/{VERSION_OF_GROUP.get(self.group, '?')})"


class ObjectRef(Struct, frozen=True, order=True):
    """An object to delete, as the API server's paths name it. `group` is "" for the core group."""

    group: str
    version: str
    plural: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.plural}{'.' if self.group else ''}{self.group} {self.namespace}/{self.name}"


class Plan(Struct, frozen=True, kw_only=True):
    """One replacement. Times in seconds, shares in percent, rates 0..1; a limit of 0 is no limit."""

    old: PoolRef
    new: PoolRef
    steps: tuple[int, ...] = DEFAULT_STEPS
    # Steps (their percent) after whose gate somebody has to approve.
    manual: tuple[int, ...] = ()
    gates: tuple[Literal["errors", "ttft", "tpot"], ...] = ("errors", "ttft", "tpot")
    interval: Annotated[float, Meta(ge=1, le=86400)] = 60.0
    gate_timeout: Annotated[float, Meta(ge=1, le=604_800)] = 600.0
    # Requests that the new pool must have answered in a window before a gate says anything.
    min_sample: Annotated[int, Meta(ge=1, le=10_000_000)] = 30
    # Level of each one-sided test, see `statistics`.
    alpha: Annotated[float, Meta(ge=1e-09, le=0.5)] = 0.01
    # Server errors (5xx) of the new pool, whatever the old one does.
    max_error_rate: Share = 0.01
    # A significant difference of error rates smaller than this is no reason to go back.
    max_error_increase: Share = 0.005
    # The quantile that latency limits and ratios are about.
    quantile: Annotated[float, Meta(ge=0.01, le=0.999)] = 0.9
    max_ttft: Annotated[float, Meta(ge=0, le=86400)] = 0.0
    max_ttft_ratio: Annotated[float, Meta(ge=0, le=1e6)] = 1.5
    max_tpot: Annotated[float, Meta(ge=0, le=86400)] = 0.0
    max_tpot_ratio: Annotated[float, Meta(ge=0, le=1e6)] = 1.5
    # What a window with too few requests comes to, once `gate_timeout` is over.
    insufficient: Literal["rollback", "pass"] = "rollback"
    warmup_requests: Annotated[int, Meta(ge=0, le=100_000)] = 20
    warmup_timeout: Annotated[float, Meta(ge=1, le=86400)] = 180.0
    # Ready endpoints that the new pool must have for each one of the old pool's.
    capacity_ratio: Annotated[float, Meta(ge=0, le=1000)] = 1.0
    # A new pool without ready endpoints or endpoint picker for so long is dead.
    dead_after: Annotated[float, Meta(ge=1, le=3600)] = 5.0
    drain_timeout: Annotated[float, Meta(ge=0, le=604_800)] = 600.0
    approval_timeout: Annotated[float, Meta(ge=1, le=2_592_000)] = 86400.0
    timeout: Annotated[float, Meta(ge=1, le=2_592_000)] = 14400.0
    gitops: Literal["refuse", "paused"] = "refuse"
    # Where the Gateway is reached for the warm-up. Empty: the address in its status.
    gateway_url: str = ""
    # The Prometheus that gates measure with, and label matchers for all that it is asked. Empty: the Pods' own pages.
    prometheus_url: str = ""
    prometheus_match: str = ""
    remove_old: tuple[ObjectRef, ...] = ()
    remove_new: tuple[ObjectRef, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dict(msgspec.to_builtins(self))

    @property
    def expected_seconds(self) -> float:
        """How long a replacement takes if all goes well: the gates' windows, and a warm-up of half a minute."""
        return len(self.steps) * self.interval + 30.0


def _check(plan: Plan) -> None:
    if plan.old == plan.new:
        raise InvalidPlan("new", str(plan.new), "name another pool than the old one")
    if plan.old.namespace != plan.new.namespace:
        raise InvalidPlan("new.namespace", plan.new.namespace, f"make the new pool in {plan.old.namespace}, as the old")
    for field in ("old", "new"):
        pool: PoolRef = getattr(plan, field)
        if pool.group not in VERSION_OF_GROUP:
            raise InvalidPlan(f"{field}.group", pool.group, f"use {' or '.join(VERSION_OF_GROUP)}")
        if not is_name(pool.name):
            raise InvalidPlan(f"{field}.name", pool.name, "give a pool's name: lower case letters, digits, '-', '.'")
        if not is_namespace(pool.namespace):
            raise InvalidPlan(f"{field}.namespace", pool.namespace, "give a namespace's name")
    for field in ("remove_old", "remove_new"):
        for at, ref in enumerate(getattr(plan, field)):
            if not _is_object(ref):
                raise InvalidPlan(f"{field}[{at}]", str(ref), "give an object as the API server's paths name it")
    steps = plan.steps
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] != 100:
        raise InvalidPlan("steps", list(steps), "give rising percentages of 1 to 100, the last one 100")
    if unknown := set(plan.manual) - set(steps):
        raise InvalidPlan("manual", sorted(unknown), "name percentages that are among steps")
    for field in ("gateway_url", "prometheus_url"):
        url = getattr(plan, field)
        if url and not url.startswith(("http://", "https://")):
            raise InvalidPlan(field, url, "give a URL with http:// or https://")
    if plan.gate_timeout < plan.interval:
        raise InvalidPlan("gate_timeout", plan.gate_timeout, f"make it at least interval ({plan.interval:g})")


def _is_object(ref: ObjectRef) -> bool:
    words = all(_WORD.fullmatch(word) for word in (ref.version, ref.plural))
    placed = not ref.namespace or is_namespace(ref.namespace)
    return words and placed and _GROUP.fullmatch(ref.group) is not None and is_name(ref.name)


def parse_plan(value: object) -> Plan:
    """The plan of decoded JSON; what is left out has its default, and a pool may be its name. Raises InvalidPlan."""
    if not isinstance(value, Mapping):
        raise InvalidPlan("plan", value, "give an object")
    known = Plan.__struct_fields__
    if unknown := sorted(map(str, set(value) - set(known))):
        raise InvalidPlan(unknown[0], value[unknown[0]], f"no such field: the fields are {', '.join(known)}")
    given = dict(value)
    for role in ("old", "new"):
        pool = {"name": given[role]} if isinstance(given.get(role), str) else given.get(role)
        given[role] = {"group": GA_GROUP, "namespace": "default", **pool} if isinstance(pool, Mapping) else pool
    return decode(given, Plan, "", InvalidPlan)

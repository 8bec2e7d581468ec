"""The flags of `headrace pool replace`."""

from __future__ import annotations

import argparse
import json
import os
import socket
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace.config.flags import add_flags, flag, number, optional, path, read_flags, whole
from headrace.config.values import duration
from headrace.core import GA_GROUP
from headrace.core.pool import VERSION_OF_GROUP
from headrace.replace.prometheus import Credentials
from headrace.replace.store import who

ACTIONS = ("run", "plan", "routes", "status", "follow", "rollback", "approve", "report")
_GROUPS = tuple(VERSION_OF_GROUP)


def _seconds(text: str) -> float:
    """A number of seconds, or a duration."""
    try:
        return float(text)
    except ValueError:
        return duration(text)


_time = number(1e-9, 1e6, read=_seconds, fix="give seconds, more than 0, or a duration such as 1m30s")


def _credentials(text: str) -> Credentials | None:
    return Credentials(Path(text)) if text else None


def _namespaces(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked to do. Times in seconds."""

    action: str = flag("run", "what to do: run a replacement, show its plan, or ask of one", choices=ACTIONS)
    pool: str = flag("", "the pool to replace")
    replacement: str = flag("", "the pool that takes its place")
    namespace: str = flag("default", "namespace of both pools")
    pool_group: str = flag(GA_GROUP, "API group of the pool", choices=_GROUPS)
    replacement_group: str = flag(GA_GROUP, "API group of the replacement", choices=_GROUPS)
    plan_file: Path | None = flag("", "JSON file with a plan; the flags above go before it", path)
    plan_text: str = flag("", "a plan as JSON text, instead of a file", names="--plan", metavar="JSON")
    prometheus_url: str = flag("", "measure with this Prometheus; by default with the Pods' own metrics pages")
    prometheus_match: str = flag(
        "",
        "label matchers for all that Prometheus is asked, where it has several clusters: 'cluster=\"a\"'",
        metavar="MATCHERS",
    )
    credentials: Credentials | None = flag(
        "",
        "folder of a mounted Secret for Prometheus: token, or username and password; ca.crt",
        _credentials,
        "--prometheus-credentials",
        metavar="FOLDER",
    )
    run: str = flag("", "name of this attempt: a process with the same name carries on, another one begins")
    kubeconfig: str | None = flag("", "kubeconfig; by default $KUBECONFIG, else the Pod's service account", optional)
    context: str | None = flag("", "context in the kubeconfig; by default its current one", optional)
    via: str = flag(
        "auto",
        "how metrics pages are read: from Pods or through the API server; auto: from Pods if this runs in one",
        names="--read-via",
        choices=("auto", "pod", "proxy"),
    )
    identity: str = flag("", "holder of the Lease; by default $POD_NAME, else host and process", environment="POD_NAME")
    poll_interval: float = flag(2.0, "seconds between two looks at the pools", _time)
    lease_patience: float = flag(60.0, "seconds to wait for a Lease that somebody else holds", _time)
    lease_duration: float = flag(15.0, "seconds after which a Lease not renewed may be taken", _time)
    after: int = flag(0, "follow: lines of the log that were seen already", whole())
    timeout: float = flag(3600.0, "follow: seconds to wait for news", _time)
    output: Path = flag(".", "report: folder to write it to", Path)
    by: str = flag("", "rollback, approve: who asks")
    # Namespaces of routes in which a Job has rights to give up at its end; None: this is no Job.
    rights_in: tuple[str, ...] | None = flag(
        None,
        "run: give up the Job's rights at its end, in these namespaces of routes too; by default $RIGHTS_IN",
        _namespaces,
        environment="RIGHTS_IN",
        metavar="NAMESPACE,...",
    )
    new_is_made: bool = flag(
        False,
        "plan: the replacement is made next, and what it lacks now is in nobody's way",
        names="--replacement-is-made",
        action="store_true",
    )
    plan: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every flag."""
    add_flags(parser, Options)


def read_options(args: argparse.Namespace) -> Options:
    """The options that parsed flags come to. Raises ValueError naming the flag and the fix."""
    options = read_flags(args, Options)
    if options.plan_text and options.plan_file is not None:
        raise ValueError("--plan and --plan-file: give one of the two")
    source = f"--plan-file={options.plan_file}" if options.plan_file is not None else "--plan"
    try:
        plan = json.loads(options.plan_file.read_bytes() if options.plan_file else options.plan_text or "{}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {error}: give readable JSON") from None
    if not isinstance(plan, dict):
        raise ValueError(f"{source}: it is no JSON object: see the plan's fields")
    for role, name, group in (
        ("old", options.pool, options.pool_group),
        ("new", options.replacement, options.replacement_group),
    ):
        if name:
            plan[role] = {"group": group, "namespace": options.namespace, "name": name}
    plan |= {name: value for name in ("prometheus_url", "prometheus_match") if (value := getattr(options, name))}
    if "old" not in plan:
        raise ValueError("--pool: name the pool to replace")
    if "new" not in plan and options.action in ("run", "plan", "routes"):
        raise ValueError("--replacement: name the pool that takes its place")
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and options.kubeconfig is None
    return replace(
        options,
        plan=plan,
        run=options.run or uuid.uuid4().hex,
        via=options.via if options.via != "auto" else "pod" if in_pod else "proxy",
        identity=options.identity or f"{socket.gethostname()}-{os.getpid()}",
        by=options.by or who(),
    )

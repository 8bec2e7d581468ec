"""The flags of `headrace pool replace`."""

from __future__ import annotations

import argparse
import json
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.core import GA_GROUP
from headrace.core.pool import VERSION_OF_GROUP
from headrace.replace.prometheus import Credentials
from headrace.replace.store import who

ACTIONS = ("run", "plan", "routes", "status", "follow", "rollback", "approve", "report")


@dataclass(frozen=True)
class Options:
    """What the command was asked to do."""

    action: str
    plan: dict[str, Any]
    run: str
    kubeconfig: str | None
    context: str | None
    via: str
    identity: str
    credentials: Credentials | None
    poll_interval: float
    lease_patience: float
    lease_duration: float
    after: int
    timeout: float
    output: Path
    by: str
    new_is_made: bool
    # Namespaces of routes in which a Job has rights to give up at its end; None: this is no Job.
    rights_in: tuple[str, ...] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add("--action", choices=ACTIONS, default="run", help="what to do: run a replacement, show its plan, or ask of one")
    add("--pool", default="", help="the pool to replace")
    add("--replacement", default="", help="the pool that takes its place")
    add("--namespace", default="default", help="namespace of both pools")
    add("--pool-group", default=GA_GROUP, choices=tuple(VERSION_OF_GROUP), help="API group of the pool")
    add("--replacement-group", default=GA_GROUP, choices=tuple(VERSION_OF_GROUP), help="API group of the replacement")
    add("--plan-file", type=Path, default=None, help="JSON file with a plan; the flags above go before it")
    add("--plan", default="", metavar="JSON", help="a plan as JSON text, instead of a file")
    add(
        "--prometheus-url", default="", help="measure with this Prometheus; by default with the Pods' own metrics pages"
    )
    match = "label matchers for all that Prometheus is asked, where it has several clusters: 'cluster=\"a\"'"
    add("--prometheus-match", default="", metavar="MATCHERS", help=match)
    folder = "folder of a mounted Secret for Prometheus: token, or username and password; ca.crt"
    add("--prometheus-credentials", type=Path, default=None, metavar="FOLDER", help=folder)
    add("--run", default="", help="name of this attempt: a process with the same name carries on, another one begins")
    add("--kubeconfig", default=None, help="kubeconfig; by default $KUBECONFIG, else the Pod's service account")
    via = "how metrics pages are read: from Pods or through the API server; auto: from Pods if this runs in one"
    add("--context", default=None, help="context in the kubeconfig; by default its current one")
    add("--read-via", choices=("auto", "pod", "proxy"), default="auto", help=via)
    own = os.environ.get("POD_NAME", "")
    add("--identity", default=own, help="holder of the Lease; by default $POD_NAME, else host and process")
    add("--poll-interval", type=_seconds, default=2.0, help="seconds between two looks at the pools")
    add("--lease-patience", type=_seconds, default=60.0, help="seconds to wait for a Lease that somebody else holds")
    add("--lease-duration", type=_seconds, default=15.0, help="seconds after which a Lease not renewed may be taken")
    add("--after", type=int, default=0, help="follow: lines of the log that were seen already")
    add("--timeout", type=_seconds, default=3600.0, help="follow: seconds to wait for news")
    add("--output", type=Path, default=Path(), help="report: folder to write it to")
    add("--by", default="", help="rollback, approve: who asks")
    rights = "run: give up the Job's rights at its end, in these namespaces of routes too; by default $RIGHTS_IN"
    add("--rights-in", default=os.environ.get("RIGHTS_IN"), metavar="NAMESPACE,...", help=rights)
    made = "plan: the replacement is made next, and what it lacks now is in nobody's way"
    add("--replacement-is-made", action="store_true", help=made)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds, more than 0")
    return value


def read_options(args: argparse.Namespace) -> Options:
    """What the flags come to. Raises ValueError naming the flag and the fix."""
    if args.plan and args.plan_file is not None:
        raise ValueError("--plan and --plan-file: give one of the two")
    source = f"--plan-file={args.plan_file}" if args.plan_file is not None else "--plan"
    try:
        plan = json.loads(
            args.plan_file.read_text(encoding="utf-8") if args.plan_file is not None else args.plan or "{}"
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {error}: give readable JSON") from None
    if not isinstance(plan, dict):
        raise ValueError(f"{source}: it is no JSON object: see the plan's fields")
    for field, name, group in (
        ("old", args.pool, args.pool_group),
        ("new", args.replacement, args.replacement_group),
    ):
        if name:
            plan[field] = {"group": group, "namespace": args.namespace, "name": name}
    for field, value in (("prometheus_url", args.prometheus_url), ("prometheus_match", args.prometheus_match)):
        if value:
            plan[field] = value
    if "old" not in plan:
        raise ValueError("--pool: name the pool to replace")
    if "new" not in plan and args.action in ("run", "plan", "routes"):
        raise ValueError("--replacement: name the pool that takes its place")
    credentials = Credentials(args.prometheus_credentials) if args.prometheus_credentials is not None else None
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and args.kubeconfig is None
    via = args.read_via if args.read_via != "auto" else "pod" if in_pod else "proxy"
    return Options(
        action=args.action,
        plan=plan,
        run=args.run or uuid.uuid4().hex,
        kubeconfig=args.kubeconfig,
        context=args.context,
        via=via,
        identity=args.identity or f"{socket.gethostname()}-{os.getpid()}",
        credentials=credentials,
        poll_interval=args.poll_interval,
        lease_patience=args.lease_patience,
        lease_duration=args.lease_duration,
        after=args.after,
        timeout=args.timeout,
        output=args.output,
        by=args.by or who(),
        new_is_made=args.replacement_is_made,
        rights_in=None if args.rights_in is None else tuple(name for name in args.rights_in.split(",") if name),
    )

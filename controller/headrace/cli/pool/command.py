"""`headrace pool`: status, explain, lint, migrate, replace."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from headrace.cli.pool import views
from headrace.cli.pool.cluster import NotAnswered, ask_url, decisions_of, pool_statuses
from headrace.cli.pool.findings import Severity
from headrace.cli.pool.kubeconfig import choose
from headrace.cli.pool.manifests import read_files
from headrace.kube.client import ApiError, ConfigurationError, connect
from headrace.replace import command as replacement

_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs and their flags."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=summary, description=summary[:1].upper() + summary[1:] + ".")

    status = verb("status", "show pools, their Pods, pickers and gateways")
    status.add_argument("name", nargs="?", default="", metavar="POOL", help="one pool, with its endpoints")
    explain = verb("explain", "say why a request went where it went")
    explain.add_argument("request_id", metavar="REQUEST_ID", help="its x-request-id")
    explain.add_argument("--pool", dest="name", default="", help="ask the pickers of this pool only")
    explain.add_argument("--url", default="", help="ask this picker, http://HOST:PORT of its metrics, and no cluster")
    explain.add_argument("--token-file", default="", help="with --url: a file with the token it asks for")
    for parser_ in (status, explain):
        parser_.add_argument("-n", "--namespace", default="", help="namespace of the pools; default if not given")
        parser_.add_argument("-A", "--all-namespaces", action="store_true", help="pools of all namespaces")
        order = "else $KUBECONFIG, the Pod's service account, the local cluster's, ~/.kube/config"
        parser_.add_argument("--kubeconfig", default="", help=order)
        parser_.add_argument("--context", default="", help="context in the kubeconfig; by default its current one")
        parser_.add_argument("--metrics-port", type=int, default=9090, help="the pickers' metrics port; 9090")
        parser_.add_argument("-o", "--output", choices=("text", "json"), default="text")
    check = verb("lint", "check manifests: pools, routes, objectives, rewrites, pickers and their configuration")
    check.add_argument("files", nargs="+", metavar="FILE", help="YAML manifests; - for standard input")
    check.add_argument("--strict", action="store_true", help="warnings count as errors")
    check.add_argument("-o", "--output", choices=("text", "json"), default="text")
    convert = verb("migrate", "convert InferencePool v1alpha2 manifests to v1, on standard output")
    convert.add_argument("files", nargs="+", metavar="FILE", help="YAML manifests; - for standard input")
    replacement.add_arguments(verb("replace", "replace a pool under traffic, gated and rolled back by itself"))


def run(args: argparse.Namespace) -> int:
    """0 where all is well; 1 where lint found errors, or what was asked for is not there. Wrong files and flags raise
    ValueError with the fix."""
    if args.verb == "replace":
        return replacement.run(args)
    if args.verb == "lint":
        return _lint(args)
    if args.verb == "migrate":
        return _migrate(args)
    if args.verb == "explain" and args.url:
        return _answered(_explain_url(args))
    return _answered(_with_client(args, _status if args.verb == "status" else _explain))


def _print(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"headrace pool: {text}\n")


def _lint(args: argparse.Namespace) -> int:
    from headrace.cli.pool.lint import lint

    found = lint(read_files(args.files))
    if args.output == "json":
        _print(json.dumps([one.as_json() for one in found], indent=2))
    elif found:
        _print("\n".join(one.as_text() for one in found))
    bad = (Severity.ERROR, Severity.WARNING) if args.strict else (Severity.ERROR,)
    return _FAILED if any(one.severity in bad for one in found) else 0


def _migrate(args: argparse.Namespace) -> int:
    from headrace.cli.pool.migrate import migrate

    result = migrate(read_files(args.files))
    for note in result.notes:
        _complain(note)
    if not result.pools:
        _complain("there is no InferencePool of inference.networking.x-k8s.io/v1alpha2 in these files")
    sys.stdout.write(result.text)
    return 0 if result.pools else _FAILED


def _answered(work: Coroutine[Any, Any, int]) -> int:
    """Run it; what the cluster or a picker refuses is one line, not a traceback."""
    try:
        return asyncio.run(work)
    except (ApiError, ConfigurationError, NotAnswered) as error:
        _complain(str(error))
        return _FAILED


async def _with_client(
    args: argparse.Namespace, work: Callable[[argparse.Namespace, Any, str | None], Awaitable[int]]
) -> int:
    path, note = choose(args.kubeconfig, args.context, os.environ, Path.home())
    if note:
        _complain(f"asking {note}")
    client = await connect(path, args.context or None)
    try:
        return await work(args, client, None if args.all_namespaces else args.namespace or "default")
    finally:
        await client.close()


async def _status(args: argparse.Namespace, client: Any, namespace: str | None) -> int:
    found = await pool_statuses(client, namespace, args.name, args.metrics_port)
    where = "any namespace" if namespace is None else f"namespace {namespace}"
    if not found:
        _complain(f"there is no InferencePool {args.name or ''}".rstrip() + f" in {where}")
        return _FAILED
    if args.output == "json":
        _print(json.dumps([one.as_json() for one in found], indent=2))
    else:
        _print(views.statuses(found, endpoints=bool(args.name)))
    return 0


async def _explain(args: argparse.Namespace, client: Any, namespace: str | None) -> int:
    found, trouble = await decisions_of(client, namespace, args.name, args.metrics_port, args.request_id)
    for text in trouble:
        _complain(text)
    return _show(args, found)


async def _explain_url(args: argparse.Namespace) -> int:
    token = ""
    if args.token_file:
        try:
            token = Path(args.token_file).read_text().strip()  # noqa: ASYNC240 (nothing else runs)
        except (OSError, UnicodeDecodeError) as error:
            raise NotAnswered(f"--token-file={args.token_file}: it cannot be read: {error}") from None
    page = await ask_url(args.url, f"/debug/decisions?{urlencode({'request_id': args.request_id})}", token)
    return _show(args, list(page.get("decisions") or []))


def _show(args: argparse.Namespace, found: list[dict[str, Any]]) -> int:
    if args.output == "json":
        _print(json.dumps(found, indent=2))
    elif found:
        _print("\n\n".join(views.decision(one) for one in found))
    if not found:
        _complain(
            f"no picker knows request {args.request_id}: each keeps its last 1,000 decisions, and only of requests "
            "that reached it; the id is in the response's or the server's x-request-id"
        )
        return _FAILED
    return 0

"""The flags of `headrace epp`, and what they come to."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.core import EXTENSION_GROUP, GA_GROUP, Endpoint, FailureMode, InvalidAddress, split_key


class InvalidFlag(ValueError):  # noqa: N818
    """A flag that cannot be used: names the flag, its value and the fix."""

    def __init__(self, flag: str, value: object, fix: str) -> None:
        super().__init__(f"--{flag}={value}: {fix}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the process was asked to do. Times in seconds."""

    pool_name: str = ""
    pool_namespace: str = "default"
    pool_group: str = GA_GROUP
    endpoints: tuple[Endpoint, ...] = ()
    static_failure_mode: FailureMode = FailureMode.CLOSE
    bind_address: str = "0.0.0.0"  # a Pod's own network; tests bind loopback
    grpc_port: int = 9002
    grpc_health_port: int = 9003
    metrics_port: int = 9090
    secure_serving: bool = True
    cert_path: Path | None = None
    enable_cert_reload: bool = True
    config_file: Path | None = None
    config_text: str = ""
    kubeconfig: str | None = None
    verbosity: int = 2
    refresh_metrics_interval: float = 0.2
    idle_metrics_interval: float = 5.0
    metrics_staleness_threshold: float = 2.0
    pick_deadline: float = 2.0
    drain_delay: float = 3.0
    drain_timeout: float = 30.0
    max_body_bytes: int = 64 << 20
    decisions_kept: int = 1000
    environment: Mapping[str, str] = field(default_factory=dict)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of a Go duration such as 50ms, 2s, 1m30s; a bare 0 is allowed. For argparse."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 50ms, 2s or 1m30s")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def boolean(text: str) -> bool:
    """A Go flag's truth value. For argparse."""
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a truth value: write true or false")


def port(text: str) -> int:
    """A TCP port; 0 takes a free one. For argparse."""
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number of 1 to 65535, or 0 for a free one")
    return int(text)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every flag, under the reference picker's names where it has them."""
    flag = parser.add_argument
    flag("--pool-name", default="", help="the InferencePool to serve")
    flag("--pool-namespace", default="", help="its namespace; else $NAMESPACE, else default")
    flag("--pool-group", default=GA_GROUP, help=f"its API group: {GA_GROUP} or {EXTENSION_GROUP}")
    flag("--endpoints", default="", help="serve these ip:port,ip:port instead of a pool, without Kubernetes")
    flag("--failure-mode", default=FailureMode.CLOSE.value, help="with --endpoints: FailClose or FailOpen")
    flag("--bind-address", default="0.0.0.0", help="the address that every port is bound to")
    flag("--grpc-port", type=port, default=9002, help="ext_proc")
    flag("--grpc-health-port", type=port, default=9003, help="gRPC health")
    flag("--metrics-port", type=port, default=9090, help="/metrics, /healthz, /readyz, /debug")
    bool_flag = {"type": boolean, "nargs": "?", "const": True}
    flag("--secure-serving", default=True, help="TLS on the ext_proc port", **bool_flag)  # type: ignore[arg-type]
    flag("--cert-path", default="", help="directory of tls.crt and tls.key; self-signed without it")
    reload_help = "take up changed certificates without a restart"
    flag("--enable-cert-reload", default=True, help=reload_help, **bool_flag)  # type: ignore[arg-type]
    flag("--config-file", default="", help="an EndpointPickerConfig; taken up again when it changes")
    flag("--config-text", default="", help="the same as text, in place of a file")
    flag("--kubeconfig", default="", help="else in-cluster, or $KUBECONFIG")
    flag("-v", "--v", dest="verbosity", type=_whole, default=2, help="2 default, 3 verbose, 4 debug, 5 trace")
    flag("--zap-encoder", default="json", help="accepted for the reference picker's manifests; logs are JSON")
    interval_help = "time between metrics pages of a server in use"
    flag("--refresh-metrics-interval", type=duration, default=0.2, help=interval_help)
    flag("--idle-metrics-interval", type=duration, default=5.0, help="the same of an idle server")
    stale_help = "metrics older than this are not used"
    flag("--metrics-staleness-threshold", type=duration, default=2.0, help=stale_help)
    flag("--pick-deadline", type=duration, default=2.0, help="then the pool's failure mode answers")
    flag("--drain-delay", type=duration, default=3.0, help="serve on this long after SIGTERM, not ready")
    flag("--drain-timeout", type=duration, default=30.0, help="then wait this long for open streams")
    flag("--max-request-body-bytes", type=_whole, default=64 << 20, help="a longer request body is answered 413")


def read_options(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Options:
    """The options that parsed flags come to. Raises InvalidFlag."""
    endpoints = _endpoints(args.endpoints)
    if bool(args.pool_name) == bool(endpoints):
        raise InvalidFlag("pool-name", args.pool_name, "name an InferencePool, or give --endpoints, and not both")
    if args.pool_group not in (GA_GROUP, EXTENSION_GROUP):
        raise InvalidFlag("pool-group", args.pool_group, f"use {GA_GROUP} or {EXTENSION_GROUP}")
    try:
        failure_mode = FailureMode(args.failure_mode)
    except ValueError:
        raise InvalidFlag("failure-mode", args.failure_mode, "use FailOpen or FailClose") from None
    ports = [args.grpc_port, args.grpc_health_port, args.metrics_port]
    used = [number for number in ports if number]
    if len(set(used)) != len(used):
        raise InvalidFlag("grpc-port", args.grpc_port, "give gRPC, health and metrics a port each")
    if args.refresh_metrics_interval <= 0 or args.idle_metrics_interval <= 0:
        raise InvalidFlag("refresh-metrics-interval", args.refresh_metrics_interval, "give a time over 0")
    if args.config_file and args.config_text:
        raise InvalidFlag("config-text", "...", "give --config-file or --config-text, not both")
    if args.pick_deadline <= 0:
        raise InvalidFlag("pick-deadline", args.pick_deadline, "give a time over 0")
    return Options(
        pool_name=args.pool_name,
        pool_namespace=args.pool_namespace or environment.get("NAMESPACE") or "default",
        pool_group=args.pool_group,
        endpoints=endpoints,
        static_failure_mode=failure_mode,
        bind_address=args.bind_address,
        grpc_port=args.grpc_port,
        grpc_health_port=args.grpc_health_port,
        metrics_port=args.metrics_port,
        secure_serving=args.secure_serving,
        cert_path=_directory("cert-path", args.cert_path),
        enable_cert_reload=args.enable_cert_reload,
        config_file=_file("config-file", args.config_file),
        config_text=args.config_text,
        kubeconfig=args.kubeconfig or None,
        verbosity=args.verbosity,
        refresh_metrics_interval=args.refresh_metrics_interval,
        idle_metrics_interval=max(args.idle_metrics_interval, args.refresh_metrics_interval),
        metrics_staleness_threshold=args.metrics_staleness_threshold,
        pick_deadline=args.pick_deadline,
        drain_delay=args.drain_delay,
        drain_timeout=args.drain_timeout,
        max_body_bytes=args.max_request_body_bytes,
    )


def _endpoints(text: str) -> tuple[Endpoint, ...]:
    found: list[Endpoint] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            address, number = split_key(part)
        except InvalidAddress as error:
            raise InvalidFlag("endpoints", text, str(error)) from None
        endpoint = Endpoint(namespace="", pod_name=part, address=address, port=number)
        if any(endpoint.key == other.key for other in found):
            raise InvalidFlag("endpoints", text, f"{endpoint.key} is there twice: name each endpoint once")
        found.append(endpoint)
    return tuple(found)


def _directory(flag: str, text: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    for name in ("tls.crt", "tls.key"):
        if not (path / name).is_file():
            raise InvalidFlag(flag, text, f"there is no {name} in it: mount the certificate's Secret there")
    return path


def _file(flag: str, text: str) -> Path | None:
    if not text:
        return None
    if not Path(text).is_file():
        raise InvalidFlag(flag, text, "there is no such file")
    return Path(text)

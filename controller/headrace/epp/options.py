"""The flags of `headrace epp`, and what they come to."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.core import (
    EXTENSION_GROUP,
    GA_GROUP,
    Endpoint,
    FailureMode,
    InvalidAddress,
    InvalidPool,
    endpoint_key,
    split_key,
)
from headrace.core.bounded_json import MAX_BYTES
from headrace.core.fields import is_digits
from headrace.core.pool import MAX_TARGET_PORTS, read_selector
from headrace.epp.flag_types import InvalidFlag, boolean, duration, port, whole
from headrace.epp.reference_flags import add_reference_flags, check_reference_flags, verbosity

__all__ = ["InvalidFlag", "Options", "add_arguments", "boolean", "duration", "port", "read_options"]

_HOST = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the process was asked to do. Times in seconds."""

    pool_name: str = ""
    pool_namespace: str = "default"
    pool_group: str = GA_GROUP
    endpoints: tuple[Endpoint, ...] = ()
    # Instead of a pool: the Pods with these labels, at these ports.
    endpoint_selector: Mapping[str, str] = field(default_factory=dict)
    endpoint_target_ports: tuple[int, ...] = ()
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
    drain_delay: float = 6.0
    drain_timeout: float = 30.0
    max_body_bytes: int = 64 << 20
    max_parsed_body_bytes: int = MAX_BYTES
    subset_filter: bool = True
    control_headers: bool = True
    metrics_endpoint_auth: bool = False
    leader_election: bool = False
    # Other replicas: behind the name of a headless Service, or at these addresses. They and we show peer_cert_path.
    peer_service: str = ""
    peers: tuple[str, ...] = ()
    peer_port: int = 9004
    peer_cert_path: Path | None = None
    own_address: str = ""
    # Where traces of picks go; None without them.
    tracing: bool = False
    # Who this replica is: its Pod's name.
    identity: str = ""
    metrics_scheme: str = "http"
    metrics_path: str = ""
    metrics_page_port: int = 0
    metrics_verify: bool = False
    decisions_kept: int = 1000
    conformance_hooks: bool = False
    # What metrics call the pool: its name, or the picker's where it has none.
    served_name: str = "static"

    @property
    def has_peers(self) -> bool:
        """Whether other replicas are to be followed."""
        return bool(self.peer_service or self.peers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every flag, under the reference picker's names where it has them."""
    flag = parser.add_argument
    flag("--pool-name", default="", help="the InferencePool to serve")
    flag("--pool-namespace", default="", help="its namespace; else $NAMESPACE, else default")
    flag("--pool-group", default=GA_GROUP, help=f"its API group: {GA_GROUP} or {EXTENSION_GROUP}")
    flag("--endpoints", default="", help="serve these ip:port,ip:port instead of a pool, without Kubernetes")
    flag("--endpoint-selector", default="", help="serve the Pods with these labels, k=v,k=v, instead of a pool")
    flag("--endpoint-target-ports", default="", help="with --endpoint-selector: 1 to 8 ports, 8000,8001")
    static_help = "without a pool: FailClose or FailOpen"
    flag("--failure-mode", default=FailureMode.CLOSE.value, help=static_help)
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
    flag("-v", "--v", dest="verbosity", type=whole, default=2, help="2 default, 3 verbose, 4 debug, 5 trace")
    interval_help = "time between metrics pages of a server in use"
    flag("--refresh-metrics-interval", type=duration, default=0.2, help=interval_help)
    flag("--idle-metrics-interval", type=duration, default=5.0, help="the same of an idle server")
    stale_help = "metrics older than this are not used"
    flag("--metrics-staleness-threshold", type=duration, default=2.0, help=stale_help)
    flag("--pick-deadline", type=duration, default=2.0, help="then the pool's failure mode answers")
    serve_on = "serve on this long after SIGTERM: not ready at once, not healthy to gateways after half of it"
    flag("--drain-delay", type=duration, default=6.0, help=serve_on)
    flag("--drain-timeout", type=duration, default=30.0, help="then wait this long for open streams")
    flag("--max-request-body-bytes", type=whole, default=64 << 20, help="a longer request body is answered 413")
    parsed_help = "a longer one is routed by load alone; 413 where the pool rewrites models"
    flag("--max-parsed-body-bytes", type=whole, default=MAX_BYTES, help=parsed_help)
    subset_help = "pick among all endpoints, whatever subset the gateway names"
    flag("--disable-endpoint-subset-filter", default=False, help=subset_help, **bool_flag)  # type: ignore[arg-type]
    control_help = "objective, fairness, SLO and model-rewrite headers of clients are read"
    flag("--request-control-headers", default=True, help=control_help, **bool_flag)  # type: ignore[arg-type]
    auth_help = "/metrics and /debug ask the API server who may read them (TokenReview, SubjectAccessReview)"
    flag("--metrics-endpoint-auth", default=False, help=auth_help, **bool_flag)  # type: ignore[arg-type]
    hooks_help = "for the conformance suite alone: clients choose endpoints by header, and are told which one answered"
    flag("--conformance-hooks", default=False, help=hooks_help, **bool_flag)  # type: ignore[arg-type]
    service_help = "headless Service of this picker's replicas, NAME or NAME.NAMESPACE: they share what is in flight"
    flag("--peer-service", default="", help=service_help)
    flag("--peers", default="", help="the other replicas, ip:port,ip:port, instead of a Service")
    flag("--peer-port", type=port, default=9004, help="where other replicas follow this one")
    peer_cert_help = "directory of tls.crt, tls.key and ca.crt, the same for all replicas (mutual TLS)"
    flag("--peer-cert-path", default="", help=peer_cert_help)
    add_reference_flags(parser)


def read_options(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Options:
    """The options that parsed flags come to. Raises InvalidFlag."""
    check_reference_flags(args)
    endpoints = _endpoints(args.endpoints)
    sources = [args.pool_name, args.endpoint_selector, endpoints]
    if sum(map(bool, sources)) != 1:
        fix = "name an InferencePool, or give --endpoint-selector or --endpoints, and one of them only"
        raise InvalidFlag("pool-name", args.pool_name, fix)
    if bool(args.endpoint_selector) != bool(args.endpoint_target_ports):
        fix = "give --endpoint-selector and --endpoint-target-ports together"
        raise InvalidFlag("endpoint-target-ports", args.endpoint_target_ports, fix)
    if args.metrics_endpoint_auth and endpoints:
        fix = "leave it out with --endpoints: there is no API server to ask"
        raise InvalidFlag("metrics-endpoint-auth", "true", fix)
    if args.pool_group not in (GA_GROUP, EXTENSION_GROUP):
        raise InvalidFlag("pool-group", args.pool_group, f"use {GA_GROUP} or {EXTENSION_GROUP}")
    try:
        failure_mode = FailureMode(args.failure_mode)
    except ValueError:
        raise InvalidFlag("failure-mode", args.failure_mode, "use FailOpen or FailClose") from None
    peers = _peers(args)
    ports = [args.grpc_port, args.grpc_health_port, args.metrics_port]
    if peers or args.peer_service:
        ports.append(args.peer_port)
    used = [number for number in ports if number]
    if len(set(used)) != len(used):
        raise InvalidFlag("grpc-port", args.grpc_port, "give gRPC, health, metrics and peers a port each")
    if args.refresh_metrics_interval <= 0 or args.idle_metrics_interval <= 0:
        raise InvalidFlag("refresh-metrics-interval", args.refresh_metrics_interval, "give a time over 0")
    if args.config_file and args.config_text:
        raise InvalidFlag("config-text", "...", "give --config-file or --config-text, not both")
    if args.pick_deadline <= 0:
        raise InvalidFlag("pick-deadline", args.pick_deadline, "give a time over 0")
    namespace = args.pool_namespace or environment.get("NAMESPACE") or "default"
    service = args.peer_service
    return Options(
        pool_name=args.pool_name,
        pool_namespace=namespace,
        pool_group=args.pool_group,
        served_name=args.pool_name or _deployment(environment.get("POD_NAME", "")) or "static",
        endpoints=endpoints,
        endpoint_selector=_selector(args.endpoint_selector),
        endpoint_target_ports=_ports(args.endpoint_target_ports),
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
        verbosity=verbosity(args),
        refresh_metrics_interval=args.refresh_metrics_interval,
        idle_metrics_interval=max(args.idle_metrics_interval, args.refresh_metrics_interval),
        metrics_staleness_threshold=args.metrics_staleness_threshold,
        pick_deadline=args.pick_deadline,
        drain_delay=args.drain_delay,
        drain_timeout=args.drain_timeout,
        max_body_bytes=args.max_request_body_bytes,
        max_parsed_body_bytes=args.max_parsed_body_bytes,
        conformance_hooks=args.conformance_hooks,
        subset_filter=not args.disable_endpoint_subset_filter,
        control_headers=args.request_control_headers,
        metrics_endpoint_auth=args.metrics_endpoint_auth,
        leader_election=args.ha_enable_leader_election,
        peer_service=f"{service}.{namespace}.svc" if service and "." not in service else service,
        peers=peers,
        peer_port=args.peer_port,
        peer_cert_path=_directory("peer-cert-path", args.peer_cert_path, "ca.crt"),
        own_address=environment.get("POD_IP", ""),
        tracing=args.tracing,
        identity=environment.get("POD_NAME") or socket.gethostname(),
        metrics_scheme=args.model_server_metrics_scheme,
        metrics_path=args.model_server_metrics_path,
        metrics_page_port=args.model_server_metrics_port,
        metrics_verify=not args.model_server_metrics_https_insecure_skip_verify,
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


def _peers(args: argparse.Namespace) -> tuple[str, ...]:
    """The addresses of --peers. Raises InvalidFlag, also for what else the flags of peers do not fit together in."""
    found = []
    for part in filter(None, (part.strip() for part in args.peers.split(","))):
        try:
            found.append(endpoint_key(*split_key(part)))
        except InvalidAddress as error:
            raise InvalidFlag("peers", args.peers, str(error)) from None
    if found and args.peer_service:
        raise InvalidFlag("peers", args.peers, "give --peer-service or --peers, not both")
    if args.peer_service and not _HOST.fullmatch(args.peer_service):
        raise InvalidFlag("peer-service", args.peer_service, "give the name of a headless Service, as my-epp-peers")
    if bool(found or args.peer_service) != bool(args.peer_cert_path):
        fix = "give it with --peer-service or --peers, and them with it: replicas know each other by certificate"
        raise InvalidFlag("peer-cert-path", args.peer_cert_path, fix)
    return tuple(dict.fromkeys(found))


def _deployment(pod_name: str) -> str:
    """The Deployment of a Pod's name: what is before the hashes of ReplicaSet and Pod."""
    parts = pod_name.rsplit("-", 2)
    return parts[0] if len(parts) == 3 else pod_name


def _selector(text: str) -> Mapping[str, str]:
    if not text:
        return {}
    labels: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key in labels:
            raise InvalidFlag("endpoint-selector", text, "write labels as key=value,key=value, each key once")
        labels[key] = value
    try:
        return read_selector(labels, "endpoint-selector")
    except InvalidPool as error:
        raise InvalidFlag("endpoint-selector", text, error.fix) from None


def _ports(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(",") if text else ():
        if not is_digits(part, 5) or not 1 <= int(part) <= 65535:
            raise InvalidFlag("endpoint-target-ports", text, "give ports of 1 to 65535, as 8000,8001")
        if int(part) not in found:
            found.append(int(part))
    if len(found) > MAX_TARGET_PORTS:
        raise InvalidFlag("endpoint-target-ports", text, f"give at most {MAX_TARGET_PORTS} ports")
    return tuple(found)


def _directory(flag: str, text: str, *more: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    for name in ("tls.crt", "tls.key", *more):
        if not (path / name).is_file():
            raise InvalidFlag(flag, text, f"there is no {name} in it: mount the certificate's Secret there")
    return path


def _file(flag: str, text: str) -> Path | None:
    if not text:
        return None
    if not Path(text).is_file():
        raise InvalidFlag(flag, text, "there is no such file")
    return Path(text)

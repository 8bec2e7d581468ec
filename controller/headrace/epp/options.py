"""The flags of `headrace epp`, under the reference picker's names where it has them, and what they come to."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from headrace.config.flags import (
    InvalidFlag,
    add_flags,
    choice,
    file,
    flag,
    folder,
    optional,
    period,
    port,
    read_flags,
    truth,
)
from headrace.config.limits import ByteBudget, Limits, own_limits, shared
from headrace.config.pools import read_selector
from headrace.config.values import duration
from headrace.core import EXTENSION_GROUP, GA_GROUP, Endpoint, FailureMode, InvalidPool, split_key
from headrace.core.fields import is_digits
from headrace.core.pool import MAX_TARGET_PORTS
from headrace.datalayer.scraper import ScrapeSettings
from headrace.epp.reference_flags import ReferenceFlags, level
from headrace.extproc import ConversationSettings
from headrace.replicas.settings import PeerSettings

__all__ = ["InvalidFlag", "Options", "add_arguments", "read_options"]


def _listed(text: str) -> list[str]:
    return [part for part in (part.strip() for part in text.split(",")) if part]


def _endpoints(text: str) -> tuple[Endpoint, ...]:
    found: dict[str, Endpoint] = {}
    for part in _listed(text):
        address, number = split_key(part)
        endpoint = Endpoint(namespace="", pod_name=part, address=address, port=number)
        if endpoint.key in found:
            raise ValueError(f"{endpoint.key} is there twice: name each endpoint once")
        found[endpoint.key] = endpoint
    return tuple(found.values())


def _selector(text: str) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for part in text.split(",") if text else ():
        key, equals, value = part.partition("=")
        if not equals or key in labels:
            raise ValueError("write labels as key=value,key=value, each key once")
        labels[key] = value
    try:
        return read_selector(labels, "endpoint-selector") if text else {}
    except InvalidPool as error:
        raise ValueError(error.fix) from None


def _ports(text: str) -> tuple[int, ...]:
    parts = text.split(",") if text else []
    if not all(is_digits(part, 5) and 1 <= int(part) <= 65535 for part in parts):
        raise ValueError("give ports of 1 to 65535, as 8000,8001")
    found = tuple(dict.fromkeys(map(int, parts)))
    if len(found) > MAX_TARGET_PORTS:
        raise ValueError(f"give at most {MAX_TARGET_PORTS} ports")
    return found


def _failure_mode(text: str) -> FailureMode:
    return FailureMode(choice([mode.value for mode in FailureMode])(text))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the process was asked to do. Times in seconds."""

    pool_name: str = flag("", "the InferencePool to serve")
    pool_namespace: str = flag("", "its namespace; else $NAMESPACE, else default")
    pool_group: str = flag(
        GA_GROUP, f"its API group: {GA_GROUP} or {EXTENSION_GROUP}", choice((GA_GROUP, EXTENSION_GROUP))
    )
    endpoints: tuple[Endpoint, ...] = flag(
        "", "serve these ip:port,ip:port instead of a pool, without Kubernetes", _endpoints
    )
    endpoint_selector: Mapping[str, str] = flag(
        "", "serve the Pods with these labels, k=v,k=v, instead of a pool", _selector
    )
    endpoint_target_ports: tuple[int, ...] = flag("", "with --endpoint-selector: 1 to 8 ports, 8000,8001", _ports)
    static_failure_mode: FailureMode = flag(
        "FailClose", "without a pool: FailClose or FailOpen", _failure_mode, "--failure-mode"
    )
    # A Pod's own network; tests bind loopback.
    bind_address: str = flag("0.0.0.0", "the address that every port is bound to")
    grpc_port: int = flag(9002, "ext_proc", port)
    grpc_health_port: int = flag(9003, "gRPC health", port)
    metrics_port: int = flag(9090, "/metrics, /healthz, /readyz, /debug", port)
    extproc_transport: str = flag(
        "http2",
        "what serves the ext_proc port: http2, our own server made for it, or grpcio, gRPC's",
        choice(("http2", "grpcio")),
    )
    secure_serving: bool = flag(True, "TLS on the ext_proc port", truth)
    cert_path: Path | None = flag(
        "", "directory of tls.crt and tls.key; self-signed without it", folder("tls.crt", "tls.key")
    )
    enable_cert_reload: bool = flag(True, "take up changed certificates without a restart", truth)
    config_file: Path | None = flag("", "an EndpointPickerConfig; taken up again when it changes", file)
    config_text: str = flag("", "the same as text, in place of a file")
    kubeconfig: str | None = flag("", "else in-cluster, or $KUBECONFIG", optional)
    verbosity: int = flag(2, "2 default, 3 verbose, 4 debug, 5 trace", level, "-v --v")
    pick_deadline: float = flag(2.0, "then the pool's failure mode answers", period)
    drain_delay: float = flag(
        6.0, "serve on this long after SIGTERM: not ready at once, not healthy to gateways after half of it", duration
    )
    drain_timeout: float = flag(30.0, "then wait this long for open streams", duration)
    metrics_endpoint_auth: bool = flag(
        False, "/metrics and /debug ask the API server who may read them (TokenReview, SubjectAccessReview)", truth
    )
    tracing: bool = flag(
        False, "send a span of each pick as OTLP; where to, and how many, say the OTEL_* environment variables", truth
    )
    leader_election: bool = flag(
        False,
        "one replica is ready at a time, held by a Lease; without it every replica serves",
        truth,
        "--ha-enable-leader-election",
    )
    health_filter: str = flag(
        "named",
        "whether picks leave out servers that stand still, fail or sleep: off; named, where the configuration names"
        " health-filter, or there is none; always",
        choice(("off", "named", "always")),
    )
    conversation: ConversationSettings = field(default_factory=ConversationSettings)
    scrape: ScrapeSettings = field(default_factory=ScrapeSettings)
    peers: PeerSettings = field(default_factory=PeerSettings)
    # By the memory that the process may use.
    limits: Limits = field(default_factory=own_limits)
    # Who this replica is: its Pod's name.
    identity: str = ""
    decisions_kept: int = 1000
    # What metrics call the pool: its name, or the picker's where it has none.
    served_name: str = "static"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every flag."""
    for options in (Options, ConversationSettings, PeerSettings, ScrapeSettings, ReferenceFlags):
        add_flags(parser, options)


def read_options(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Options:
    """The options that parsed flags come to. Raises InvalidFlag."""
    scrape, peers = read_flags(args, ScrapeSettings), read_flags(args, PeerSettings)
    options = replace(read_flags(args, Options), peers=peers)
    _check(options)
    namespace = options.pool_namespace or environment.get("NAMESPACE") or "default"
    served_name = options.pool_name or _deployment(environment.get("POD_NAME", "")) or "static"
    identity = environment.get("POD_NAME") or socket.gethostname()
    log_level = read_flags(args, ReferenceFlags).zap_log_level
    return replace(
        options,
        pool_namespace=namespace,
        served_name=served_name,
        verbosity=options.verbosity if log_level is None else log_level,
        conversation=_bounded(read_flags(args, ConversationSettings), options.limits),
        scrape=replace(
            scrape,
            idle_seconds=max(scrape.idle_seconds, scrape.busy_seconds),
            kept=ByteBudget(options.limits.pages.total_bytes),
        ),
        peers=replace(
            peers,
            service=f"{peers.service}.{namespace}.svc" if peers.service and "." not in peers.service else peers.service,
            pool=f"{namespace}/{served_name}",
            name=identity,
            own_address=environment.get("POD_IP", ""),
        ),
        identity=identity,
    )


def _bounded(conversation: ConversationSettings, own: Limits) -> ConversationSettings:
    """The settings with the budget of all bodies: one alone must fit into what long ones together may use."""
    given = conversation.max_held_body_bytes
    budget = own.bodies if given is None else shared(given)
    longest = min(conversation.max_body_bytes, budget.item_bytes)
    responses = ByteBudget(own.responses.total_bytes, small=own.responses.item_bytes)
    bodies = ByteBudget(budget.total_bytes)
    return replace(conversation, bodies=bodies, max_body_bytes=longest, responses=responses)


def _check(options: Options) -> None:
    """Refuse what does not fit together. Raises InvalidFlag."""
    if sum(map(bool, (options.pool_name, options.endpoint_selector, options.endpoints))) != 1:
        fix = "name an InferencePool, or give --endpoint-selector or --endpoints, and one of them only"
        raise InvalidFlag("pool-name", options.pool_name, fix)
    if bool(options.endpoint_selector) != bool(options.endpoint_target_ports):
        fix = "give --endpoint-selector and --endpoint-target-ports together"
        raise InvalidFlag("endpoint-target-ports", ",".join(map(str, options.endpoint_target_ports)), fix)
    if options.metrics_endpoint_auth and options.endpoints:
        fix = "leave it out with --endpoints: there is no API server to ask"
        raise InvalidFlag("metrics-endpoint-auth", "true", fix)
    if options.leader_election and options.endpoints:
        fix = "leave it out with --endpoints: Leases need Kubernetes"
        raise InvalidFlag("ha-enable-leader-election", "true", fix)
    peers = options.peers
    if peers.addresses and peers.service:
        raise InvalidFlag("peers", ",".join(peers.addresses), "give --peer-service or --peers, not both")
    if peers.wanted != bool(peers.certificates):
        fix = "give it with --peer-service or --peers, and them with it: replicas know each other by certificate"
        raise InvalidFlag("peer-cert-path", peers.certificates or "", fix)
    ports = [options.grpc_port, options.grpc_health_port, options.metrics_port]
    used = [number for number in (*ports, peers.port if peers.wanted else 0) if number]
    if len(set(used)) != len(used):
        raise InvalidFlag("grpc-port", options.grpc_port, "give gRPC, health, metrics and peers a port each")
    if options.config_file and options.config_text:
        raise InvalidFlag("config-text", "...", "give --config-file or --config-text, not both")


def _deployment(pod_name: str) -> str:
    """The Deployment of a Pod's name: what is before the hashes of ReplicaSet and Pod."""
    parts = pod_name.rsplit("-", 2)
    return parts[0] if len(parts) == 3 else pod_name

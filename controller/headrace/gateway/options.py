"""The flags of `headrace gateway`, and what they come to."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


class InvalidFlag(ValueError):  # noqa: N818
    """A flag that cannot be used: names the flag, its value and the fix."""

    def __init__(self, flag: str, value: object, fix: str) -> None:
        super().__init__(f"--{flag}={value}: {fix}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the process was asked to do. Times in seconds; port 0 takes a free one."""

    hook_port: int = 5005
    eds_port: int = 5006
    health_port: int = 8081
    metrics_port: int = 9091
    bind_address: str = "0.0.0.0"  # a Pod's own network; tests bind loopback
    controller_name: str = "gateway.envoyproxy.io/gatewayclass-controller"
    verify_by_default: bool = True
    envoy_gateway_version: str = ""
    cert_path: Path | None = None
    eds_client_ca: Path | None = None
    kubeconfig: str | None = None
    namespace: str = ""
    drain_delay: float = 3.0
    drain_timeout: float = 15.0


def port(text: str) -> int:
    """A TCP port; 0 takes a free one. For argparse."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number of 1 to 65535, or 0 for a free one")
    return int(text)


def duration(text: str) -> float:
    """Seconds of a duration such as 500ms, 3s, 1m. For argparse."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 500ms, 3s or 1m")
    return float(found[1]) * _UNITS[found[2]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every flag."""
    flag = parser.add_argument
    flag("--hook-port", type=port, default=5005, help="Envoy Gateway's extension hook, gRPC")
    flag("--eds-port", type=port, default=5006, help="endpoint and secret discovery for the Envoys, gRPC")
    flag("--health-port", type=port, default=8081, help="/healthz and /readyz")
    flag("--metrics-port", type=port, default=9091, help="/metrics")
    flag("--bind-address", default="0.0.0.0", help="the address that every port is bound to")
    flag(
        "--controller-name",
        default="gateway.envoyproxy.io/gatewayclass-controller",
        help="Envoy Gateway's controller name: pools of its Gateways get a status",
    )
    flag(
        "--epp-tls-default",
        default="verify",
        help="endpoint pickers without a BackendTLSPolicy: verify (nobody is trusted) or unverified",
    )
    flag(
        "--envoy-gateway-version", default="", help="Envoy Gateway's; one outside the tested range is named in the log"
    )
    flag("--cert-path", default="", help="directory of tls.crt, tls.key, and ca.crt: the CA of the hook's clients")
    flag("--eds-client-ca", default="", help="file: the CA of the Envoys' client certificates")
    flag("--insecure", action="store_true", help="no TLS on the hook and discovery ports; for tests")
    flag("--kubeconfig", default="", help="else in-cluster, or $KUBECONFIG")
    flag("--namespace", default=os.environ.get("NAMESPACE", ""), help="the controller's own; else $NAMESPACE")
    flag("--drain-delay", type=duration, default=3.0, help="serve on this long after SIGTERM, not ready")
    flag("--drain-timeout", type=duration, default=15.0, help="then wait this long for open calls")


def read_options(args: argparse.Namespace) -> Options:
    """The options that parsed flags come to. Raises InvalidFlag."""
    if args.epp_tls_default not in ("verify", "unverified"):
        raise InvalidFlag("epp-tls-default", args.epp_tls_default, "use verify or unverified")
    ports = [number for number in (args.hook_port, args.eds_port, args.health_port, args.metrics_port) if number]
    if len(set(ports)) != len(ports):
        raise InvalidFlag("hook-port", args.hook_port, "give hook, EDS, health and metrics a port each")
    if not args.controller_name or "/" not in args.controller_name:
        raise InvalidFlag("controller-name", args.controller_name, "give the GatewayClass's name, as example.com/name")
    cert_path = client_ca = None
    if not args.insecure:
        cert_path = Path(args.cert_path)
        for name in ("tls.crt", "tls.key", "ca.crt"):
            if not args.cert_path or not (cert_path / name).is_file():
                raise InvalidFlag("cert-path", args.cert_path, f"there is no {name} in it: mount the Secret there")
        client_ca = Path(args.eds_client_ca)
        if not client_ca.is_file():
            raise InvalidFlag("eds-client-ca", args.eds_client_ca, "there is no such file: mount ca.crt of the Envoys")
    return Options(
        hook_port=args.hook_port,
        eds_port=args.eds_port,
        health_port=args.health_port,
        metrics_port=args.metrics_port,
        bind_address=args.bind_address,
        controller_name=args.controller_name,
        verify_by_default=args.epp_tls_default == "verify",
        envoy_gateway_version=args.envoy_gateway_version,
        cert_path=cert_path,
        eds_client_ca=client_ca,
        kubeconfig=args.kubeconfig or None,
        namespace=args.namespace,
        drain_delay=args.drain_delay,
        drain_timeout=args.drain_timeout,
    )

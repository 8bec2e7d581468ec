"""The flags of `headrace gateway`, and what they come to."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from headrace.config.flags import InvalidFlag, add_flags, choice, flag, optional, path, port, read_flags
from headrace.config.values import duration

__all__ = ["InvalidFlag", "Options", "add_arguments", "read_options"]


def _controller(text: str) -> str:
    if "/" not in text:
        raise ValueError("give the GatewayClass's name, as example.com/name")
    return text


def _verify(text: str) -> bool:
    return bool(choice(("verify", "unverified"))(text) == "verify")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the process was asked to do. Times in seconds; port 0 takes a free one."""

    hook_port: int = flag(5005, "Envoy Gateway's extension hook, gRPC", port)
    eds_port: int = flag(5006, "endpoint and secret discovery for the Envoys, gRPC", port)
    health_port: int = flag(8081, "/healthz and /readyz", port)
    metrics_port: int = flag(9091, "/metrics", port)
    # A Pod's own network; tests bind loopback.
    bind_address: str = flag("0.0.0.0", "the address that every port is bound to")
    controller_name: str = flag(
        "gateway.envoyproxy.io/gatewayclass-controller",
        "Envoy Gateway's controller name: pools of its Gateways get a status",
        _controller,
    )
    verify_by_default: bool = flag(
        "verify",
        "endpoint pickers without a BackendTLSPolicy: verify (nobody is trusted) or unverified",
        _verify,
        "--epp-tls-default",
    )
    envoy_gateway_version: str = flag("", "Envoy Gateway's; one outside the tested range is named in the log")
    cert_path: Path | None = flag("", "directory of tls.crt, tls.key, and ca.crt: the CA of the hook's clients", path)
    eds_client_ca: Path | None = flag("", "file: the CA of the Envoys' client certificates", path)
    insecure: bool = flag(False, "no TLS on the hook and discovery ports; for tests", action="store_true")
    kubeconfig: str | None = flag("", "else in-cluster, or $KUBECONFIG", optional)
    namespace: str = flag("", "the controller's own; else $NAMESPACE", environment="NAMESPACE")
    drain_delay: float = flag(3.0, "serve on this long after SIGTERM, not ready", duration)
    drain_timeout: float = flag(15.0, "then wait this long for open calls", duration)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every flag."""
    add_flags(parser, Options)


def read_options(args: argparse.Namespace) -> Options:
    """The options that parsed flags come to. Raises InvalidFlag."""
    options = read_flags(args, Options)
    ports = (options.hook_port, options.eds_port, options.health_port, options.metrics_port)
    used = [number for number in ports if number]
    if len(set(used)) != len(used):
        raise InvalidFlag("hook-port", options.hook_port, "give hook, EDS, health and metrics a port each")
    if options.insecure:
        return dataclasses.replace(options, cert_path=None, eds_client_ca=None)
    for name in ("tls.crt", "tls.key", "ca.crt"):
        if options.cert_path is None or not (options.cert_path / name).is_file():
            raise InvalidFlag("cert-path", options.cert_path or "", f"there is no {name} in it: mount the Secret there")
    if options.eds_client_ca is None or not options.eds_client_ca.is_file():
        fix = "there is no such file: mount ca.crt of the Envoys"
        raise InvalidFlag("eds-client-ca", options.eds_client_ca or "", fix)
    return options

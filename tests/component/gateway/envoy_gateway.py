"""The real Envoy Gateway on this machine: it reads a real API server, calls the hook under test, and runs Envoy.

Custom provider: resources from Kubernetes, infrastructure on the host. So Envoy is a process, and everything else is as
it is in a cluster."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...certificates import Authority
from ...hang import HANG_SECONDS
from ...integration.apiserver import ApiServer
from ..envoy import envoy_binary
from .processes import Running, started

NAMESPACE = "envoy-gateway-system"
CONTROLLER_NAME = "gateway.envoyproxy.io/gatewayclass-controller"
HOOK_PORT = 5005
EDS_PORT = 5006
ADMIN_PORT = 19900
# The version whose names and hook input the gateway controller is written for.
ENVOY_VERSION = "1.39.1"

_NO_LIMITS = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 1 << 20)

# Envoy Gateway looks for its certificates in /certs alone: it gets a root directory where that is ours.
_WITH_CERTS = """\
set -e
root=$1 certs=$2
shift 2
mount -t tmpfs tmpfs "$root"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$root/"
  elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
  fi
done
mkdir -p "$root/certs"
mount --bind "$certs" "$root/certs"
exec chroot "$root" "$@"
"""


def secret(name: str, **data: bytes | str) -> dict[str, Any]:
    """A Secret in Envoy Gateway's namespace. Keys are written with "_" for "."."""
    encoded = {
        key.replace("_", "."): base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
        for key, value in data.items()
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": encoded,
    }


def install(api: ApiServer, binaries: Path) -> None:
    """The CRDs, the namespace, and the Secrets that the chart's first job makes."""
    for crds in ("gateway-api", "envoy-gateway"):
        applied = api.kubectl("apply", "--server-side", "-f", str(binaries / "crds" / crds))
        assert applied.returncode == 0, applied.stderr
    api.wait_established()
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig), "ENVOY_GATEWAY_NAMESPACE": NAMESPACE}
    made = subprocess.run(
        [binaries / "envoy-gateway", "certgen", "--disable-topology-injector"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert made.returncode == 0, made.stdout + made.stderr


def write_secret(api: ApiServer, name: str, directory: Path) -> Path:
    """A Secret of Envoy Gateway's namespace as files, as if it were mounted."""
    directory.mkdir(parents=True, exist_ok=True)
    for key, value in api.get("secret", name, "-n", NAMESPACE)["data"].items():
        (directory / key).write_bytes(base64.b64decode(value))
    return directory


def proxy(
    controller_ca: bytes, client: Path, server_name: str, *, name: str = "proxy", admin_port: int = ADMIN_PORT
) -> dict[str, Any]:
    """The EnvoyProxy: an admin page, and the static cluster that leads to the controller under mTLS."""
    http2 = {"http2_protocol_options": {"connection_keepalive": {"interval": "5s", "timeout": "300s"}}}
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": server_name,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(client / "tls.crt")},
                    "private_key": {"filename": str(client / "tls.key")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"inline_string": controller_ca.decode()},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": server_name}}],
            },
        },
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": EDS_PORT}}
    bootstrap = {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}},
        "static_resources": {
            "clusters": [
                {
                    "name": "headrace_eds",
                    "type": "STATIC",
                    "connect_timeout": "300s",
                    "circuit_breakers": {"thresholds": [_NO_LIMITS]},
                    "load_assignment": {
                        "cluster_name": "headrace_eds",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                    "typed_extension_protocol_options": {
                        options: {"@type": f"type.googleapis.com/{options}", "explicit_http_config": http2}
                    },
                    "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
                }
            ]
        },
    }
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyProxy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "provider": {"type": "Host", "host": {"envoyVersion": ENVOY_VERSION}},
            # Two Envoys on one machine would share the socket of their hot restarts.
            "extraArgs": ["--disable-hot-restart"],
            "bootstrap": {"type": "Merge", "value": json.dumps(bootstrap)},
        },
    }


def configuration(directory: Path) -> dict[str, Any]:
    """Envoy Gateway's configuration. Its extension manager is what the role envoy_gateway writes."""
    host = {
        "configHome": str(directory / "config"),
        "dataHome": str(directory / "data"),
        "stateHome": str(directory / "state"),
        "runtimeDir": str(directory / "run"),
    }
    every = {"includeAll": True}
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyGateway",
        "gateway": {"controllerName": CONTROLLER_NAME},
        "provider": {
            "type": "Custom",
            "custom": {
                "resource": {"type": "Kubernetes", "kubernetes": {"leaderElection": {"disable": True}}},
                "infrastructure": {"type": "Host", "host": host},
            },
        },
        "logging": {"level": {"default": "info"}},
        "extensionApis": {"enableBackend": True},
        "extensionManager": {
            "backendResources": [
                {"group": "inference.networking.k8s.io", "version": "v1", "kind": "InferencePool"},
                {"group": "inference.networking.x-k8s.io", "version": "v1alpha2", "kind": "InferencePool"},
            ],
            "failOpen": False,
            "maxMessageSize": "64Mi",
            "hooks": {
                "xdsTranslator": {
                    "post": ["Translation"],
                    "translation": {
                        "listener": every,
                        "route": every,
                        "cluster": every,
                        "secret": {"includeAll": False},
                    },
                }
            },
            "service": {
                "fqdn": {"hostname": "localhost", "port": HOOK_PORT},
                "tls": {
                    "certificateRef": {"name": "hook-ca", "namespace": NAMESPACE},
                    "clientCertificateRef": {"name": "hook-client", "namespace": NAMESPACE},
                },
            },
        },
    }


def hook_secrets(authority: Authority) -> list[dict[str, Any]]:
    """What Envoy Gateway's side of the hook's mTLS needs: the CA, in the key tls.crt, and a client certificate."""
    client = authority.issue("envoy-gateway", client=True)
    return [
        secret("hook-ca", tls_crt=authority.certificate),
        secret("hook-client", tls_crt=client.certificate, tls_key=client.key),
    ]


@contextmanager
def running(api: ApiServer, binaries: Path, directory: Path) -> Iterator[Running]:
    """Envoy Gateway, until the block ends. It starts an Envoy when there is a Gateway."""
    envoy = directory / "data/envoy-versions" / ENVOY_VERSION / "bin/envoy"
    if not envoy.exists():
        envoy.parent.mkdir(parents=True)
        envoy.symlink_to(envoy_binary().resolve())
    write_secret(api, "envoy", directory / "config/certs/envoy")
    certificates = write_secret(api, "envoy-gateway", directory / "certs")
    config = directory / "envoy-gateway.json"
    config.write_text(json.dumps(configuration(directory)))
    root = directory / "root"
    root.mkdir(exist_ok=True)
    environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig), "ENVOY_GATEWAY_NAMESPACE": NAMESPACE}
    command: list[str | Path] = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        _WITH_CERTS,
        "sh",
        root,
        certificates,
    ]
    command += [binaries / "envoy-gateway", "server", "-c", config]
    with started("envoy-gateway", command, directory, environment) as gateway:
        yield gateway
        # It would wait for Envoy to drain. Where it is killed, Envoy is too.
        gateway.stop(1.0)

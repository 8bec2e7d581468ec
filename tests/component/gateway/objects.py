"""Kubernetes objects of the tests, as a cluster with nodes would have made them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

V1 = "inference.networking.k8s.io/v1"
V1ALPHA2 = "inference.networking.x-k8s.io/v1alpha2"
GATEWAY_API = "gateway.networking.k8s.io/v1"
GATEWAY_CLASS = "headrace"
LISTENER_PORT = 8888

Object = dict[str, Any]


def _metadata(name: str, namespace: str = "default", **more: Any) -> Object:
    return {"name": name, "namespace": namespace, **more}


def gateway_class(parameters: str, controller: str) -> Object:
    reference = {
        "group": "gateway.envoyproxy.io",
        "kind": "EnvoyProxy",
        "name": parameters,
        "namespace": "envoy-gateway-system",
    }
    return {
        "apiVersion": GATEWAY_API,
        "kind": "GatewayClass",
        "metadata": {"name": GATEWAY_CLASS},
        "spec": {"controllerName": controller, "parametersRef": reference},
    }


def gateway(name: str = "gateway", port: int = LISTENER_PORT, namespace: str = "default") -> Object:
    listener = {"name": "http", "port": port, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
    return {
        "apiVersion": GATEWAY_API,
        "kind": "Gateway",
        "metadata": _metadata(name, namespace),
        "spec": {"gatewayClassName": GATEWAY_CLASS, "listeners": [listener]},
    }


def pool(
    name: str,
    *,
    app: str = "",
    ports: tuple[int, ...] = (8000,),
    failure_mode: str = "FailClose",
    namespace: str = "default",
    **spec: Any,
) -> Object:
    """A v1 pool of the Pods labelled `app` (its own name), with the picker Service `<name>-epp`."""
    return {
        "apiVersion": V1,
        "kind": "InferencePool",
        "metadata": _metadata(name, namespace),
        "spec": {
            "selector": {"matchLabels": {"app": app or name}},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {"name": f"{name}-epp", "port": {"number": 9002}, "failureMode": failure_mode},
            **spec,
        },
    }


def old_pool(name: str, *, app: str = "", port: int = 8000, failure_mode: str = "FailClose") -> Object:
    """The same of v1alpha2."""
    return {
        "apiVersion": V1ALPHA2,
        "kind": "InferencePool",
        "metadata": _metadata(name),
        "spec": {
            "selector": {"app": app or name},
            "targetPortNumber": port,
            "extensionRef": {"name": f"{name}-epp", "failureMode": failure_mode},
        },
    }


def backend(target: Object, weight: int | None = None, **more: Any) -> Object:
    """A backendRef to a pool or Service."""
    group = target["apiVersion"].rpartition("/")[0]
    reference = {"group": group, "kind": target["kind"], "name": target["metadata"]["name"], **more}
    if weight is not None:
        reference["weight"] = weight
    return reference


def route(name: str, *rules: Object, gateway: str = "gateway", namespace: str = "default") -> Object:
    """An HTTPRoute for the host `<name>.example`."""
    return {
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": _metadata(name, namespace),
        "spec": {
            "parentRefs": [{"name": gateway, "namespace": "default"}],
            "hostnames": [f"{name}.example"],
            "rules": list(rules),
        },
    }


def pod(name: str, app: str, namespace: str = "default") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(name, namespace, labels={"app": app}),
        "spec": {"containers": [{"name": "server", "image": "server"}], "terminationGracePeriodSeconds": 30},
    }


def pod_status(address: str, *, ready: bool = True) -> Object:
    state = "True" if ready else "False"
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": state, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }


def service(name: str, port: int, *, ours: bool = False, namespace: str = "default", **port_fields: Any) -> Object:
    annotations = {"headrace.dev/endpoint-picker": "headrace"} if ours else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, namespace, annotations=annotations),
        "spec": {"ports": [{"name": "main", "port": port, "protocol": "TCP", **port_fields}]},
    }


def endpoint_slice(
    service_name: str, port: int, *addresses: str, ending: Collection[str] = (), namespace: str = "default"
) -> Object:
    """Ready endpoints; those of `ending` still serve, and are on their way out."""
    family = "IPv6" if any(":" in address for address in addresses) else "IPv4"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": _metadata(f"{service_name}-1", namespace, labels={"kubernetes.io/service-name": service_name}),
        "addressType": family,
        "ports": [{"name": "main", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": address not in ending, "serving": True, "terminating": address in ending},
            }
            for address in addresses
        ],
    }


def second_gateway(port: int) -> Object:
    """A Gateway with an Envoy of its own: two on one machine need different admin ports. Such an EnvoyProxy is in the
    Gateway's namespace."""
    made = gateway("second", port, "envoy-gateway-system")
    parameters = {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": "second"}
    made["spec"]["infrastructure"] = {"parametersRef": parameters}
    return made


def backend_tls_policy(service_name: str, config_map: str, hostname: str) -> Object:
    """By which CA a picker's Service is verified."""
    validation = {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": config_map}], "hostname": hostname}
    return {
        "apiVersion": GATEWAY_API,
        "kind": "BackendTLSPolicy",
        "metadata": _metadata(service_name),
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": service_name}], "validation": validation},
    }


def config_map(name: str, **data: str) -> Object:
    """Keys are written with "_" for "."."""
    content = {key.replace("_", "."): value for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(name), "data": content}

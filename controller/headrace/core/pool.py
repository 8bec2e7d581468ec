"""InferencePool, of either API group, as one value.

Source: the InferencePool API, `inference.networking.x-k8s.io/v1alpha2` and `inference.networking.k8s.io/v1`. The two
are different groups, so nothing in Kubernetes converts them; everything above this module sees only `Pool`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headrace.core.invalid import InvalidField

EXTENSION_GROUP = "inference.networking.x-k8s.io"
GA_GROUP = "inference.networking.k8s.io"
# A port's appProtocol: HTTP/2 in cleartext.
H2C = "kubernetes.io/h2c"

VERSION_OF_GROUP: Mapping[str, str] = {EXTENSION_GROUP: "v1alpha2", GA_GROUP: "v1"}

# The v1alpha2 API says: "Implementations SHOULD infer a default value of 9002 when the Kind is Service."
DEFAULT_PICKER_PORT = 9002
MAX_TARGET_PORTS = 8
MAX_SELECTOR_LABELS = 64

_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"
)


class FailureMode(StrEnum):
    """What becomes of a request whose endpoint picker does not answer."""

    OPEN = "FailOpen"
    CLOSE = "FailClose"


class InvalidPool(InvalidField):
    """A pool object that cannot be used: names the field, its value and the fix."""


@dataclass(frozen=True)
class PickerReference:
    """The endpoint picker a pool names: by default a Service in the pool's namespace."""

    name: str
    port: int | None = DEFAULT_PICKER_PORT
    kind: str = "Service"
    group: str = ""
    failure_mode: FailureMode = FailureMode.CLOSE


@dataclass(frozen=True)
class Pool:
    """An InferencePool. `picker` is None where a v1 pool leaves `endpointPickerRef` out (allowed since mid 2026)."""

    group: str
    namespace: str
    name: str
    selector: Mapping[str, str] = field(hash=False)
    target_ports: tuple[int, ...]
    app_protocol: str = "http"
    picker: PickerReference | None = None
    uid: str = ""
    generation: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def version(self) -> str:
        """The served version of this pool's API group."""
        return VERSION_OF_GROUP[self.group]

    @property
    def failure_mode(self) -> FailureMode:
        """The picker's failure mode; FailClose, the API's default, without a picker."""
        return self.picker.failure_mode if self.picker is not None else FailureMode.CLOSE

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a Pod with these labels belongs to the pool. A pool without a selector selects nothing."""
        return bool(self.selector) and all(labels.get(key) == value for key, value in self.selector.items())

    @property
    def label_selector(self) -> str:
        """The selector as the Kubernetes API takes it in `labelSelector`."""
        return ",".join(f"{key}={value}" for key, value in sorted(self.selector.items()))


def parse_pool(obj: Mapping[str, Any]) -> Pool:
    """The pool of a Kubernetes object (decoded JSON), by its `apiVersion`.

    Reads defensively, as objects may have been stored under an older or foreign schema.
    Raises InvalidPool."""
    api_version = obj.get("apiVersion")
    group, _, version = api_version.partition("/") if isinstance(api_version, str) else ("", "", "")
    if VERSION_OF_GROUP.get(group) != version:
        known = " or ".join(f"{g}/{v}" for g, v in VERSION_OF_GROUP.items())
        raise InvalidPool("apiVersion", api_version, f"use {known}")
    if obj.get("kind", "InferencePool") != "InferencePool":
        raise InvalidPool("kind", obj.get("kind"), "use InferencePool")
    metadata = _mapping(obj, "metadata", "")
    name = _text(metadata, "name", "metadata")
    spec = _mapping(obj, "spec", "")
    read = _read_v1 if group == GA_GROUP else _read_v1alpha2
    selector, ports, app_protocol, picker = read(spec)
    generation = metadata.get("generation", 0)
    annotations = metadata.get("annotations") or {}
    return Pool(
        group=group,
        namespace=str(metadata.get("namespace") or "default"),
        name=name,
        selector=selector,
        target_ports=ports,
        app_protocol=app_protocol,
        picker=picker,
        uid=str(metadata.get("uid") or ""),
        generation=generation if isinstance(generation, int) else 0,
        annotations={str(k): str(v) for k, v in annotations.items()} if isinstance(annotations, Mapping) else {},
    )


_Parts = tuple[Mapping[str, str], tuple[int, ...], str, PickerReference | None]


def _read_v1alpha2(spec: Mapping[str, Any]) -> _Parts:
    selector = read_selector(_mapping(spec, "selector", "spec"), "spec.selector")
    port = _port(spec.get("targetPortNumber"), "spec.targetPortNumber")
    reference = _mapping(spec, "extensionRef", "spec")
    number, alias = reference.get("portNumber"), reference.get("port")
    if number is not None and alias is not None and number != alias:
        raise InvalidPool("spec.extensionRef.port", alias, f"make it equal to portNumber ({number!r}) or leave one out")
    if number is not None:
        picker_port = _port(number, "spec.extensionRef.portNumber")
    elif alias is not None:
        picker_port = _port(alias, "spec.extensionRef.port")
    else:
        picker_port = DEFAULT_PICKER_PORT
    return selector, (port,), "http", _picker(reference, picker_port, "spec.extensionRef")


def _read_v1(spec: Mapping[str, Any]) -> _Parts:
    selector = read_selector(
        _mapping(_mapping(spec, "selector", "spec"), "matchLabels", "spec.selector"), "spec.selector.matchLabels"
    )
    listed = spec.get("targetPorts")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_TARGET_PORTS:
        raise InvalidPool(
            "spec.targetPorts", listed, f"give a list of 1 to {MAX_TARGET_PORTS} entries {{number: PORT}}"
        )
    ports: list[int] = []
    for index, entry in enumerate(listed):
        path = f"spec.targetPorts[{index}]"
        if not isinstance(entry, Mapping):
            raise InvalidPool(path, entry, "give an object {number: PORT}")
        number = _port(entry.get("number"), f"{path}.number")
        if number in ports:
            raise InvalidPool(f"{path}.number", number, "name each port once")
        ports.append(number)
    app_protocol = spec.get("appProtocol") or "http"
    if app_protocol not in ("http", H2C):
        raise InvalidPool("spec.appProtocol", app_protocol, f"use http or {H2C}")
    picker = None
    if spec.get("endpointPickerRef") is not None:
        path = "spec.endpointPickerRef"
        reference = _mapping(spec, "endpointPickerRef", "spec")
        picker_port: int | None = None
        if reference.get("port") is not None:
            picker_port = _port(_mapping(reference, "port", path).get("number"), f"{path}.port.number")
        elif (reference.get("kind") or "Service") == "Service":
            raise InvalidPool(f"{path}.port", None, "name the Service's port, as {number: 9002}")
        picker = _picker(reference, picker_port, path)
    return selector, tuple(ports), app_protocol, picker


def _picker(reference: Mapping[str, Any], port: int | None, path: str) -> PickerReference:
    mode = reference.get("failureMode") or FailureMode.CLOSE.value
    try:
        failure_mode = FailureMode(mode)
    except ValueError:
        raise InvalidPool(f"{path}.failureMode", mode, "use FailOpen or FailClose") from None
    return PickerReference(
        name=_text(reference, "name", path),
        port=port,
        kind=str(reference.get("kind") or "Service"),
        group=str(reference.get("group") or ""),
        failure_mode=failure_mode,
    )


def read_selector(labels: Mapping[str, Any], path: str) -> Mapping[str, str]:
    """The labels that select a pool's Pods. Raises InvalidPool, naming `path`."""
    if not 1 <= len(labels) <= MAX_SELECTOR_LABELS:
        raise InvalidPool(path, dict(labels), f"give 1 to {MAX_SELECTOR_LABELS} labels; without one no Pod is selected")
    for key, value in labels.items():
        # OpenAPI checks only the values of a map: bad keys get past the CRD and would fail every list of Pods.
        if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key) or len(key) > 317:
            raise InvalidPool(path, key, "use a Kubernetes label key, [prefix/]name")
        if not isinstance(value, str) or len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            raise InvalidPool(f"{path}[{key}]", value, "use a Kubernetes label value: text of at most 63 characters")
    return dict(labels)


def _mapping(parent: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if not isinstance(value, Mapping):
        raise InvalidPool(f"{path}.{key}" if path else key, value, "give an object")
    return value


def _text(parent: Mapping[str, Any], key: str, path: str) -> str:
    value = parent.get(key)
    if not isinstance(value, str) or not value or len(value) > 253:
        raise InvalidPool(f"{path}.{key}", value, "give a name of 1 to 253 characters")
    return value


def _port(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise InvalidPool(path, value, "give a port of 1 to 65535")
    return value

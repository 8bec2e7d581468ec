"""InferencePool, of either API group, from objects of the Kubernetes API.

Source: the InferencePool API, `inference.networking.x-k8s.io/v1alpha2` and `inference.networking.k8s.io/v1`. Objects
may have been stored under an older or foreign schema, so fields that are not known are no error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from headrace.config.decode import Refused, decode
from headrace.core.fields import mapping
from headrace.core.pool import (
    DEFAULT_PICKER_PORT,
    EXTENSION_GROUP,
    GA_GROUP,
    H2C,
    MAX_SELECTOR_LABELS,
    MAX_TARGET_PORTS,
    VERSION_OF_GROUP,
    FailureMode,
    InvalidPool,
    PickerReference,
    Pool,
)

_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"
)
Name = Annotated[str, Meta(min_length=1, max_length=253)]
_PortNumber = Annotated[int, Meta(ge=1, le=65_535)]


class Metadata(Struct, frozen=True):
    """What is read of any object's metadata."""

    name: Name
    namespace: Any = None
    uid: Any = None
    generation: Any = 0
    annotations: Any = None

    @property
    def namespace_name(self) -> str:
        """The namespace; `default` where the object names none."""
        return str(self.namespace or "default")


class _Port(Struct, frozen=True):
    number: _PortNumber


class _Reference(Struct, frozen=True, rename="camel"):
    name: Name
    kind: Any = "Service"
    group: Any = ""
    failure_mode: Literal["FailOpen", "FailClose", ""] = "FailClose"

    def to(self, port: int | None) -> PickerReference:
        mode = FailureMode(self.failure_mode or FailureMode.CLOSE)
        return PickerReference(self.name, port, str(self.kind or "Service"), str(self.group or ""), mode)


class _ExtensionRef(_Reference, frozen=True):
    port_number: _PortNumber | None = None
    # The alias of the API's own page.
    port: _PortNumber | None = None

    def __post_init__(self) -> None:
        if None not in (self.port, self.port_number) and self.port != self.port_number:
            raise Refused("port", f"make it equal to portNumber ({self.port_number}) or leave one out")


class _EndpointPickerRef(_Reference, frozen=True):
    port: _Port | None = None

    def __post_init__(self) -> None:
        if self.port is None and (self.kind or "Service") == "Service":
            raise Refused("port", "name the Service's port, as {number: 9002}")


class _V1Alpha2(Struct, frozen=True, rename="camel"):
    selector: dict[str, Any]
    target_port_number: _PortNumber
    extension_ref: _ExtensionRef

    def parts(self) -> dict[str, Any]:
        reference = self.extension_ref
        return {
            "selector": read_selector(self.selector, "spec.selector"),
            "target_ports": (self.target_port_number,),
            "picker": reference.to(reference.port_number or reference.port or DEFAULT_PICKER_PORT),
        }


class _Selector(Struct, frozen=True, rename="camel"):
    match_labels: dict[str, Any]


class _V1(Struct, frozen=True, rename="camel"):
    selector: _Selector
    target_ports: Annotated[tuple[_Port, ...], Meta(min_length=1, max_length=MAX_TARGET_PORTS)]
    app_protocol: str = ""
    endpoint_picker_ref: _EndpointPickerRef | None = None

    def __post_init__(self) -> None:
        if self.app_protocol not in ("", "http", H2C):
            raise Refused("appProtocol", f"use http or {H2C}")
        for number, port in enumerate(self.target_ports):
            if port in self.target_ports[:number]:
                raise Refused(f"targetPorts[{number}].number", "name each port once", port.number)

    def parts(self) -> dict[str, Any]:
        reference = self.endpoint_picker_ref
        return {
            "selector": read_selector(self.selector.match_labels, "spec.selector.matchLabels"),
            "target_ports": tuple(port.number for port in self.target_ports),
            "app_protocol": self.app_protocol or "http",
            "picker": reference.to(reference.port.number if reference.port else None) if reference else None,
        }


# What a pool's spec is, by API group.
SPECS: dict[str, type[_V1 | _V1Alpha2]] = {EXTENSION_GROUP: _V1Alpha2, GA_GROUP: _V1}


def parse_pool(obj: Mapping[str, Any]) -> Pool:
    """The pool of a Kubernetes object (decoded JSON), by its `apiVersion`. Raises InvalidPool."""
    api_version = obj.get("apiVersion")
    group, _, version = api_version.partition("/") if isinstance(api_version, str) else ("", "", "")
    if VERSION_OF_GROUP.get(group) != version:
        known = " or ".join(f"{g}/{v}" for g, v in VERSION_OF_GROUP.items())
        raise InvalidPool("apiVersion", api_version, f"use {known}")
    if obj.get("kind", "InferencePool") != "InferencePool":
        raise InvalidPool("kind", obj.get("kind"), "use InferencePool")
    metadata = decode(obj.get("metadata"), Metadata, "metadata", InvalidPool)
    return Pool(
        group=group,
        namespace=metadata.namespace_name,
        name=metadata.name,
        uid=str(metadata.uid or ""),
        generation=metadata.generation if isinstance(metadata.generation, int) else 0,
        annotations={str(k): str(v) for k, v in mapping(metadata.annotations).items()},
        **decode(obj.get("spec"), SPECS[group], "spec", InvalidPool).parts(),
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

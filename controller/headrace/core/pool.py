"""InferencePool, of either API group, as one value.

Source: the InferencePool API, `inference.networking.x-k8s.io/v1alpha2` and `inference.networking.k8s.io/v1`. The two
are different groups, so nothing in Kubernetes converts them; everything above this module sees only `Pool`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from msgspec import Struct

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


class FailureMode(StrEnum):
    """What becomes of a request whose endpoint picker does not answer."""

    OPEN = "FailOpen"
    CLOSE = "FailClose"


class InvalidPool(InvalidField):
    """A pool object that cannot be used: names the field, its value and the fix."""


class PickerReference(Struct, frozen=True):
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

"""Where traces go, by OpenTelemetry's own environment variables: of the OTLP exporter, samplers, batches and resource.

Source: OpenTelemetry's specification of environment variables; defaults of samplers and protocol are
the reference picker's (v1.5.0): a tenth of the traces that nobody else has decided on, over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from headrace.epp.tracing import Sampler

_DEFAULT_SAMPLER = Sampler(0.1)
_SAMPLERS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
_PARENT = "parentbased_"


class InvalidTracing(ValueError):  # noqa: N818
    """An environment variable of tracing that cannot be used: names it, its value and the fix."""

    def __init__(self, name: str, value: str, fix: str) -> None:
        super().__init__(f"{name}={value}: {fix}")


@dataclass(frozen=True, kw_only=True)
class TracingSettings:
    """Where and how. Times in seconds."""

    exporter: str = "otlp"
    protocol: str = "grpc"
    # grpc: host:port; http/protobuf: the whole URL.
    endpoint: str = "localhost:4317"
    secure: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = 10.0
    gzip: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    sampler: Sampler = _DEFAULT_SAMPLER
    resource: Mapping[str, str] = field(default_factory=dict)
    batch: int = 512
    queue: int = 2048
    delay: float = 5.0


def read_settings(environment: Mapping[str, str]) -> TracingSettings | None:
    """What the environment says; None where it switches traces off. Raises InvalidTracing."""
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return None
    if exporter not in ("otlp", "console"):
        raise InvalidTracing("OTEL_TRACES_EXPORTER", exporter, "use otlp, console or none")
    protocol = _of_exporter(environment, "PROTOCOL")[1] or "grpc"
    if protocol not in ("grpc", "http/protobuf"):
        raise InvalidTracing("OTEL_EXPORTER_OTLP_PROTOCOL", protocol, "use grpc or http/protobuf")
    endpoint, secure = _endpoint(environment, protocol)
    compression = _of_exporter(environment, "COMPRESSION")[1] or "none"
    if compression not in ("none", "gzip"):
        raise InvalidTracing("OTEL_EXPORTER_OTLP_COMPRESSION", compression, "use gzip or none")
    certificate, key = _file(environment, "CLIENT_CERTIFICATE"), _file(environment, "CLIENT_KEY")
    if (certificate is None) != (key is None):
        name = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"
        raise InvalidTracing(name, str(certificate or ""), "give it together with OTEL_EXPORTER_OTLP_CLIENT_KEY")
    queue = _whole(environment, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
    return TracingSettings(
        exporter=exporter,
        protocol=protocol,
        endpoint=endpoint,
        secure=secure,
        headers=_pairs(*_of_exporter(environment, "HEADERS"), lower=True),
        timeout=_milliseconds(*_of_exporter(environment, "TIMEOUT"), 10_000),
        gzip=compression == "gzip",
        ca=_file(environment, "CERTIFICATE"),
        certificate=certificate,
        key=key,
        sampler=_sampler(environment),
        resource=_resource(environment),
        batch=min(_whole(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), queue),
        queue=queue,
        delay=_milliseconds("OTEL_BSP_SCHEDULE_DELAY", environment.get("OTEL_BSP_SCHEDULE_DELAY", ""), 5_000),
    )


def _of_exporter(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """The variable for traces, else the one for all signals: its name and its value, "" where neither is set."""
    specific, general = f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    value = environment.get(specific, "").strip()
    return (specific, value) if value else (general, environment.get(general, "").strip())


def _endpoint(environment: Mapping[str, str], protocol: str) -> tuple[str, bool]:
    """Where to send, and whether over TLS. Raises InvalidTracing."""
    name, text = _of_exporter(environment, "ENDPOINT")
    http = protocol == "http/protobuf"
    url = text or ("http://localhost:4318" if http else "http://localhost:4317")
    bare = not http and "://" not in url
    parts = urlsplit(f"//{url}" if bare else url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if not parts.hostname or port == -1 or (parts.scheme not in ("http", "https") and not bare):
        raise InvalidTracing(name, text, "write http://HOST:PORT or https://HOST:PORT")
    if http:
        whole = url if name.startswith("OTEL_EXPORTER_OTLP_TRACES_") else url.rstrip("/") + "/v1/traces"
        return whole, parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    insecure = _of_exporter(environment, "INSECURE")[1].lower() == "true"
    secure = not insecure if bare else parts.scheme == "https"
    return f"{host}:{port or 4317}", secure


def _sampler(environment: Mapping[str, str]) -> Sampler:
    name = environment.get("OTEL_TRACES_SAMPLER") or "parentbased_traceidratio"
    kind = name.removeprefix(_PARENT)
    if kind not in _SAMPLERS:
        known = ", ".join((*_SAMPLERS, *(_PARENT + one for one in _SAMPLERS)))
        raise InvalidTracing("OTEL_TRACES_SAMPLER", name, f"use one of {known}")
    ratio = _SAMPLERS[kind]
    if ratio is None:
        text = environment.get("OTEL_TRACES_SAMPLER_ARG") or "0.1"
        try:
            ratio = float(text)
        except ValueError:
            ratio = -1.0
        if not 0.0 <= ratio <= 1.0:
            raise InvalidTracing("OTEL_TRACES_SAMPLER_ARG", text, "give the share of traces to keep, 0 to 1")
    return Sampler(ratio, by_parent=name.startswith(_PARENT))


def _resource(environment: Mapping[str, str]) -> dict[str, str]:
    """What the process says of itself with each span."""
    found = {"service.name": "headrace-epp"}
    if pod := environment.get("POD_NAME"):
        found["k8s.pod.name"] = pod
    if namespace := environment.get("NAMESPACE"):
        found["k8s.namespace.name"] = namespace
    name = "OTEL_RESOURCE_ATTRIBUTES"
    found.update(_pairs(name, environment.get(name, "")))
    if service := environment.get("OTEL_SERVICE_NAME"):
        found["service.name"] = service
    return found


def _pairs(name: str, text: str, *, lower: bool = False) -> tuple[tuple[str, str], ...]:
    """k=v,k=v, values percent-encoded. The value is not shown in the error: it may be a credential."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise InvalidTracing(name, "...", "write key=value,key=value")
        found.append((key.strip().lower() if lower else key.strip(), unquote(value.strip())))
    return tuple(found)


def _file(environment: Mapping[str, str], name: str) -> Path | None:
    variable, text = _of_exporter(environment, name)
    if text and not Path(text).is_file():
        raise InvalidTracing(variable, text, "there is no such file")
    return Path(text) if text else None


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not int(text):
        raise InvalidTracing(name, text, "give a whole number over 0")
    return int(text)


def _milliseconds(name: str, text: str, default: int) -> float:
    return _whole({name: text}, name, default) / 1000.0

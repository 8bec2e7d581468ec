"""Spans on the wire: otlp_pb2.py is what the compiler makes of otlp.proto, and OpenTelemetry's own messages read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from headrace.epp import otlp_pb2 as messages
from headrace.epp.otlp import encode
from headrace.epp.tracing import Span, TraceContext
from headrace.epp.tracing_settings import TracingSettings

SOURCE = "headrace/epp/otlp.proto"
# To make the files again, in controller/:
#   python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. headrace/epp/otlp.proto


def test_the_committed_messages_are_the_protos(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "descriptor"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(repository / "controller")]
    subprocess.run([*command, f"--descriptor_set_out={output}", SOURCE], check=True, timeout=60)
    (compiled,) = FileDescriptorSet.FromString(output.read_bytes()).file
    committed = FileDescriptorProto.FromString(messages.DESCRIPTOR.serialized_pb)
    compiled.ClearField("source_code_info")
    for message in compiled.message_type:  # the compiler adds JSON names to what it writes
        for field in message.field:
            field.ClearField("json_name")
    assert committed == compiled


def test_opentelemetrys_own_messages_read_what_is_sent() -> None:
    attributes: dict[str, str | int | float | bool] = {"text": "t", "count": 3, "share": 0.5, "yes": True}
    span = Span("headrace.pick", TraceContext(1, 2, True, "a=b"), 3, 1_000, 2_000, attributes, "broken")
    raw = encode([span], TracingSettings(resource={"service.name": "s"}))
    (of_resource,) = ExportTraceServiceRequest.FromString(raw).resource_spans
    assert [(one.key, one.value.string_value) for one in of_resource.resource.attributes] == [("service.name", "s")]
    # Of OTLP 0.x; version 1 has other names for the same numbers.
    (of_scope,) = of_resource.instrumentation_library_spans
    assert of_scope.instrumentation_library.name == "headrace.epp"
    (read,) = of_scope.spans
    assert (read.trace_id, read.span_id, read.parent_span_id) == (bytes(15) + b"\1", bytes(7) + b"\2", bytes(7) + b"\3")
    assert (read.name, read.trace_state, read.kind) == ("headrace.pick", "a=b", read.SPAN_KIND_SERVER)
    assert (read.start_time_unix_nano, read.end_time_unix_nano) == (1_000, 2_000)
    values = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in read.attributes}
    assert values == attributes
    assert (read.status.code, read.status.message) == (read.status.STATUS_CODE_ERROR, "broken")

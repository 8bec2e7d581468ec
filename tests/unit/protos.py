"""Committed protobuf modules against the files that they were made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet


def assert_compiled(messages: ModuleType, source: str, repository: Path, directory: Path) -> None:
    """The module is what the compiler makes of `source`, a path in controller/. To make it again, in controller/:

    python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. SOURCE"""
    output = directory / "descriptor"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(repository / "controller")]
    subprocess.run([*command, f"--descriptor_set_out={output}", source], check=True, timeout=60)
    (compiled,) = FileDescriptorSet.FromString(output.read_bytes()).file
    committed = FileDescriptorProto.FromString(messages.DESCRIPTOR.serialized_pb)
    compiled.ClearField("source_code_info")
    for message in compiled.message_type:  # the compiler adds JSON names to what it writes
        for part in (message, *message.nested_type):
            for field in part.field:
                field.ClearField("json_name")
    assert committed == compiled

"""peers_pb2.py is what the compiler makes of peers.proto."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from headrace.datalayer import peers_pb2 as messages

SOURCE = "headrace/datalayer/peers.proto"
# To make the files again, in controller/:
#   python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. headrace/datalayer/peers.proto


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

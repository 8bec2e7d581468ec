"""device_plugin_pb2.py is what the compiler makes of device_plugin.proto, and speaks the kubelet's wire format."""

from __future__ import annotations

from pathlib import Path

from headrace.simulator import device_plugin_pb2 as messages

from ..protos import assert_compiled


def test_the_committed_messages_are_the_protos(repository: Path, tmp_path: Path) -> None:
    assert_compiled(messages, "headrace/simulator/device_plugin.proto", repository, tmp_path)


def test_bytes_on_the_wire() -> None:
    """Field numbers of the kubelet's api.proto, written out by hand."""
    register = messages.RegisterRequest(
        version="v1beta1", endpoint="e", resource_name="r", options=messages.DevicePluginOptions()
    )
    assert register.SerializeToString() == b'\n\x07v1beta1\x12\x01e\x1a\x01r"\x00'
    devices = messages.ListAndWatchResponse(devices=[messages.Device(ID="d", health="Healthy")])
    assert devices.SerializeToString() == b"\n\x0c\n\x01d\x12\x07Healthy"
    allocate = messages.AllocateRequest.FromString(b"\n\x06\n\x01a\n\x01b")
    assert list(allocate.container_requests[0].devices_ids) == ["a", "b"]
    answer = messages.AllocateResponse(container_responses=[messages.ContainerAllocateResponse(envs={"K": "v"})])
    assert answer.SerializeToString() == b"\n\x08\n\x06\n\x01K\x12\x01v"

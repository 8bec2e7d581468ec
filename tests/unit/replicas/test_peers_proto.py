"""peers_pb2.py is what the compiler makes of peers.proto."""

from __future__ import annotations

from pathlib import Path

from headrace.replicas import peers_pb2 as messages

from ..protos import assert_compiled


def test_the_committed_messages_are_the_protos(repository: Path, tmp_path: Path) -> None:
    assert_compiled(messages, "headrace/replicas/peers.proto", repository, tmp_path)

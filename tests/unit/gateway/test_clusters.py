"""The cluster of a pool's picker stays as it is from version to version.

Where it changes, Envoy takes a new cluster in its place while the gateway controller is upgraded, and resets the picks
that are on their way to the old one: a pool that fails closed answers them 503. So a cluster with other settings gets
another name, and the former one stays beside it for a version. `python -m tests.unit.gateway.test_clusters` writes the
file anew, under the names of now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from headrace.core import GA_GROUP, Pool
from headrace.gateway.clusters import former_picker_cluster, picker_cluster
from headrace.gateway.snapshot import PickerService

FILE = Path(__file__).parents[2] / "data/picker-clusters.json"
SERVICES = {
    "ours": PickerService("epp", "n", 9002, "grpc", is_ours=True, cleartext=False),
    "somebody else's": PickerService("epp", "n", 9002, "grpc", is_ours=False, cleartext=False),
    "cleartext": PickerService("epp", "n", 9002, "grpc", is_ours=True, cleartext=True),
}


def clusters(kind: str) -> list[dict[str, object]]:
    current = picker_cluster(Pool(GA_GROUP, "n", "pool", {"app": "m"}, (8000,)), SERVICES[kind], "epp.n.svc")
    return [MessageToDict(made) for made in (current, former_picker_cluster(current))]


@pytest.mark.parametrize("kind", SERVICES)
def test_a_pickers_cluster_is_what_the_version_before_made(kind: str) -> None:
    pinned = json.loads(FILE.read_text())[kind]
    assert clusters(kind) == pinned
    assert [found["name"] for found in pinned] == [
        f"inferencepool/{GA_GROUP}/n/pool/{end}" for end in ("picker", "epp")
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps({kind: clusters(kind) for kind in SERVICES}, indent=1) + "\n")

"""The images are archives in the cache, and every node has them."""

from __future__ import annotations

import re
import time
from pathlib import Path

from support import assert_converged, get, variables

IMAGES = ("localhost/headrace/controller:", "docker.io/envoyproxy/envoy:", "docker.io/envoyproxy/gateway:")


def missing():
    """(node, image) of what a kubelet does not know of. It looks every ten seconds or so."""
    nodes = {node["metadata"]["name"]: node["status"].get("images", []) for node in get("nodes")}
    assert nodes
    names = {node: [name for image in images for name in image["names"]] for node, images in nodes.items()}
    return [
        (node, image) for node in names for image in IMAGES if not any(name.startswith(image) for name in names[node])
    ]


def test_every_node_has_the_stacks_images():
    deadline = time.monotonic() + 120
    while found := missing():
        assert time.monotonic() < deadline, found
        time.sleep(2)


def test_archives_are_kept_by_what_they_were_made_from():
    folder = Path(variables()["local_cluster_cache_dir"]).expanduser() / "images"
    names = [path.name for path in folder.iterdir()]
    for image in ("controller", "envoy", "envoy-gateway"):
        assert any(re.fullmatch(image + r"-[0-9a-f]+\.tar", name) for name in names), names


def test_check_mode_on_what_is_there_reports_no_change():
    assert_converged("container_images")

"""Images in the nodes' containerd: what is there, and what must be imported."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import nodes
from .processes import node_processes
from .settings import Settings

# Which build of an image a node has: an image name alone (docker.io/envoyproxy/gateway:v1.9.1) does not say.
LABEL = "headrace.dev/content"


def present(settings: Settings, node: str) -> dict[str, str]:
    """The images of a node by name, with the content label each has ("" where it has none)."""
    listed = _ctr(settings, node, "images", "ls")
    found = {}
    for line in listed.splitlines()[1:]:
        fields = line.split()
        labels = dict(label.split("=", 1) for label in fields[-1].split(",") if "=" in label)
        found[fields[0]] = labels.get(LABEL, "")
    return found


def load(settings: Settings, images: Iterable[Mapping[str, str]], check: bool) -> list[str]:
    """Import each image (name, content, archive) into the nodes that do not have it; answer with what that was."""
    wanted = list(images)
    with ThreadPoolExecutor() as pool:
        done = pool.map(lambda node: _load_node(settings, node.name, wanted, check), settings.nodes)
        return [change for changes in done for change in changes]


def _load_node(settings: Settings, node: str, images: Iterable[Mapping[str, str]], check: bool) -> list[str]:
    # In check mode a node need not run: what it has is then not known, and all of it may be imported.
    there = {} if check and node not in node_processes(settings.state_dir) else present(settings, node)
    changes = []
    for image in images:
        name, content = image["name"], image["content"]
        if there.get(name) == content:
            continue
        changes.append(f"import {name} into {node}")
        if not check:
            _ctr(settings, node, "images", "import", str(Path(image["archive"]).resolve()))
            _ctr(settings, node, "images", "label", name, f"{LABEL}={content}")
    return changes


def _ctr(settings: Settings, node: str, *arguments: str) -> str:
    command = [*nodes.enter(settings, node), "ctr", "--namespace", "k8s.io", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise nodes.NodeError(f"in node {node}: `ctr {' '.join(arguments)}`: {done.stderr.strip()}")
    return done.stdout

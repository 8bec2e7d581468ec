"""A cluster of the suite's own with the whole stack but for models and pools, and the suite's images in its node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ...e2e.stack import Stack
from .images import content_key, image_with_entrypoint, program_image
from .suite import Suite

DOWN = "playbooks/local_cluster_down.yml"
ENTRYPOINT = ("headrace", "epp", "--conformance-hooks")


@pytest.fixture(scope="session")
def suite(repository: Path) -> Suite:
    """The suite, built."""
    suite = Suite(repository / "build" / "conformance")
    suite.build()
    return suite


@pytest.fixture(scope="session")
def cluster(repository: Path, suite: Suite) -> Iterator[Stack]:
    """The running stack; gone afterwards, whatever happened."""
    stack = Stack.from_inventory(repository, "tests/full/conformance/cluster.yml")
    stack.playbook(DOWN)
    try:
        stack.site()
        _load_images(stack, suite)
        _run_a_pod_beside_the_gateways(stack, suite)
        yield stack
    finally:
        stack.playbook(DOWN)


def _load_images(stack: Stack, suite: Suite) -> None:
    """Import the suite's images under the names that its manifests give them."""
    images = []
    for number, reference in enumerate(sorted({container["image"] for container in suite.containers()})):
        archive = suite.folder / f"image-{number}.tar"
        if reference == suite.backend_image:
            program_image(suite.backend, reference, archive)
        else:
            image_with_entrypoint(_controller_archive(stack), ENTRYPOINT, reference, archive)
        images.append({"name": reference, "content": content_key(archive), "archive": str(archive)})
    tool = stack.repository / "roles/local_cluster/files/cluster.py"
    command = [sys.executable, str(tool), "load-images", "--state-dir", str(stack.kubeconfig.parents[1])]
    done = subprocess.run(command, input=json.dumps(images), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _run_a_pod_beside_the_gateways(stack: Stack, suite: Suite) -> None:
    """Before any test the suite waits for Pods where its Gateways are, and takes them for the Gateways' own Envoys.

    Envoy Gateway runs those in its own namespace, so any other Pod has to do. No test looks at it."""
    namespace = suite.gateway_namespace
    container = {"name": "nothing", "image": suite.backend_image, "imagePullPolicy": "IfNotPresent"}
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "beside-the-gateways", "namespace": namespace},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
        },
    ]
    stack.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def _controller_archive(stack: Stack) -> Path:
    """The archive of the image that the gateway controller runs; its tag is the archive's key."""
    deployment = stack.objects("deployment", "headrace-gateway", "-n", "envoy-gateway-system")[0]
    tag = deployment["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":")[2]
    return Path(stack.variables["local_cluster_cache_dir"]) / "images" / f"controller-{tag}.tar"

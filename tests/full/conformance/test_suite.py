"""The Gateway API Inference Extension's conformance suite, unchanged, through Headrace's gateway and picker."""

from __future__ import annotations

from importlib.metadata import version

import yaml

from ...e2e.stack import Stack
from .suite import Suite

# The slowest test waits for three answers in a row of a Pod whose pool has 30 % of the traffic: a minute or two each.
TIMEOUT_SECONDS = 2400
IMPLEMENTATION = ("-organization=headrace", "-project=headrace", f"-version={version('headrace')}")


def test_the_manifests_need_no_registry(suite: Suite) -> None:
    """The images are imported under their names; a manifest that always pulls would look for them elsewhere."""
    for container in suite.containers():
        assert container.get("imagePullPolicy", "IfNotPresent") == "IfNotPresent", container["image"]
        assert not container["image"].endswith((":latest", ":main")), container["image"]


def test_every_test_of_the_suite_passes(cluster: Stack, suite: Suite) -> None:
    results = suite.run(cluster.kubeconfig, ("-gateway-class=headrace", *IMPLEMENTATION), TIMEOUT_SECONDS)
    for result in results.values():
        print(f"{result.outcome} {result.seconds:7.1f} s  {result.name}")
    assert {name: result.outcome for name, result in results.items()} == dict.fromkeys(suite.test_names, "PASS"), (
        f"see {suite.log}"
    )
    (profile,) = yaml.safe_load(suite.report.read_text())["profiles"]
    print(profile)
    assert profile["core"]["result"] == "success"

"""Two versions side by side, under traffic: the commit before, and this one, in both directions.

The environment's HEADRACE_BEFORE names the commit before (HEAD~1). Its checkout brings up the stack with its own
playbooks and images; then each version upgrades what the other one left, and takes over the other's replacement."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..e2e.stack import Stack
from .replacing import MODEL, PLAYBOOK, VARIABLES, arguments, ended, forget, reached, renamed, specs, traffic

DOWN = "playbooks/local_cluster_down.yml"
UPGRADE = "playbooks/upgrade.yml"
# The machine carries two rollouts at once: enough requests to see a gap of a second.
RATE = 5.0
HELD = {
    "pool_replacement_manual_steps": [25],
    "pool_replacement_follow": False,
    "pool_replacement_settings": {"interval": 20, "gate_timeout": 240, "min_sample": 10, "drain_timeout": 60},
}


@pytest.fixture(scope="module")
def before(repository: Path, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The commit before, on the same cluster: a checkout with an environment of its own."""
    folder = tmp_path_factory.mktemp("before") / "checkout"
    revision = os.environ.get("HEADRACE_BEFORE", "HEAD~1")
    git = ["git", "-C", str(repository)]
    subprocess.run([*git, "worktree", "add", "--detach", str(folder), revision], check=True, capture_output=True)
    try:
        subprocess.run(["make", "venv"], cwd=folder, check=True, timeout=900)
        stack.playbook(DOWN)
        old = dataclasses.replace(stack, repository=folder)
        old.site(*VARIABLES)
        yield old
    finally:
        stack.playbook(DOWN, check=False)
        subprocess.run([*git, "worktree", "remove", "--force", str(folder)], check=True)


def images(stack: Stack) -> set[str]:
    """Headrace's own images that run: picker and gateway controller."""
    found: list[dict[str, Any]] = stack.objects("deployments", "-A", "-l", "app.kubernetes.io/part-of=headrace")
    return {
        container["image"]
        for one in found
        if one["metadata"]["labels"].get("app.kubernetes.io/component") in ("endpoint-picker", "gateway-controller")
        for container in one["spec"]["template"]["spec"]["containers"]
    }


def upgraded(stack: Stack) -> set[str]:
    """The images that run once a version has upgraded the cluster under traffic; no request may be lost."""
    confirmed = ("-e", json.dumps({"headrace_confirm": True, "headrace_upgrade_model_servers": False}))
    # The images are built first: that is work for minutes, and none of an upgrade's.
    stack.playbook("site.yml", *VARIABLES, "--tags", "container_images", timeout=1800)
    with traffic(stack, RATE) as load:
        stack.playbook(UPGRADE, *VARIABLES, *confirmed, timeout=1800)
    assert load.outcomes
    assert not load.faults, load.faults[:5]
    return images(stack)


def test_each_version_upgrades_the_other_under_traffic(stack: Stack, before: Stack) -> None:
    old = images(before)
    new = upgraded(stack)
    assert not old & new
    assert upgraded(before) == old


@pytest.mark.parametrize("begun_by", ["before", "now"])
def test_each_version_ends_a_replacement_of_the_other(stack: Stack, before: Stack, begun_by: str) -> None:
    first, second = (before, stack) if begun_by == "before" else (stack, before)
    forget(first)
    routes = specs(first)
    with traffic(first, RATE) as load:
        first.playbook(PLAYBOOK, *arguments("-e", json.dumps(HELD)), timeout=900)
        reached(first, "AwaitingApproval")
        # The Job is the first one's, and the request the second one's; then the second begins where it died.
        first.kubectl("delete", "job", "headrace-replace-blue", "-n", "default", "--cascade=foreground", "--wait")
        followed = {**HELD, "pool_replacement_follow": True}
        second.playbook(PLAYBOOK, *arguments("-e", json.dumps({**HELD, "pool_replacement_follow": False})), timeout=900)
        second.playbook(PLAYBOOK, *VARIABLES, "-e", "pool=blue", "-e", "action=approve")
        second.playbook(PLAYBOOK, *arguments("-e", json.dumps(followed)), timeout=1200)
    assert ended(second)["phase"] == "Completed"
    assert specs(second) == renamed(routes)
    assert not load.faults, load.faults[:5]
    served = second.request("/v1/completions", {"model": MODEL, "prompt": "once", "max_tokens": 3})
    assert (served.status, served.pod.rsplit("-", 2)[0]) == (200, "green")

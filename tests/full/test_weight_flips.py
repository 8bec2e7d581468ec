"""Every change of weights reaches every Envoy: 300 of them under 30 requests/s, as Envoy's config dump tells it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..e2e.stack import Stack
from .replacing import forget, traffic

FLIPS = 300
RATE = 30.0
LIMIT_SECONDS = 5.0
POOLS = ("blue", "green")
ENVOYS = "app.kubernetes.io/managed-by=envoy-gateway,app.kubernetes.io/component=proxy"


@contextmanager
def admin_pages(stack: Stack) -> Iterator[list[str]]:
    """Where the admin page of each Envoy is reached: each listens inside its Pod only."""
    with contextlib.ExitStack() as running:
        pages = []
        for pod in stack.objects("pods", "-A", "-l", ENVOYS):
            metadata = pod["metadata"]
            forward = subprocess.Popen(
                [
                    *(str(stack.kubectl_path), "--kubeconfig", str(stack.kubeconfig)),
                    *("port-forward", "-n", metadata["namespace"], f"pod/{metadata['name']}", ":19000"),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            running.callback(forward.wait)
            running.callback(forward.terminate)
            assert forward.stdout is not None
            line = forward.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            assert found is not None, line
            pages.append(f"http://127.0.0.1:{found[1]}")
        assert pages
        yield pages


def weights(page: str) -> set[tuple[int, ...]]:
    """The weights of the route `chat` in one Envoy."""
    with urllib.request.urlopen(f"{page}/config_dump?resource=dynamic_route_configs", timeout=5) as answer:
        dumped: dict[str, Any] = json.loads(answer.read())
    return {
        tuple(weight["weight"] for weight in route["route"].get("weighted_clusters", {}).get("clusters", ()))
        for config in dumped.get("configs", ())
        for host in config["route_config"].get("virtual_hosts", ())
        for route in host["routes"]
        if route["name"].startswith("httproute/default/chat/")
    }


def test_each_change_of_weights_reaches_every_envoy(two_pools: Stack) -> None:
    stack = two_pools
    forget(stack)
    (route,) = stack.objects("httproute", "chat", "-n", "default")
    rules = route["spec"]["rules"]
    first = rules[0]["backendRefs"][0]

    def change(*wanted: int) -> None:
        for rule in rules:
            rule["backendRefs"] = [
                {**first, "name": pool, "weight": weight} for pool, weight in zip(POOLS, wanted, strict=True)
            ]
        patch = json.dumps({"spec": {"rules": rules}})
        stack.kubectl("patch", "httproute", "chat", "-n", "default", "--type=merge", "-p", patch)

    seen = []
    try:
        # Envoy has to know both pools before their weights say anything.
        change(1, 1)
        stack.wait_for("both pools serve", lambda: all(stack.request("/v1/models").status == 200 for _ in range(20)))
        with admin_pages(stack) as pages, traffic(stack, rate=RATE) as load:
            for number in range(FLIPS):
                # No two in a row are the same, and neither pool leaves the configuration.
                wanted = (1 + (number + 1) % 3, 1 + number % 2)
                change(*wanted)
                begun = time.monotonic()
                stack.wait_for(
                    f"change {number}, to {wanted}, is in every Envoy",
                    lambda: all(weights(page) == {wanted} for page in pages),  # noqa: B023 (called before the next)
                    LIMIT_SECONDS,
                )
                seen.append(time.monotonic() - begun)
    finally:
        forget(stack)
    seen.sort()
    print(f"{FLIPS} changes: median {seen[FLIPS // 2]:.2f} s, longest {seen[-1]:.2f} s")
    assert not load.faults, load.faults[:5]

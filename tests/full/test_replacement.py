"""A pool is replaced under traffic on a real cluster: nobody notices, whatever breaks meanwhile.

The load comes from `load`, which shares no code with Headrace and accounts for every byte. Weights and phases are read
from the cluster by kubectl.

HEADRACE_LOAD_RATE is the load in requests/s (50). HEADRACE_KEEP_CLUSTER=1 leaves the cluster up for the next run."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from ..e2e.stack import Stack
from ..shares import is_likely
from .replacing import (
    PLAYBOOK,
    RATE,
    RECORD,
    VARIABLES,
    arguments,
    ended,
    forget,
    reached,
    renamed,
    specs,
    start,
    state,
    traffic,
)


@pytest.fixture
def fresh(two_pools: Stack) -> Stack:
    """Nothing was replaced yet."""
    forget(two_pools)
    return two_pools


def test_a_whole_replacement_under_load_loses_nothing(fresh: Stack) -> None:
    before = specs(fresh)
    with traffic(fresh) as load:
        time.sleep(15)
        done = fresh.playbook(PLAYBOOK, *arguments(), timeout=1200)
        time.sleep(15)
    assert not load.faults, load.faults[:5]
    found = state(fresh)
    assert found["phase"] == "Completed"
    assert specs(fresh) == renamed(before)
    for gate in found["history"]:
        # The window of a gate, less what Envoy needs to take a weight at its beginning.
        served = load.pools(gate["at"] - gate["seconds"] + 2, gate["at"])
        total = served["blue"] + served["green"]
        assert total > 10 * RATE
        assert is_likely(gate["percent"] / 100, served["green"], total), (gate["percent"], served)
        print(f"{gate['percent']} %: {served['green']} of {total} at the new pool")
    assert "100 % at the new pool: pass" in done.output
    served = fresh.request("/v1/completions", {"model": "chat-lora", "prompt": "once", "max_tokens": 3})
    assert (served.status, served.pod[:6]) == (200, "green-"), "the adapter that only the new pool has"
    again = fresh.playbook(PLAYBOOK, *arguments())
    assert again.changed == 0, "what is done is not done again"
    refused = fresh.site(*VARIABLES, check=False)
    assert refused.returncode != 0
    assert "which was replaced by green" in " ".join(refused.output.split())
    assert fresh.site(*VARIABLES, "-e", "replace_test_pool=green").changed == 0, "the inventory change of the report"
    back = fresh.playbook(PLAYBOOK, *arguments("-e", "action=rollback"))
    assert back.failed == 0
    assert specs(fresh) == before


def test_check_mode_shows_the_plan_and_changes_nothing(fresh: Stack) -> None:
    before = [route["metadata"]["resourceVersion"] for route in fresh.objects("httproutes", "-A")]
    done = fresh.playbook(PLAYBOOK, *arguments("--check"))
    assert done.changed == 0
    assert "HTTPRoute default/chat, rule 0" in done.output
    assert [route["metadata"]["resourceVersion"] for route in fresh.objects("httproutes", "-A")] == before


def test_site_refuses_meanwhile_and_a_second_playbook_follows(fresh: Stack) -> None:
    with traffic(fresh, rate=min(10.0, RATE)) as load:
        first = start(fresh)
        reached(fresh, "Gating")
        refused = fresh.site(*VARIABLES, check=False)
        assert refused.returncode != 0
        assert f"Lease {RECORD} is held by {RECORD}" in " ".join(refused.output.split())
        other = fresh.playbook(PLAYBOOK, *VARIABLES, "-e", "pool=blue", "-e", "replacement=other", check=False)
        assert other.returncode != 0
        assert "is being replaced by" in " ".join(other.output.split())
        second = fresh.playbook(PLAYBOOK, *arguments(), timeout=900)
        assert second.changed == 0, "it follows, and changes nothing"
        assert first.wait(60) == 0
    assert not load.faults, load.faults[:5]


def slow_or_failing(*flags: str) -> tuple[str, ...]:
    return ("-e", json.dumps({"replace_test_new_arguments": list(flags)}))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(("--error-rate", "1"), "server errors"), (("--slowdown", "10"), "time per output token")],
    ids=["errors", "slow"],
)
def test_a_new_pool_that_is_bad_is_taken_back(fresh: Stack, flags: tuple[str, ...], reason: str) -> None:
    before = specs(fresh)
    cold = {"interval": 20, "gate_timeout": 120, "min_sample": 20, "warmup_requests": 0, "drain_timeout": 60}
    with traffic(fresh) as load:
        time.sleep(5)
        done = fresh.playbook(
            PLAYBOOK, *arguments(*slow_or_failing(*flags)), "-e", json.dumps({"pool_replacement_settings": cold}),
            check=False, timeout=1200,
        )  # fmt: skip
        time.sleep(5)
    assert done.returncode != 0
    assert state(fresh)["phase"] == "RolledBack"
    assert reason in state(fresh)["reason"]
    assert specs(fresh) == before
    if "--slowdown" in flags:
        assert not load.faults, load.faults[:5]
        return
    # What the fault itself costs: 5 % for one gate interval, and nothing of the old pool's.
    assert all(fault.status == 500 and fault.pool in ("green", "") for fault in load.faults), load.faults[:5]
    expected = 0.05 * RATE * cold["interval"]
    assert len(load.faults) <= expected + 4.5 * expected**0.5


def test_a_warm_up_that_fails_costs_nobody_anything(fresh: Stack) -> None:
    before = specs(fresh)
    with traffic(fresh) as load:
        done = fresh.playbook(PLAYBOOK, *arguments(*slow_or_failing("--error-rate", "0.5")), check=False, timeout=900)
    assert done.returncode != 0
    assert "the warm-up failed" in state(fresh)["reason"]
    assert not load.faults, load.faults[:5]
    assert specs(fresh) == before


@pytest.mark.parametrize("victim", ["green", "green-epp"])
def test_a_new_pool_that_dies_is_taken_back(fresh: Stack, victim: str) -> None:
    before = specs(fresh)
    with traffic(fresh) as load:
        playbook = start(fresh)
        reached(fresh, "Gating", 25)
        fresh.kubectl("scale", "deployment", victim, "-n", "default", "--replicas=0")
        fresh.kubectl(
            "delete",
            "pods",
            "-n",
            "default",
            "-l",
            f"{'app' if victim == 'green' else 'app.kubernetes.io/name'}={victim}",
            "--grace-period=0",
            "--force",
        )
        killed = time.time()
        found = ended(fresh)
        back = found["finished"]
        playbook.wait(120)
        time.sleep(5)
    assert found["phase"] == "RolledBack"
    # An endpoint picker without endpoints answers 503, which a gate may see before the pool has been dead for long.
    assert "the new pool is dead" in found["reason"] or "server errors" in found["reason"]
    assert specs(fresh) == before
    lost = [fault for fault in load.faults if not killed - 12 <= fault.started <= back + 3]
    assert not lost, lost[:5]
    # At most the new pool's share of what came until the weights were back, and the streams that it had.
    assert len(load.faults) <= 0.25 * RATE * (back - killed + 5) * 1.5 + 0.25 * RATE / 2 * 10 * 1.5
    fresh.kubectl("scale", "deployment", victim, "-n", "default", f"--replicas={2 if victim == 'green' else 1}")


def test_an_api_server_that_is_away_for_20_seconds_changes_nothing(fresh: Stack) -> None:
    from .machine import processes_that_name

    before = specs(fresh)
    with traffic(fresh) as load:
        playbook = start(fresh)
        reached(fresh, "Gating", 25)
        ours = processes_that_name(f"{fresh.kubeconfig.parents[1]}/")
        servers = [pid for pid, command in ours.items() if "kube-apiserver --" in command]
        assert servers
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(20)
        for pid in servers:
            os.kill(pid, signal.SIGCONT)
        found = ended(fresh)
        playbook.wait(120)
    assert found["phase"] in ("Completed", "RolledBack")
    assert not load.faults, load.faults[:5]
    assert specs(fresh) == (renamed(before) if found["phase"] == "Completed" else before)


MOMENTS = [("Preparing", None), ("WarmingUp", None), ("Gating", 5), ("Gating", 50), ("Draining", None)]


@pytest.mark.parametrize("who", ["playbook", "job"])
@pytest.mark.parametrize("moment", MOMENTS, ids=[f"{phase}-{share}" for phase, share in MOMENTS])
def test_killed_at_any_moment_it_ends_completed_or_rolled_back(
    fresh: Stack, who: str, moment: tuple[str, int | None]
) -> None:
    before = specs(fresh)
    with traffic(fresh, rate=min(20.0, RATE)) as load:
        playbook = start(fresh)
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline:
            now = state(fresh)
            # Short phases may be over before anybody has looked; then this is a moment soon after.
            if now.get("phase") == moment[0] and moment[1] in (None, now["share"]):
                break
            if now.get("phase") and moment[0] in ("Preparing", "WarmingUp") and now["phase"] != "Preflight":
                break
            time.sleep(0.1)
        if who == "playbook":
            os.killpg(playbook.pid, signal.SIGKILL)
        else:
            kill_job(fresh)
        found = ended(fresh, 900)
        if who == "job":
            playbook.wait(120)
        time.sleep(12)
    assert found["phase"] in ("Completed", "RolledBack")
    assert not load.faults, load.faults[:5]
    assert specs(fresh) == (renamed(before) if found["phase"] == "Completed" else before)
    if who == "playbook":
        assert fresh.playbook(PLAYBOOK, *arguments(), check=False).returncode == (found["phase"] != "Completed")


def kill_job(stack: Stack) -> None:
    """SIGKILL for the process in the Job's Pod, from the host."""
    command = "pool replace --action=run"
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            line = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if command in line and "headrace" in line:
            os.kill(int(directory.name), signal.SIGKILL)
            return
    raise AssertionError("the Job's process is not there")

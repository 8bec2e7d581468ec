"""`headrace pool replace` against a real API server: whole runs, faults, interruptions, and who may run at all."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.protocol.objects import ROUTES_TRANSLATED
from headrace.protocol.translated import TranslatedRoute, uid_of, write_routes

from ..hang import HANG_SECONDS
from ..ports import free_port
from .replacement import GA, Cut, Stage, kill, replaced, rule, simple

pytestmark = pytest.mark.slow


def service(weight: int = 1) -> dict[str, Any]:
    return {"group": "", "kind": "Service", "name": "static", "port": 80, "weight": weight}


def without_weights(specs: dict[str, Any], name: str) -> dict[str, Any]:
    specs = copy.deepcopy(specs)
    for spec in specs.values():
        for each in spec["rules"]:
            each["backendRefs"] = [ref for ref in each["backendRefs"] if ref["name"] != name]
            for ref in each["backendRefs"]:
                ref.pop("weight")
    return specs


def many_routes(stage: Stage) -> dict[str, Any]:
    """Several rules, pools mixed with Services, another namespace, gRPC, twelve routes in all."""
    elsewhere = f"{stage.namespace}-elsewhere"
    stage.api.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": elsewhere}},
        {
            "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
            "metadata": {"name": "all", "namespace": stage.namespace},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": elsewhere}],
                "to": [{"group": GA, "kind": "InferencePool"}],
            },
        },
    )  # fmt: skip
    old = stage.pool_ref
    header = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "x", "value": "y"}]}}]
    stage.route(
        "mixed",
        rule(service(3), path="/static"),
        rule(old("old", 7), service(2), path="/v1", filters=header, timeouts={"request": "30s"}),
        rule(old("old", None), path="/"),
    )
    stage.route("far", rule(old("old", 4, namespace=True), service(1)), namespace=elsewhere)
    for at in range(8):
        stage.route(f"route-{at}", rule(old("old", at + 1), path=f"/{at}"))
    stage.route("not", rule(service()))
    method = {"matches": [{"method": {"service": "inference.GRPCInferenceService"}}]}
    stage.route("grpc", {**method, "backendRefs": [old("old", 2), service(1)]}, kind="GRPCRoute")
    return stage.specs()


def test_a_whole_replacement_over_many_routes(stage: Stage) -> None:
    before = many_routes(stage)
    owners = stage.owners("route-0")
    process = stage.start(stage.plan())
    while process.poll() is None:
        specs = stage.specs()
        assert without_weights(specs, f"{stage.name}-new") in (
            without_weights(before, ""), *(without_weights(before, f"{stage.name}-old"),)
        ) or stage.kept()["phase"] in ("Finalising", "CleaningUp", "Completed")  # fmt: skip
    code, output = stage.finish(process)
    assert code == 0, output
    assert stage.specs() == replaced(stage, before)
    state = stage.kept()
    assert state["phase"] == "Completed"
    assert [(gate["percent"], gate["verdict"]) for gate in state["history"]] == [
        (10, "pass"),
        (50, "pass"),
        (100, "pass"),
    ]
    log = [entry["message"] for entry in state["log"]]
    assert [line for line in log if line.endswith("% go to the new pool")] == [
        f"{share} % go to the new pool" for share in (10, 50, 100)
    ]
    shares = [gate["requests_new"] / (gate["requests_new"] + gate["requests_old"]) for gate in state["history"]]
    # Traffic follows a weight after a moment, a long one on a busy machine: it is between two steps' then.
    for share, before_it, at_it in zip(shares, (0.0, 0.1, 0.5), (0.1, 0.5, 1.0), strict=True):
        assert before_it - 0.1 <= share <= at_it + 0.1, f"{shares}: the traffic that was measured is the weights'"
    assert stage.run(stage.plan())[0] == 0, "the same attempt again changes nothing"
    assert stage.specs() == replaced(stage, before)
    # The rules are theirs again who applied them: no conflict, and nothing to change.
    assert stage.owners("route-0") == owners == ["kubectl"]
    stage.route("route-0", rule(stage.pool_ref("new", None), path="/0"))
    assert stage.specs() == replaced(stage, before)
    events = stage.api.get("events", "-n", stage.namespace)["items"]
    assert {"Shifting", "Completed"} <= {event["reason"] for event in events}


def test_a_step_is_done_when_the_gateway_says_that_it_is_translated(stage: Stage) -> None:
    stage.route("one", rule(stage.pool_ref("old", 1)))
    route = stage.api.get("httproute", "one", "-n", stage.namespace)["metadata"]

    def say(generation: int) -> None:
        entry = {
            "parentRef": {"name": "gateway"},
            "conditions": [{
                "type": ROUTES_TRANSLATED, "status": "True", "reason": "Translated",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "message": write_routes([
                    TranslatedRoute(("HTTPRoute", stage.namespace, "one"), generation, uid_of(route), "0")
                ]),
            }],
        }  # fmt: skip
        patch = json.dumps({"status": {"parents": [entry]}})
        done = stage.api.kubectl(
            *("patch", "inferencepool", f"{stage.name}-old", "-n", stage.namespace),
            *("--subresource=status", "--type=merge", "-p", patch),
        )
        assert done.returncode == 0, done.stderr

    def generation() -> int:
        return int(stage.api.get("httproute", "one", "-n", stage.namespace)["metadata"]["generation"])

    say(route["generation"])
    process = stage.start(stage.plan(steps=[100]))
    deadline = time.monotonic() + 60
    while generation() == route["generation"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The route is written. Without the word of the gateway the replacement stays at this step.
    patched = generation()
    time.sleep(3)
    assert stage.kept()["phase"] == "Preparing"
    assert generation() == patched
    say(1_000)
    code, output = stage.finish(process)
    assert code == 0, output


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda stage: setattr(stage.new.behaviour, "errors", 0.5), "server errors"),
        (lambda stage: setattr(stage.new.behaviour, "slowness", 10.0), "TTFT p90"),
        (lambda stage: stage.pod("new", ready=False), "the new pool is dead"),
    ],
    ids=["errors", "slow", "dead"],
)
def test_a_bad_new_pool_is_taken_back(stage: Stage, fault: Callable[[Stage], None], reason: str) -> None:
    before = many_routes(stage)
    stage.hold(10)
    process = stage.start(stage.plan())
    stage.wait_for("Gating", share=10)
    fault(stage)
    stage.go_on()
    code, output = stage.finish(process)
    assert code == 3, output
    assert stage.specs() == before
    assert reason in stage.kept()["reason"]
    assert stage.kept()["phase"] == "RolledBack"


def test_a_pool_of_errors_is_taken_back_long_before_the_window_ends(stage: Stage) -> None:
    before = simple(stage)
    stage.new.behaviour.errors = 1.0
    # A window that is longer than a test waits.
    code, output = stage.run(stage.plan(interval=7200, gate_timeout=7200))
    assert code == 3, output
    assert stage.specs() == before
    print(f"the new pool was asked {stage.new.asked} times")


def test_killed_anywhere_the_next_one_carries_on(stage: Stage) -> None:
    before = many_routes(stage)
    plan = stage.plan()
    for phase, share in (("Preparing", None), ("Gating", 10), ("Shifting", None), ("Gating", 50), ("Draining", None)):
        process = stage.start(plan)
        deadline = time.monotonic() + 40
        while process.poll() is None and time.monotonic() < deadline:
            state = stage.kept()
            if state.get("phase") == phase and share in (None, state["share"]):
                break
            if state.get("phase") in ("Finalising", "CleaningUp", "Completed"):
                break
        if process.poll() is None:
            kill(process)
    code, output = stage.finish(stage.start(plan))
    assert code == 0, output
    assert stage.specs() == replaced(stage, before)


@pytest.mark.parametrize("end", ["RolledBack", "Completed"])
def test_killed_again_and_again_on_its_way_out(stage: Stage, end: str) -> None:
    before = many_routes(stage)
    discarded = {"group": "", "version": "v1", "plural": "services", "namespace": stage.namespace}
    which = "new" if end == "RolledBack" else "old"
    stage.api.apply({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "discarded", "namespace": stage.namespace},
        "spec": {"ports": [{"port": 80}]},
    })  # fmt: skip
    plan = stage.plan(**{f"remove_{which}": [{**discarded, "name": "discarded"}]})
    if end == "RolledBack":
        stage.hold(50)
    process = stage.start(plan)
    if end == "RolledBack":
        stage.wait_for("Gating", share=50)
        stage.new.behaviour.errors = 1.0
        stage.go_on()
    else:
        stage.wait_for("Draining", "Finalising", "CleaningUp", "Completed", share=100)
    # Lives of other lengths, so that they end anywhere. Each but the first begins when its predecessor's Lease is over.
    seen, lives = set[str](), 0
    while process.poll() is None and lives < 12:
        time.sleep((4.0 if lives else 0.0) + lives % 8 * 0.5)
        kill(process)
        lives += 1
        seen.add(stage.kept()["phase"])
        process = stage.start(plan)
    code, output = stage.finish(process)
    assert code == (3 if end == "RolledBack" else 0), output
    assert stage.kept()["phase"] == end, (lives, seen)
    assert stage.specs() == (before if end == "RolledBack" else replaced(stage, before))
    left = [service["metadata"]["name"] for service in stage.api.get("services", "-n", stage.namespace)["items"]]
    assert "discarded" not in left
    print(f"{lives} lives, killed in {sorted(seen)}")


def test_a_killed_run_can_be_rolled_back_by_the_next(stage: Stage) -> None:
    before = many_routes(stage)
    plan = stage.plan()
    stage.hold(50)
    process = stage.start(plan)
    stage.wait_for("Gating", share=50)
    kill(process)
    code, output = stage.run(plan, "--action", "rollback", "--by", "a test")
    assert code == 0, output
    assert json.loads(output)["asked"] == "rollback"
    code, output = stage.run(plan)
    assert code == 0, output
    assert stage.specs() == before
    assert stage.kept()["reason"] == "asked for by a test"


def test_sigterm_leaves_the_state_and_frees_the_lease(stage: Stage) -> None:
    before = simple(stage)
    plan = stage.plan()
    stage.hold(50)
    process = stage.start(plan)
    stage.wait_for("Gating", share=50)
    process.send_signal(signal.SIGTERM)
    code, output = stage.finish(process)
    assert code == 1, output
    assert "whoever is started next carries on" in output
    lease = stage.api.get("lease", f"headrace-replace-{stage.name}-old", "-n", stage.namespace)
    assert not lease["spec"].get("holderIdentity")
    stage.go_on()
    code, output = stage.run(plan)
    assert code == 0, output
    assert "carrying on: Gating, 50 %" in output
    assert stage.specs() == replaced(stage, before)


def test_a_second_run_is_refused_naming_the_holder(stage: Stage) -> None:
    simple(stage)
    plan = stage.plan()
    stage.hold(10)
    stage.start(plan, "--identity", "the-first", "--lease-duration", "600")
    stage.wait_for("Gating")
    code, output = stage.run(plan, "--identity", "the-second", "--lease-patience", "1")
    assert code == 5
    assert f"Lease headrace-replace-{stage.name}-old is held by the-first" in output
    code, output = stage.run(plan, "--action", "status")
    assert (code, json.loads(output)["holder"]) == (0, "the-first")


def test_somebody_elses_change_is_kept_and_ends_the_replacement(stage: Stage) -> None:
    before = many_routes(stage)
    stage.hold(10)
    process = stage.start(stage.plan())
    stage.wait_for("Gating", share=10)
    patch = [{"op": "add", "path": "/spec/rules/0/backendRefs/-", "value": service(9)}]
    done = stage.api.kubectl(
        "patch", "httproute", "route-3", "-n", stage.namespace, "--type=json", "-p", json.dumps(patch)
    )
    assert done.returncode == 0, done.stderr
    stage.go_on()
    code, output = stage.finish(process)
    assert code == 3, output
    assert f"HTTPRoute {stage.namespace}/route-3, rule 0: somebody else changed" in stage.kept()["reason"]
    before[f"{stage.namespace}/route-3"]["rules"][0]["backendRefs"].append(service(9))
    assert stage.specs() == before
    assert stage.owners("route-0") == ["kubectl"]
    assert stage.owners("route-3") == ["headrace-replace"], "an apply that knows nothing of it ends in a conflict"


def test_a_route_that_comes_later_is_taken_along(stage: Stage) -> None:
    simple(stage)
    stage.hold(10)
    process = stage.start(stage.plan())
    stage.wait_for("Gating", share=10)
    stage.route("late", rule(stage.pool_ref("old", 5), service(2)))
    stage.go_on()
    code, output = stage.finish(process)
    assert code == 0, output
    late = stage.specs()[f"{stage.namespace}/late"]["rules"][0]["backendRefs"]
    assert late == [stage.pool_ref("new", 5), service(2)]


def test_asked_to_roll_back_meanwhile_and_afterwards(stage: Stage) -> None:
    before = many_routes(stage)
    plan = stage.plan()
    stage.hold(10)
    process = stage.start(plan)
    stage.wait_for("Gating", share=10)
    assert stage.run(plan, "--action", "rollback")[0] == 0
    assert stage.finish(process)[0] == 0
    stage.go_on()
    assert stage.specs() == before
    assert stage.run(plan, run="two")[0] == 0
    assert stage.specs() == replaced(stage, before)
    assert stage.run(plan, "--action", "rollback")[0] == 0
    assert stage.run(plan, run="two")[0] == 0
    assert stage.specs() == before


def test_an_approval_is_waited_for(stage: Stage) -> None:
    before = simple(stage)
    plan = stage.plan(manual=[10])
    process = stage.start(plan)
    assert stage.run(plan, "--action", "approve")[0] == 4, "nothing waits for it yet"
    stage.wait_for("AwaitingApproval")
    # Traffic goes on, and another command has come and gone: nothing happens by itself.
    assert stage.run(plan, "--action", "status")[0] == 0
    assert stage.kept()["phase"] == "AwaitingApproval"
    assert stage.run(plan, "--action", "approve", "--by", "me")[0] == 0
    assert stage.finish(process)[0] == 0
    assert "approved by me" in [entry["message"] for entry in stage.kept()["log"]]
    assert stage.specs() == replaced(stage, before)


@pytest.mark.parametrize("how", ["cut", "hang"])
def test_an_api_server_that_is_away_is_waited_for(stage: Stage, tmp_path: Path, how: str) -> None:
    before = many_routes(stage)
    with Cut(stage.api, tmp_path) as line:
        stage.hold(10)
        process = stage.start(stage.plan(), kubeconfig=line.kubeconfig)
        stage.wait_for("Gating", share=10)
        with getattr(line, how)():
            stage.go_on()
            time.sleep(8)
        code, output = stage.finish(process)
    assert code == 0, output
    assert stage.specs() == replaced(stage, before)


@pytest.mark.parametrize("how", ["cut", "hang"])
@pytest.mark.parametrize("phase", ["Draining", "RollingBack"])
def test_an_api_server_that_is_away_on_the_way_out_is_waited_for(
    stage: Stage, tmp_path: Path, phase: str, how: str
) -> None:
    before = many_routes(stage)
    rolled_back = phase == "RollingBack"
    with Cut(stage.api, tmp_path) as line:
        stage.hold(50)
        process = stage.start(stage.plan(), kubeconfig=line.kubeconfig)
        stage.wait_for("Gating", share=50)
        stage.new.behaviour.errors = 1.0 if rolled_back else 0.0
        stage.go_on()
        deadline = time.monotonic() + HANG_SECONDS
        while stage.kept()["phase"] != phase:
            assert process.poll() is None and time.monotonic() < deadline, stage.kept()["phase"]
            time.sleep(0.01)
        with getattr(line, how)():
            time.sleep(8)
            assert process.poll() is None, "it waits"
        code, output = stage.finish(process)
    assert code == (3 if rolled_back else 0), output
    assert stage.kept()["phase"] == ("RolledBack" if rolled_back else "Completed")
    assert stage.specs() == (before if rolled_back else replaced(stage, before))


def test_what_was_asked_to_be_removed_is_gone(stage: Stage) -> None:
    simple(stage)
    name = f"{stage.name}-old"
    gone = [
        {"group": GA, "version": "v1", "plural": "inferencepools", "namespace": stage.namespace, "name": name},
        {"group": "", "version": "v1", "plural": "services", "namespace": stage.namespace, "name": f"{name}-epp"},
    ]
    code, output = stage.run(stage.plan(remove_old=gone))
    assert code == 0, output
    left = stage.api.get("inferencepools", "-n", stage.namespace)["items"]
    assert [pool["metadata"]["name"] for pool in left] == [f"{stage.name}-new"]
    code, _ = stage.run(stage.plan(), "--action", "rollback")
    assert stage.run(stage.plan())[0] == 0
    assert stage.kept()["phase"] == "Completed", "nothing to go back to"


def test_a_pool_is_migrated_to_the_other_api_group(stage: Stage) -> None:
    alpha = {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool",
        "metadata": {"name": f"{stage.name}-old", "namespace": stage.namespace},
        "spec": {
            "selector": {"app": f"{stage.name}-old-server"}, "targetPortNumber": stage.old.port,
            "extensionRef": {"name": f"{stage.name}-old-epp"},
        },
    }  # fmt: skip
    stage.api.apply(alpha)
    ref = {**stage.pool_ref("old"), "group": "inference.networking.x-k8s.io"}
    stage.route("one", rule(ref))
    old = {"group": "inference.networking.x-k8s.io", "namespace": stage.namespace, "name": f"{stage.name}-old"}
    new = {"group": GA, "namespace": stage.namespace, "name": f"{stage.name}-old"}
    code, output = stage.run(stage.plan(old=old, new=new, gates=[]))
    assert code == 0, output
    (spec,) = stage.specs().values()
    assert spec["rules"][0]["backendRefs"] == [stage.pool_ref("old")]


def test_the_plan_says_everything_and_changes_nothing(stage: Stage) -> None:
    many_routes(stage)
    versions = [item["metadata"]["resourceVersion"] for item in stage.api.get("httproutes", "-A")["items"]]
    stage.old.models.append("sql-lora")
    code, output = stage.run(stage.plan(), "--action", "plan")
    assert code == 0, output
    assert "models that only the old pool serves (rewrite them, or requests for them fail): sql-lora" in output
    shown = json.loads(output)
    text = "\n".join(shown["text"])
    assert f"HTTPRoute {stage.namespace}/mixed, rule 1" in text
    assert f" 10 %: {stage.name}-old=63, static=20, {stage.name}-new=7" in text
    assert "errors, ttft, tpot over 1.5 s and at least 20 requests" in text
    assert "Expected: about 34 s" in text
    assert versions == [item["metadata"]["resourceVersion"] for item in stage.api.get("httproutes", "-A")["items"]]
    assert not stage.kept()


def test_the_preflight_refuses_with_every_reason(stage: Stage) -> None:
    stage.route("one", rule(stage.pool_ref("old")), labels={"kustomize.toolkit.fluxcd.io/name": "apps"})
    stage.route("two", rule(stage.pool_ref("old", 1), service(999_999)))
    elsewhere = f"{stage.namespace}-elsewhere"
    stage.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": elsewhere}})
    stage.route("far", rule(stage.pool_ref("old", namespace=True)), namespace=elsewhere)
    stage.pod("new", ready=False)
    before = stage.specs()
    code, output = stage.run(stage.plan())
    assert code == 4
    for reason in (
        "has 0 ready endpoints, 1 are needed", "has no ready Pod", "is managed by Flux", "leave no room",
        "may not refer to",
    ):  # fmt: skip
        assert reason in output, reason
    assert stage.specs() == before
    assert stage.kept()["phase"] == "Refused"
    nowhere = {"namespace": stage.namespace, "name": "nowhere"}
    code, output = stage.run(stage.plan(new=nowhere), run="two")
    assert (code, "there is no new pool" in output) == (4, True)


def test_a_plan_that_makes_no_sense_is_refused_before_anything_is_asked(stage: Stage) -> None:
    code, output = stage.run(stage.plan(steps=[50, 20, 100]))
    assert code == 2
    assert "steps: [50, 20, 100]" in output
    assert "Traceback" not in output


def test_the_warm_up_asks_a_real_server_for_every_model(stage: Stage) -> None:
    simple(stage)
    port = free_port()
    command = [
        sys.executable, "-m", "headrace.cli.main", "simulate", "--model", "llama", "--port", str(port),
        "--host", "127.0.0.1", "--enable-lora", "--lora-modules", "sql=/x",
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        plan = stage.plan(warmup_requests=6, warmup_timeout=600, gateway_url=f"http://127.0.0.1:{port}")
        code, output = stage.run(plan)
    finally:
        server.kill()
        server.wait()
    assert code == 0, output
    assert any("answered 6 completions of llama, sql" in entry["message"] for entry in stage.kept()["log"])
    names = [item["metadata"]["name"] for item in stage.api.get("httproutes", "-n", stage.namespace)["items"]]
    assert names == ["one"], "the warm-up's route is gone"


def test_a_failed_warm_up_sends_nobody_to_the_new_pool(stage: Stage) -> None:
    before = simple(stage)
    url = f"http://127.0.0.1:{free_port()}"
    code, output = stage.run(stage.plan(warmup_requests=2, warmup_timeout=3, gateway_url=url))
    assert code == 3, output
    assert "never answered" in stage.kept()["reason"]
    assert stage.new.asked == 0
    assert stage.specs() == before


def test_a_report_is_written(stage: Stage, tmp_path: Path) -> None:
    simple(stage)
    assert stage.run(stage.plan())[0] == 0
    code, output = stage.run(stage.plan(), "--action", "report", "--output", str(tmp_path / "out"))
    assert code == 0, output
    page = (tmp_path / f"out/headrace-replace-{stage.name}-old.html").read_text()
    assert page.count("<svg") == 3, "shares, TTFT, time per output token: errors were 0 throughout"
    assert "http" not in page.replace("https://", "").replace("http://", ""), "nothing to fetch"
    found = json.loads((tmp_path / f"out/headrace-replace-{stage.name}-old.json").read_text())
    assert found["outcome"] == "Completed"
    assert f"pool: {stage.name}-new" in found["inventory"][0]

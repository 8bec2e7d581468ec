"""Adapters on every replica or on none: the module against the simulated server's own registry of models."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.simulator.adapters import Models
from headrace.simulator.openai import ApiError


class Replicas:
    """Model servers that answer as the simulator does, which answers as vLLM does."""

    def __init__(self, **adapters: dict[str, str]) -> None:
        self.servers = {pod: Models(model="base", served_names=(), adapters=found) for pod, found in adapters.items()}
        self.broken: set[tuple[str, str]] = set()
        # Adapters that load, and do not answer.
        self.mute: set[tuple[str, str]] = set()
        # Adapters that load after the time that their answer is waited for.
        self.slow: set[tuple[str, str]] = set()
        self.calls: list[tuple[str, str]] = []

    def call(self, pod: str, method: str, path: str, body: Any) -> tuple[int, Any]:
        server = self.servers[pod]
        if method == "GET":
            return 200, server.listing(0, 4096)
        self.calls.append((pod, path))
        name = body.get("lora_name", body.get("model"))
        if (pod, name) in self.broken and "unload" not in path:
            return 500, "out of memory"
        try:
            if path == "/v1/load_lora_adapter":
                said = server.load(body)
                return (0, "no answer within 1 s") if (pod, name) in self.slow else (200, said)
            if path == "/v1/unload_lora_adapter":
                return 200, server.unload(body)
            found = server.find(name).name
            return (500, "no such weights") if (pod, name) in self.mute else (200, {"model": found, "choices": ["x"]})
        except ApiError as error:
            return error.status, str(error)

    def state(self) -> dict[str, dict[str, str]]:
        return {
            pod: {one["id"]: one["root"] for one in server.listing(0, 1)["data"] if one["parent"]}
            for pod, server in self.servers.items()
        }


def present(name: str, source: str) -> dict[str, str]:
    return {"name": name, "source": source, "state": "present"}


def absent(name: str) -> dict[str, str]:
    return {"name": name, "state": "absent"}


def test_every_replica_gets_what_it_lacks(adapters: ModuleType) -> None:
    replicas = Replicas(a={"old": "/old"}, b={})
    wanted = [present("new", "/new"), absent("old")]
    actions = adapters.converge(replicas.call, ["a", "b"], wanted, False)
    assert [(one["pod"], one["action"], one["name"]) for one in actions] == [
        ("a", "load", "new"),
        ("a", "unload", "old"),
        ("b", "load", "new"),
    ]
    assert replicas.state() == {"a": {"new": "/new"}, "b": {"new": "/new"}}
    assert adapters.converge(replicas.call, ["a", "b"], wanted, False) == []


def test_check_mode_says_so_and_does_nothing(adapters: ModuleType) -> None:
    replicas = Replicas(a={})
    assert len(adapters.converge(replicas.call, ["a"], [present("new", "/new")], True)) == 1
    assert replicas.calls == []


def test_another_source_is_loaded_anew(adapters: ModuleType) -> None:
    replicas = Replicas(a={"sql": "/v1"})
    adapters.converge(replicas.call, ["a"], [present("sql", "/v2")], False)
    assert replicas.state() == {"a": {"sql": "/v2"}}


def test_an_adapter_of_nobody_here_stays(adapters: ModuleType) -> None:
    replicas = Replicas(a={"theirs": "/t"})
    adapters.converge(replicas.call, ["a"], [present("ours", "/o")], False)
    assert replicas.state() == {"a": {"theirs": "/t", "ours": "/o"}}


def test_where_one_replica_refuses_all_is_undone(adapters: ModuleType) -> None:
    replicas = Replicas(a={"old": "/old", "sql": "/v1"}, b={"old": "/old", "sql": "/v1"})
    before = replicas.state()
    replicas.broken.add(("b", "new"))
    wanted = [absent("old"), present("sql", "/v2"), present("new", "/new")]
    with pytest.raises(adapters.Failed, match="Pod b does not load adapter new: status 500: out of memory"):
        adapters.converge(replicas.call, ["a", "b"], wanted, False)
    assert replicas.state() == before


def test_where_one_does_not_answer_all_is_undone(adapters: ModuleType) -> None:
    replicas = Replicas(a={"old": "/old", "sql": "/v1"}, b={"old": "/old", "sql": "/v1"})
    before = replicas.state()
    replicas.mute.add(("b", "new"))
    wanted = [absent("old"), present("sql", "/v2"), present("new", "/new")]
    with pytest.raises(adapters.Failed) as caught:
        adapters.converge(replicas.call, ["a", "b"], wanted, False, ["sql", "new"])
    assert "Pod b does not answer for adapter new: status 500: no such weights" in str(caught.value)
    assert "8 changes of this run were undone." in str(caught.value)
    assert replicas.state() == before


def test_what_was_there_before_stays_where_it_does_not_answer(adapters: ModuleType) -> None:
    replicas = Replicas(a={"sql": "/v1"})
    replicas.mute.add(("a", "sql"))
    with pytest.raises(adapters.Failed, match=r"status 500: no such weights$"):
        adapters.converge(replicas.call, ["a"], [present("sql", "/v1")], False, ["sql"])
    assert replicas.state() == {"a": {"sql": "/v1"}}


def test_check_mode_asks_no_adapter_for_an_answer(adapters: ModuleType) -> None:
    replicas = Replicas(a={})
    assert len(adapters.converge(replicas.call, ["a"], [present("new", "/new")], True, ["new"])) == 1
    assert replicas.calls == []


def test_a_load_that_ended_unheard_is_undone_as_well(adapters: ModuleType) -> None:
    replicas = Replicas(a={}, b={})
    replicas.slow.add(("b", "new"))
    with pytest.raises(adapters.Failed, match="status 0: no answer within 1 s 1 changes of this run were undone"):
        adapters.converge(replicas.call, ["a", "b"], [present("new", "/new")], False)
    assert replicas.state() == {"a": {}, "b": {}}


def test_a_server_that_breaks_off_is_no_end_of_the_run(adapters: ModuleType) -> None:
    class Client:
        def request(self, *arguments: Any, **more: Any) -> None:
            raise adapters.urllib3.exceptions.ReadTimeoutError(None, "/", "read timed out")

    cluster = adapters.Cluster.__new__(adapters.Cluster)
    cluster.client, cluster.namespace, cluster.port, cluster.timeout = Client(), "n", 8000, 7
    status, said = cluster.call("a", "POST", "/v1/load_lora_adapter", {})
    assert (status, said) == (0, "no answer within 7 s: None: read timed out")


def test_what_cannot_be_undone_is_told(adapters: ModuleType) -> None:
    replicas = Replicas(a={"old": "/old"}, b={})
    replicas.broken |= {("b", "new"), ("a", "old")}
    with pytest.raises(adapters.Failed, match="Not all could be undone: Pod a does not load adapter old"):
        adapters.converge(replicas.call, ["a", "b"], [absent("old"), present("new", "/n")], False)


def test_somebody_else_who_was_quicker_is_no_error(adapters: ModuleType) -> None:
    replicas = Replicas(a={"sql": "/s"})
    adapters.act(replicas.call, {"pod": "a", "action": "load", "name": "sql", "source": "/s"})
    adapters.act(replicas.call, {"pod": "a", "action": "unload", "name": "gone"})
    with pytest.raises(adapters.Failed, match="status 400"):
        adapters.act(replicas.call, {"pod": "a", "action": "load", "name": "base", "source": "/s"})


def test_a_server_without_the_api_is_told_with_the_fix(adapters: ModuleType) -> None:
    def call(pod: str, method: str, path: str, body: Any) -> tuple[int, Any]:
        return (200, {"data": []}) if method == "GET" else (404, {"detail": "Not Found"})

    with pytest.raises(adapters.Failed, match="runtime_lora_updating true"):
        adapters.converge(call, ["a"], [present("x", "/x")], False)


@pytest.mark.parametrize("listing", [None, [], {"data": 3}, {"data": [{}], "x": 1}, {"models": []}, "text"])
def test_what_is_no_list_of_models_is_said(adapters: ModuleType, listing: Any) -> None:
    if listing == {"data": [{}], "x": 1}:
        assert adapters.loaded(listing) == {}
        return
    with pytest.raises(adapters.Failed, match="no list of models"):
        adapters.loaded(listing)


def test_a_probe_wants_an_answer_of_the_adapter_from_each(adapters: ModuleType) -> None:
    replicas = Replicas(a={"sql": "/s"}, b={"sql": "/s"})
    adapters.probe(replicas.call, ["a", "b"], ["sql"])
    replicas.broken.add(("b", "sql"))
    with pytest.raises(adapters.Failed, match="Pod b does not answer for adapter sql"):
        adapters.probe(replicas.call, ["a", "b"], ["sql"])
    with pytest.raises(adapters.Failed, match="status 404"):
        adapters.probe(replicas.call, ["a"], ["none"])


def test_pods_that_end_or_are_not_ready_do_not_serve(adapters: ModuleType) -> None:
    ready = {"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert adapters.serves(ready)
    assert not adapters.serves({**ready, "metadata": {"deletionTimestamp": "now"}})
    assert not adapters.serves({"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    assert not adapters.serves({"metadata": {}, "status": {}})


@pytest.mark.parametrize("label", ["inference.networking.k8s.io/engine-type", "llm-d.ai/engine-type"])
def test_servers_with_another_api_are_refused_by_name(adapters: ModuleType, label: str) -> None:
    adapters.refuse_other_engines([{"metadata": {"name": "a"}}, {"metadata": {"name": "b", "labels": {label: "vllm"}}}])
    with pytest.raises(adapters.Failed, match=r"Pod c runs engine sglang.*Fix: name them in adapters"):
        adapters.refuse_other_engines([{"metadata": {"name": "c", "labels": {label: "sglang"}}}])


NAMES = st.sampled_from(["a", "b", "c"])
HELD = st.dictionaries(NAMES, st.sampled_from(["/1", "/2"]))
WANTED = st.dictionaries(NAMES, st.sampled_from(["/1", "/2", ""]))


SOME = st.sets(st.tuples(st.sampled_from(["p", "q"]), NAMES))


@given(first=HELD, second=HELD, wanted=WANTED, broken=SOME, mute=SOME)
def test_all_or_nothing(
    adapters: ModuleType,
    first: dict[str, str],
    second: dict[str, str],
    wanted: dict[str, str],
    broken: set[tuple[str, str]],
    mute: set[tuple[str, str]],
) -> None:
    """Whatever replicas hold, whichever refuse or say nothing: in the end all are as wanted, or the run has failed."""
    replicas = Replicas(p=first, q=second)
    before = replicas.state()
    replicas.broken, replicas.mute = broken, mute
    items = [present(name, source) if source else absent(name) for name, source in wanted.items()]
    try:
        adapters.converge(replicas.call, ["p", "q"], items, False, [name for name, source in wanted.items() if source])
    except adapters.Failed as error:
        assert replicas.state() == before or "Not all could be undone" in str(error)
    else:
        for held in replicas.state().values():
            for name, source in wanted.items():
                assert held.get(name, "") == source

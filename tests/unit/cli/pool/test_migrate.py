"""v1alpha2 manifests as v1: nothing is lost in silence, and what comes out is valid."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli import main as cli
from headrace.cli.pool.lint import lint
from headrace.cli.pool.manifests import read_text
from headrace.cli.pool.migrate import CannotMigrate, migrate
from headrace.config.pools import parse_pool

from .test_lint import GA, NEW, OLD, SERVICE, X, changed, objective, route


def migrated(*objects: Any) -> tuple[list[Any], list[str]]:
    text = yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True)
    result = migrate(read_text(text, "f"))
    return list(yaml.safe_load_all(result.text)), [note.partition(": ")[2] for note in result.notes]


def test_a_pool() -> None:
    (made,), notes = migrated(OLD)
    assert made == NEW
    assert notes == []


def test_the_pages_example_gets_its_port(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = str(repository / "tests/data/page-example.yaml")
    assert cli.main(["pool", "migrate", page]) == 0
    out = capsys.readouterr()
    made = yaml.safe_load(out.out)
    assert made["spec"]["endpointPickerRef"] == {
        "name": "vllm-llama3-8b-instruct-epp",
        "port": {"number": 9002},
        "failureMode": "FailClose",
    }
    assert lint(read_text(out.out, "f")) == []


def test_without_a_port_v1_gets_the_one_that_was_meant() -> None:
    (made,), notes = migrated(changed(OLD, "spec.extensionRef", {"name": "epp"}))
    assert made["spec"]["endpointPickerRef"] == {"name": "epp", "port": {"number": 9002}}
    assert notes == ["InferencePool pool: spec.endpointPickerRef.port.number: 9002 put in, which v1 requires"]


def test_a_picker_that_is_no_service_needs_no_port() -> None:
    (made,), notes = migrated(changed(OLD, "spec.extensionRef", {"name": "epp", "kind": "Picker", "group": "x"}))
    assert made["spec"]["endpointPickerRef"] == {"group": "x", "kind": "Picker", "name": "epp"}
    assert notes == []


def test_what_nobody_knows_is_carried_over_and_named() -> None:
    pool = copy.deepcopy(OLD)
    pool["spec"]["surprise"] = {"a": [1]}
    pool["spec"]["extensionRef"]["note"] = "x"
    pool["extra"] = 1
    (made,), notes = migrated(pool)
    assert made["spec"]["surprise"] == {"a": [1]}
    assert made["spec"]["endpointPickerRef"]["note"] == "x"
    assert made["extra"] == 1
    said = "carried over as it is; neither API version has such a field"
    assert notes == [
        f"InferencePool pool: spec.endpointPickerRef.note: {said}",
        f"InferencePool pool: spec.surprise: {said}",
        f"InferencePool pool: extra: {said}",
    ]


def test_what_a_server_wrote_stays_behind() -> None:
    pool = copy.deepcopy(OLD)
    pool["metadata"] |= {
        "uid": "u",
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"a": "b"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "1"},
        "finalizers": ["x/y"],
    }
    pool["status"] = {"parent": []}
    (made,), notes = migrated(pool)
    assert made["metadata"] == {
        "name": "pool",
        "labels": {"a": "b"},
        "annotations": {"mine": "1"},
        "finalizers": ["x/y"],
    }
    assert "status" not in made
    assert len(notes) == 2


def test_references_follow_pools_of_the_same_files() -> None:
    made, notes = migrated(OLD, route(group=X, kind="InferencePool", weight=90), objective(X), objective(None))
    assert made[1]["spec"]["rules"][0]["backendRefs"] == [
        {"name": "pool", "group": GA, "kind": "InferencePool", "weight": 90}
    ]
    assert made[2]["spec"]["poolRef"] == {"name": "pool", "group": GA}
    assert made[3] == objective(None)
    assert notes == []
    assert lint(read_text(yaml.safe_dump_all(made), "f")) == []


def test_references_to_other_pools_stay_and_are_named() -> None:
    other = changed(OLD, "metadata", {"name": "pool", "namespace": "elsewhere"})
    made, notes = migrated(other, route(group=X, kind="InferencePool"), objective(X))
    assert made[1:] == [route(group=X, kind="InferencePool"), objective(X)]
    assert len(notes) == 2
    assert all("not in these files" in note for note in notes)


def test_other_documents_come_out_byte_for_byte() -> None:
    text = f"# of the service\n---\n# kept\nkind:   Service # odd\n---\n{yaml.safe_dump(OLD)}---\nkind: 'Secret'\n"
    result = migrate(read_text(text, "f"))
    assert result.pools == 1
    assert "# kept\nkind:   Service # odd\n" in result.text
    assert result.text.endswith("---\nkind: 'Secret'\n")


def test_pools_in_a_list() -> None:
    (made,), _ = migrated({"apiVersion": "v1", "kind": "List", "items": [SERVICE, OLD]})
    assert made["items"] == [SERVICE, NEW]


def test_a_pool_that_is_not_valid_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotMigrate, match=r"^f:1: InferencePool pool: spec\.targetPortNumber: 0"):
        migrated(changed(OLD, "spec.targetPortNumber", 0))
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(changed(OLD, "spec.targetPortNumber", 0)))
    assert cli.main(["pool", "migrate", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "spec.targetPortNumber" in captured.err


def test_nothing_to_migrate_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(yaml.safe_dump(NEW))
    assert cli.main(["pool", "migrate", str(path)]) == 1
    captured = capsys.readouterr()
    assert yaml.safe_load(captured.out) == NEW
    assert "no InferencePool of" in captured.err


NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
PORTS = st.integers(1, 65535)


@given(
    name=NAMES,
    labels=st.dictionaries(NAMES, NAMES, min_size=1, max_size=4),
    port=PORTS,
    picker_port=st.none() | PORTS,
    field=st.sampled_from(["port", "portNumber"]),
    mode=st.none() | st.sampled_from(["FailOpen", "FailClose"]),
)
def test_the_new_pool_means_what_the_old_one_meant(
    name: str, labels: dict[str, str], port: int, picker_port: int | None, field: str, mode: str | None
) -> None:
    reference: dict[str, Any] = {"name": name}
    if picker_port is not None:
        reference[field] = picker_port
    if mode is not None:
        reference["failureMode"] = mode
    pool = {
        "apiVersion": f"{X}/v1alpha2",
        "kind": "InferencePool",
        "metadata": {"name": name},
        "spec": {"selector": labels, "targetPortNumber": port, "extensionRef": reference},
    }
    (made,), _ = migrated(pool)
    old, new = parse_pool(pool), parse_pool(made)
    assert (new.group, old.group) == (GA, X)
    assert (new.name, new.namespace, new.selector, new.target_ports, new.picker, new.app_protocol) == (
        old.name,
        old.namespace,
        old.selector,
        old.target_ports,
        old.picker,
        old.app_protocol,
    )

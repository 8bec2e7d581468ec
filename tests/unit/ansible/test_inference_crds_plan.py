"""Which CRDs role inference_crds installs, by what the cluster has."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GATEWAY_API = "gateway.networking.k8s.io"
INFERENCE = "inference.networking.k8s.io"
POLICY = "safe-upgrades.gateway.networking.k8s.io"


def crd(name: str, version: str = "", channel: str = "", served: str = "v1") -> dict[str, Any]:
    """A CRD; its group says whose annotations it has. `served`: versions, comma separated."""
    group = name.partition(".")[2]
    bundle = GATEWAY_API if group.startswith("gateway.") else INFERENCE
    said = {f"{bundle}/bundle-version": version, f"{bundle}/channel": channel}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "annotations": {key: value for key, value in said.items() if value}},
        "spec": {"group": group, "versions": [{"name": one, "served": True} for one in served.split(",") if one]},
    }


def gateway_api(version: str, channel: str = "standard", grants: str = "v1,v1beta1") -> list[dict[str, Any]]:
    """The CRDs of a release, and its policy."""
    names = ("gatewayclasses", "gateways", "httproutes", "backendtlspolicies")
    said = {f"{GATEWAY_API}/bundle-version": version, f"{GATEWAY_API}/channel": "standard"}
    return [
        *(crd(f"{name}.{GATEWAY_API}", version, channel) for name in names),
        crd(f"referencegrants.{GATEWAY_API}", version, channel, grants),
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": POLICY, "annotations": said},
        },
    ]


def decide(crds_plan: ModuleType, wanted: list[dict[str, Any]], there: list[dict[str, Any]]) -> Any:
    source = crds_plan.Source("inference_crds_gateway_api_source", "a.yaml", "/srv/a.yaml", tuple(wanted))
    return crds_plan.decide([source], there)


WHOLE = [{"label": "a.yaml", "src": "/srv/a.yaml"}]


@pytest.mark.parametrize(
    ("there", "wanted", "installed"),
    [
        (("", ""), ("v1.6.1", "standard"), True),
        (("v1.5.1", "standard"), ("v1.6.1", "standard"), True),
        (("v1.6.1", "standard"), ("v1.6.1", "standard"), True),
        (("v1.6.1", "experimental"), ("v1.6.1", "experimental"), True),
        (("v1.9.2", "standard"), ("v1.10.0", "standard"), True),
        (("v1.7.0-rc.2", "standard"), ("v1.7.0-rc.10", "standard"), True),
        (("v1.7.0-rc.2", "standard"), ("v1.7.0", "standard"), True),
        (("v1.7.0", "standard"), ("v1.6.1", "standard"), False),
        (("v1.10.0", "standard"), ("v1.9.2", "standard"), False),
        (("v1.7.0", "standard"), ("v1.7.0-rc.2", "standard"), False),
        (("v1.6.1", "standard"), ("v1.6.1", "experimental"), False),
        (("v1.5.1", "experimental"), ("v1.6.1", "standard"), False),
        # A build of a branch: nobody can say whether it is older.
        (("v0.0.0-dev", "standard"), ("v1.6.1", "standard"), False),
        (("v0.0.0-dev", "standard"), ("v0.0.0-dev", "standard"), True),
        (("something", "standard"), ("v1.6.1", "standard"), False),
        (("v1." + "9" * 5000 + ".0", "standard"), ("v1.6.1", "standard"), False),
    ],
)
def test_the_gateway_api_is_installed_where_it_is_not_older(
    crds_plan: ModuleType, there: tuple[str, str], wanted: tuple[str, str], installed: bool
) -> None:
    plan = decide(crds_plan, gateway_api(*wanted), gateway_api(*there) if there[0] else [])
    assert plan.install == (WHOLE if installed else [])
    assert plan.problems == []
    assert len(plan.lines) == 1
    assert wanted[0] in plan.lines[0]


def test_crds_that_name_no_release_are_written_over(crds_plan: ModuleType) -> None:
    assert decide(crds_plan, gateway_api("v1.6.1"), gateway_api("", "")).install == WHOLE


def test_what_else_a_file_has_is_installed(crds_plan: ModuleType) -> None:
    other = crd("envoyproxies.gateway.envoyproxy.io")
    plan = decide(crds_plan, [*gateway_api("v1.6.1"), other], gateway_api("v1.7.0"))
    assert plan.install == [{"label": "a.yaml", "definition": [other]}]


def test_one_newer_crd_keeps_the_whole_bundle_and_what_is_missing_is_told(crds_plan: ModuleType) -> None:
    plan = decide(crds_plan, gateway_api("v1.6.1"), gateway_api("v1.7.0")[:1])
    assert plan.install == []
    assert len(plan.problems) == 4
    assert all(one.startswith("inference_crds_gateway_api_source: a.yaml ") and "Fix: " in one for one in plan.problems)


@pytest.mark.parametrize("version", ["v1.5.0", "v1.7.0", "v0.0.0-dev"])
def test_crds_that_the_source_does_not_have_keep_nothing(crds_plan: ModuleType, version: str) -> None:
    left_over = crd(f"tcproutes.{GATEWAY_API}", version, "experimental")
    plan = decide(crds_plan, gateway_api("v1.6.1"), [*gateway_api("v1.5.0"), left_over])
    assert plan.install == WHOLE
    assert plan.problems == []
    # Where the source has that CRD too, it counts.
    wanted = [*gateway_api("v1.6.1", "experimental"), crd(f"tcproutes.{GATEWAY_API}", "v1.6.1", "experimental")]
    plan = decide(crds_plan, wanted, [*gateway_api("v1.5.0", "experimental"), left_over])
    assert plan.install == (WHOLE if version == "v1.5.0" else [])


def objects_of(plan: Any, sources: list[Any]) -> list[tuple[str, str]]:
    """Source and annotation of the version of all objects that a plan installs, in that order."""
    whole = {source.path: source.documents for source in sources}
    return [
        (entry["label"], version)
        for entry in plan.install
        for one in entry.get("definition") or whole[entry["src"]]
        for version in [one["metadata"]["annotations"].get(f"{GATEWAY_API}/bundle-version", "")]
    ]


@pytest.mark.parametrize(
    ("first", "second", "installed"),
    [
        (("v1.6.1", "standard"), ("v1.5.0", "standard"), ["first"]),
        (("v1.6.1", "standard"), ("v1.6.1", "experimental"), ["first"]),
        (("v1.5.0", "standard"), ("v1.6.1", "standard"), ["first", "second"]),
        (("v1.6.1", "standard"), ("v1.6.1", "standard"), ["first", "second"]),
    ],
)
def test_what_earlier_sources_install_counts_for_later_ones(
    crds_plan: ModuleType, first: tuple[str, str], second: tuple[str, str], installed: list[str]
) -> None:
    other = crd("envoyproxies.gateway.envoyproxy.io")
    sources = [
        crds_plan.Source("inference_crds_gateway_api_source", "first", "/srv/first", tuple(gateway_api(*first))),
        crds_plan.Source("inference_crds_envoy_gateway_source", "all", "/srv/second", (*gateway_api(*second), other)),
    ]
    plan = crds_plan.decide(sources, [])
    versions = {"first": first[0], "second": second[0]}
    wanted = [(name, versions[name]) for name in installed for _ in gateway_api(*first)]
    assert objects_of(plan, sources) == [*wanted, ("second", "")]
    assert plan.problems == []
    # What the first installs is there the second time: nothing else is done.
    there = [*gateway_api(*(first if installed == ["first"] else second)), other]
    again = objects_of(crds_plan.decide(sources, there), sources)
    assert set(again) == {
        ("second", ""),
        *((name, versions[name]) for name in installed[-1 if first < second else 0 :]),
    }


def test_what_stays_for_one_source_is_installed_by_another(crds_plan: ModuleType) -> None:
    sources = [
        crds_plan.Source(f"inference_crds_{name}", name, f"/srv/{name}", tuple(gateway_api(version)))
        for name, version in (("gateway_api_source", "v1.5.0"), ("envoy_gateway_source", "v1.6.1"))
    ]
    plan = crds_plan.decide(sources, gateway_api("v1.6.0"))
    assert plan.install == [{"label": "envoy_gateway_source", "src": "/srv/envoy_gateway_source"}]


def test_a_policy_without_crds_counts(crds_plan: ModuleType) -> None:
    plan = decide(crds_plan, gateway_api("v1.6.1"), gateway_api("v1.7.0")[-1:])
    assert plan.install == []
    assert len(plan.problems) == 5


def test_a_version_that_is_not_served_is_named(crds_plan: ModuleType) -> None:
    [problem] = decide(crds_plan, gateway_api("v1.6.1"), gateway_api("v1.7.0", grants="v1")).problems
    assert f"referencegrants.{GATEWAY_API} with version v1beta1, and it serves v1." in problem


def test_inference_crds_are_looked_at_one_by_one(crds_plan: ModuleType) -> None:
    objectives = "inferenceobjectives.inference.networking.x-k8s.io"
    pool, pools = f"inferencepools.{INFERENCE}", crd(f"inferencepools.{INFERENCE}", "v1.6.0")
    wanted = [pools, crd(objectives, served="v1alpha2")]

    def installed(there: list[dict[str, Any]]) -> list[str]:
        source = crds_plan.Source("inference_crds_dir", "/srv", "/srv/a.yaml", tuple(wanted))
        plan = crds_plan.decide([source], there)
        assert plan.problems == []
        if plan.install == WHOLE:
            return [one["metadata"]["name"] for one in wanted]
        return [one["metadata"]["name"] for entry in plan.install for one in entry["definition"]]

    assert installed([]) == [pool, objectives]
    assert installed([crd(pool, "v1.6.0")]) == [pool, objectives]
    assert installed([crd(pool, "v1.5.0"), crd(objectives, served="v1alpha2")]) == [pool, objectives]
    assert installed([crd(pool, "v1.7.0")]) == [objectives]
    # One that names no version is of the release that its source is of.
    assert installed([crd(objectives, "v1.7.0", served="v1alpha2,v1beta1")]) == [pool]
    assert installed([crd(objectives, "v1.7.0", served="v1alpha2"), crd(pool, "v2.0.0", served="v1,v2")]) == []


def test_a_newer_inference_crd_that_no_longer_serves_a_version_is_refused(crds_plan: ModuleType) -> None:
    name = f"inferencepools.{INFERENCE}"
    source = crds_plan.Source("inference_crds_dir", "/srv", "/srv/a.yaml", (crd(name, "v1.6.0"),))
    [problem] = crds_plan.decide([source], [crd(name, "v2.0.0", served="v2")]).problems
    assert "with version v1, and it serves v2." in problem


def test_own_crds_are_of_a_release_that_can_be_compared(crds_plan: ModuleType, repository: Path) -> None:
    paths = crds_plan.files("inference_crds_dir", str(repository / "crds"))
    sources = [crds_plan.read("inference_crds_dir", "crds", path) for path in paths]
    found = [document for source in sources for document in source.documents]
    plan = crds_plan.decide(sources, found)
    assert [entry["src"] for entry in plan.install] == paths
    assert len(plan.lines) == len(found) == 4


@pytest.mark.parametrize(
    "content",
    ["[1, 2]", "kind: CustomResourceDefinition", "a: [", "text", "metadata: {name: a}", "a: &a [*a]", b"\xff\xfe\xff"],
)
def test_a_source_that_cannot_be_read_is_refused_by_its_variable(
    crds_plan: ModuleType, tmp_path: Path, content: str | bytes
) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(crds_plan.InvalidSource, match=r"inference_crds_dir names .*a\.yaml.*Fix: "):
        crds_plan.read("inference_crds_dir", str(tmp_path), str(file))


def without(document: dict[str, Any], *path: str | int) -> dict[str, Any]:
    document = copy.deepcopy(document)
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return document


def replaced(document: dict[str, Any], value: Any, *path: str | int) -> dict[str, Any]:
    document = copy.deepcopy(document)
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


POOLS = crd(f"inferencepools.{INFERENCE}", "v1.6.0")
MALFORMED = [
    ("metadata", replaced(POOLS, [1], "metadata")),
    ("metadata", without(POOLS, "metadata")),
    ("metadata.name", replaced(POOLS, 1, "metadata", "name")),
    ("metadata.name", replaced(POOLS, "", "metadata", "name")),
    ("metadata.annotations", replaced(POOLS, [1], "metadata", "annotations")),
    ("kind", replaced(POOLS, [1], "kind")),
    ("spec", without(POOLS, "spec")),
    ("spec.group", without(POOLS, "spec", "group")),
    ("spec.versions", replaced(POOLS, {"v1": 1}, "spec", "versions")),
    ("spec.versions[0]", replaced(POOLS, ["v1"], "spec", "versions")),
    ("spec.versions[0].name", without(POOLS, "spec", "versions", 0, "name")),
]


@pytest.mark.parametrize(("field", "document"), MALFORMED)
def test_a_malformed_object_is_refused_by_its_field(
    crds_plan: ModuleType, tmp_path: Path, field: str, document: dict[str, Any]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps(document))
    with pytest.raises(crds_plan.InvalidSource) as of_source:
        crds_plan.plan({"inference_crds_dir": str(file)}, [])
    with pytest.raises(crds_plan.InvalidSource) as of_cluster:
        crds_plan.plan({}, [POOLS, document])
    assert str(of_source.value).startswith(f"inference_crds_dir names {file}, ")
    assert str(of_cluster.value).startswith("found[1]: ")
    for error in (of_source, of_cluster):
        assert f" {field} is " in str(error.value)
        assert " Fix: " in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["https://localhost/a b.yaml", "https://localhost:x/a.yaml", "http://[::1/a.yaml", "http://127.0.0.1:0/a.yaml"],
)
def test_a_url_that_is_none_is_refused_by_its_variable(crds_plan: ModuleType, url: str) -> None:
    with pytest.raises(crds_plan.InvalidSource) as error:
        crds_plan.plan({"inference_crds_dir": url}, [])
    assert str(error.value).startswith(f"inference_crds_dir names {url}, ")


@pytest.mark.parametrize("source", ["a\0b", "a" * 5000, "/dev/null/a"])
def test_a_path_that_is_none_is_refused_by_its_variable(crds_plan: ModuleType, source: str) -> None:
    with pytest.raises(crds_plan.InvalidSource, match=r"(?s)inference_crds_dir names .*Fix: "):
        crds_plan.plan({"inference_crds_dir": source}, [])


@pytest.mark.parametrize("value", ["!!int ''", "!!bool text", "!!timestamp text", "!!timestamp 2026-99-99", "{[a]: b}"])
def test_a_value_that_is_not_of_its_tag_is_refused(crds_plan: ModuleType, tmp_path: Path, value: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"kind: Namespace\nmetadata: {{name: a, more: {value}}}\n")
    with pytest.raises(crds_plan.InvalidSource):
        crds_plan.plan({"inference_crds_dir": str(file)}, [])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = st.sampled_from([
    "kind", "apiVersion", "metadata", "annotations", "name", "spec", "group", "versions", "served", "items",
    f"{GATEWAY_API}/bundle-version", f"{GATEWAY_API}/channel", f"{INFERENCE}/bundle-version",
])  # fmt: skip
TEXTS = st.sampled_from([
    "CustomResourceDefinition", "List", "v1.6.1", "v1.6.1-rc.1", "v0.0.0-dev", GATEWAY_API, INFERENCE, "experimental",
])  # fmt: skip
ANY = st.recursive(
    SCALARS | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner)
)


PLACES: list[tuple[str | int, ...]] = [
    ("kind",), ("metadata",), ("metadata", "name"), ("metadata", "annotations"),
    ("metadata", "annotations", f"{INFERENCE}/bundle-version"), ("metadata", "annotations", f"{GATEWAY_API}/channel"),
    ("spec",), ("spec", "group"), ("spec", "versions"), ("spec", "versions", 0), ("spec", "versions", 0, "served"),
]  # fmt: skip
NEARLY = st.builds(
    lambda crd, place, value: replaced(crd, value, *place),
    st.sampled_from([POOLS, *gateway_api("v1.6.1")[:5]]),
    st.sampled_from(PLACES),
    ANY,
)
DOCUMENTS = st.lists(ANY | NEARLY | NEARLY.map(lambda one: {"kind": "List", "items": [one]}), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(wanted=DOCUMENTS, other=DOCUMENTS, found=DOCUMENTS)
def test_whatever_the_documents_are_there_is_a_plan_or_a_refusal(
    crds_plan: ModuleType, tmp_path: Path, wanted: list[Any], other: list[Any], found: list[Any]
) -> None:
    sources = {"inference_crds_dir": wanted, "inference_crds_gateway_api_source": other}
    given_sources = {}
    for variable, documents in sources.items():
        path = tmp_path / f"{variable}.yaml"
        path.write_text("".join(f"---\n{json.dumps(one)}\n" for one in documents))
        given_sources[variable] = str(path)
    try:
        plan = crds_plan.plan(given_sources, found)
    except crds_plan.InvalidSource as error:
        assert " Fix: " in str(error)
        return
    assert all(set(entry) in ({"label", "src"}, {"label", "definition"}) for entry in plan.install)
    json.dumps(plan.install)


def test_the_items_of_lists_are_objects_of_their_own(crds_plan: ModuleType, tmp_path: Path) -> None:
    first, second, third = gateway_api("v1.6.1")[:3]
    inner = {"apiVersion": "v1", "kind": "List", "items": [second]}
    bare = {key: third[key] for key in ("metadata", "spec")}
    typed = {"apiVersion": third["apiVersion"], "kind": "CustomResourceDefinitionList", "items": [bare]}
    none = {"apiVersion": "v1", "kind": "List", "items": None}
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump_all([{"apiVersion": "v1", "kind": "List", "items": [first, inner]}, typed, none]))
    source = crds_plan.read("v", str(file), str(file))
    assert list(source.documents) == [first, second, third]
    plan = crds_plan.decide([source], [])
    assert plan.install == [{"label": "a.yaml", "definition": [first, second, third]}]
    assert crds_plan.decide([source], gateway_api("v1.7.0")).install == []


DOUBLING = "".join(f"- &a{number} {{kind: List, items: [*a{number - 1}, *a{number - 1}]}}\n" for number in range(1, 60))


@pytest.mark.parametrize(
    "content",
    [
        "&a {kind: List, items: [*a]}",
        f"kind: List\nitems:\n- &a0 {{kind: ConfigMap, metadata: {{name: a}}}}\n{DOUBLING}",
        f"- &a0 {{kind: ConfigMap, metadata: {{name: a}}}}\n{DOUBLING}",
    ],
    ids=["itself", "doubling", "doubling in what is no object"],
)
def test_lists_that_grow_without_end_are_refused(crds_plan: ModuleType, tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    with pytest.raises(crds_plan.InvalidSource, match=r"a\.yaml"):
        crds_plan.read("v", str(file), str(file))


def test_a_source_is_bounded(crds_plan: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump_all(gateway_api("v1.6.1")))
    crds_plan.read("v", str(file), str(file))
    monkeypatch.setattr(crds_plan, "MOST_BYTES", file.stat().st_size - 1)
    with pytest.raises(crds_plan.InvalidSource):
        crds_plan.read("v", str(file), str(file))


def test_files_of_a_folder_a_file_and_a_url(crds_plan: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    wanted = [tmp_path / "a.yaml", tmp_path / "b" / "c.yml"]
    for path in (*wanted, tmp_path / "readme.md"):
        path.write_text("{}")
    assert crds_plan.files("v", str(tmp_path)) == [str(path) for path in wanted]
    assert crds_plan.files("v", str(wanted[0])) == [str(wanted[0])]
    assert crds_plan.files("v", "https://example.com/a.yaml") == ["https://example.com/a.yaml"]
    for nothing in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(crds_plan.InvalidSource, match="Fix: set v to"):
            crds_plan.files("v", str(nothing))


def test_a_source_that_is_nowhere_is_named(crds_plan: ModuleType) -> None:
    with pytest.raises(crds_plan.InvalidSource, match=r"inference_crds_gateway_api_source names /no/where.*Fix: "):
        crds_plan.files("inference_crds_gateway_api_source", "/no/where")

"""Routes through a whole replacement: only what has to change changes, and foreign changes are seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from msgspec import structs

from headrace.replace.ownership import FIELD_MANAGER, Owner, gitops_owner
from headrace.replace.plan import InvalidPlan, ObjectRef, Plan, PoolRef, parse_plan
from headrace.replace.routes import (
    Foreign,
    final_patch,
    give_back,
    granted,
    hold,
    record,
    records,
    restore_patch,
    shift_patch,
    unsplittable,
)

from .patching import TestFailed, patched

GA = "inference.networking.k8s.io"
PLAN = Plan(old=PoolRef(GA, "serving", "old"), new=PoolRef(GA, "serving", "new"))


def pool(name: str, weight: int = 1, **more: Any) -> dict[str, Any]:
    return {"group": GA, "kind": "InferencePool", "name": name, "weight": weight, **more}


def rule(*refs: dict[str, Any], path: str = "/", **more: Any) -> dict[str, Any]:
    return {"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": list(refs), **more}


def route(*rules: dict[str, Any], name: str = "route", namespace: str = "serving", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", **metadata},
        "spec": {"parentRefs": [{"name": "gateway"}], "hostnames": ["a.example"], "rules": list(rules)},
    }


def grpc(*refs: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    method = {"method": {"service": "inference.GRPCInferenceService"}}
    return {**route({"matches": [method], "backendRefs": list(refs)}, **metadata), "kind": "GRPCRoute"}


def service(weight: int = 1) -> dict[str, Any]:
    return {"group": "", "kind": "Service", "name": "svc", "port": 80, "weight": weight}


MIXED = route(
    rule(service(3), path="/static"),
    rule(pool("old", 7), service(2), path="/v1", timeouts={"request": "30s"}),
    rule(pool("third", 5), path="/third"),
    rule(pool("old"), path="/"),
)


def known(found: dict[str, Any]) -> Any:
    got = record(found, PLAN)
    assert got is not None
    return got


def without_weights(found: dict[str, Any], *names: str) -> dict[str, Any]:
    """The route without the weights, and without references to the pools named."""
    found = copy.deepcopy(found)
    for each in found["spec"]["rules"]:
        each["backendRefs"] = [ref for ref in each["backendRefs"] if ref["name"] not in names]
        for ref in each["backendRefs"]:
            del ref["weight"]
    return found


def test_only_rules_that_lead_to_the_pool_are_recorded() -> None:
    assert [one.index for one in known(MIXED).rules] == [1, 3]
    assert record(route(rule(pool("third"))), PLAN) is None
    assert record(route(rule(pool("old")), namespace="elsewhere"), PLAN) is None, "another pool of that name"
    assert record(route(rule(pool("old", namespace="serving")), namespace="elsewhere"), PLAN) is not None


def test_a_whole_replacement_touches_weights_alone() -> None:
    now, rec = MIXED, known(MIXED)
    now = patched(now, shift_patch(now, rec, PLAN, 0))
    assert without_weights(now, "new") == without_weights(MIXED)
    for percent in PLAN.steps:
        operations = shift_patch(now, rec, PLAN, percent)
        changed = [operation for operation in operations if operation["op"] != "test"]
        assert all(operation["path"].endswith("/weight") for operation in changed)
        tested = {operation["path"] for operation in operations if operation["op"] == "test"}
        assert {operation["path"].removesuffix("/weight") for operation in changed} == tested
        now = patched(now, operations)
        assert without_weights(now, "new") == without_weights(MIXED)
        assert shift_patch(now, rec, PLAN, percent) == [], "done once is done"
        assert patched(now, restore_patch(now, rec, PLAN)) == MIXED
    now = patched(now, final_patch(now, rec, PLAN))
    expected = copy.deepcopy(MIXED)
    for at in (1, 3):
        expected["spec"]["rules"][at]["backendRefs"][0]["name"] = "new"
    assert now == expected
    assert final_patch(now, rec, PLAN) == []
    assert patched(now, restore_patch(now, rec, PLAN)) == MIXED


def test_a_change_between_reading_and_writing_is_refused() -> None:
    rec = known(MIXED)
    operations = shift_patch(MIXED, rec, PLAN, 0)
    theirs = copy.deepcopy(MIXED)
    theirs["spec"]["rules"][3]["backendRefs"][0]["weight"] = 9
    with pytest.raises(TestFailed):
        patched(theirs, operations)


@pytest.mark.parametrize("change", ["weight", "added", "gone"])
def test_a_foreign_change_is_named_and_never_overwritten(change: str) -> None:
    rec = known(MIXED)
    now = patched(MIXED, shift_patch(MIXED, rec, PLAN, 25))
    theirs = copy.deepcopy(now)
    refs = theirs["spec"]["rules"][3]["backendRefs"]
    if change == "weight":
        refs[0]["weight"] = 1234
    elif change == "added":
        refs.append(service(4))
    else:
        del theirs["spec"]["rules"][3]
    with pytest.raises(Foreign, match="HTTPRoute serving/route"):
        shift_patch(theirs, rec, PLAN, 50)
    back = patched(theirs, restore_patch(theirs, rec, PLAN))
    if change == "weight":
        assert back == MIXED
    elif change == "added":
        expected = copy.deepcopy(MIXED)
        expected["spec"]["rules"][3]["backendRefs"].append(service(4))
        assert back == expected
    else:
        assert back["spec"]["rules"] == MIXED["spec"]["rules"][:3]


def test_a_rule_that_moved_is_found_again() -> None:
    rec = known(MIXED)
    now = patched(MIXED, shift_patch(MIXED, rec, PLAN, 0))
    now["spec"]["rules"].insert(0, rule(service(), path="/new"))
    now = patched(now, shift_patch(now, rec, PLAN, 50))
    assert [ref["weight"] for ref in now["spec"]["rules"][4]["backendRefs"]] == [1, 1]
    back = patched(now, restore_patch(now, rec, PLAN))
    assert back["spec"]["rules"][1:] == MIXED["spec"]["rules"]


def test_ten_routes_in_order() -> None:
    routes = [route(rule(pool("old")), name=f"route-{at}") for at in range(10)]
    assert [one.name for one in records(reversed(routes), PLAN)] == [f"route-{at}" for at in range(10)]


def test_weights_that_cannot_be_divided_are_found_beforehand() -> None:
    bad = route(rule(pool("old", 1), service(999_999)))
    assert [text for text in unsplittable([known(bad)], PLAN) if "HTTPRoute serving/route, rule 0" in text]
    assert not list(unsplittable([known(MIXED)], PLAN))


@pytest.mark.parametrize(
    ("metadata", "owner"),
    [
        ({"annotations": {"argocd.argoproj.io/tracking-id": "x"}}, "Argo CD"),
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "x"}}, "Flux"),
        ({"managedFields": [{"manager": "argocd-controller", "fieldsV1": {"f:spec": {}}}]}, "Argo CD"),
        ({"managedFields": [{"manager": "kustomize-controller", "fieldsV1": {"f:metadata": {}}}]}, ""),
        ({"managedFields": [{"manager": "headrace", "fieldsV1": {"f:spec": {}}}]}, ""),
    ],
)
def test_gitops_owners_are_recognised(metadata: dict[str, Any], owner: str) -> None:
    assert gitops_owner(route(rule(pool("old")), **metadata)) == owner


def managed(manager: str, *, rules: bool = True, operation: str = "Apply", **spec: Any) -> dict[str, Any]:
    fields = {**spec, **({"f:rules": {}} if rules else {})}
    found: dict[str, Any] = {"manager": manager, "operation": operation, "apiVersion": "gateway.networking.k8s.io/v1"}
    return {**found, "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": fields} if fields else {"f:status": {}}}


OURS = managed(FIELD_MANAGER, operation="Update")
PARENTS: dict[str, Any] = {"f:parentRefs": {}}


@pytest.mark.parametrize(
    ("before", "meanwhile", "after"),
    [
        ([managed("site", **PARENTS)], [managed("site", rules=False, **PARENTS), OURS], None),
        # Whoever had nothing but the rules is no longer there.
        ([managed("a"), managed("b", rules=False, **PARENTS)], [managed("b", rules=False, **PARENTS), OURS], None),
        # What else is ours or theirs stays.
        ([managed("site"), managed("gateway", rules=False)], [managed("gateway", rules=False), OURS], None),
        # Nobody had them, or they have them again by their own apply.
        ([], [OURS], [OURS]),
        ([managed("site")], [managed("site")], [managed("site")]),
    ],
)
def test_rules_are_given_back_to_whom_they_were(
    before: list[dict[str, Any]], meanwhile: list[dict[str, Any]], after: list[dict[str, Any]] | None
) -> None:
    rec = known(route(rule(pool("old", 3)), managedFields=before))
    assert rec.owners == tuple(
        Owner(entry["manager"], "Apply", "gateway.networking.k8s.io/v1")
        for entry in before
        if "f:rules" in entry["fieldsV1"].get("f:spec", {})
    )
    for name in ("new", "old"):
        now = route(rule(pool(name, 3)), managedFields=meanwhile, resourceVersion="7")
        given = patched(now, give_back(now, rec, PLAN))
        found = sorted(given["metadata"]["managedFields"], key=lambda entry: str(entry["manager"]))
        assert found == sorted(before if after is None else after, key=lambda entry: str(entry["manager"]))
        assert given["spec"] == now["spec"]
        assert not give_back(given, rec, PLAN)


def test_rules_that_somebody_else_changed_are_not_given_back() -> None:
    rec = known(route(rule(pool("old", 3)), managedFields=[managed("site")]))
    assert not give_back(route(rule(pool("old", 3), service()), managedFields=[OURS]), rec, PLAN)
    assert not give_back(route(managedFields=[OURS]), rec, PLAN)
    # Nor where it is something else of the rules: those of a route belong to somebody as a whole.
    before = route(rule(pool("old", 3)), rule(service(), path="/b"), managedFields=[managed("site")])
    rec = known(before)
    for changed in (
        (rule(pool("new", 3), timeouts={"request": "1s"}), rule(service(), path="/b")),
        (rule(pool("new", 3)), rule(service(2), path="/b")),
        (rule(pool("new", 3)), rule(service(), path="/b"), rule(service(), path="/c")),
    ):
        assert not give_back(route(*changed, managedFields=[OURS]), rec, PLAN)
    assert give_back(route(*before["spec"]["rules"], managedFields=[OURS]), rec, PLAN)


def test_an_entry_of_a_subresource_is_another_one() -> None:
    entries = [{**managed("manager"), "subresource": "status", "fieldsV1": {"f:status": {}}}, managed("manager")]
    rec = known(route(rule(pool("old")), managedFields=entries))
    assert [owner.subresource for owner in rec.owners] == [""]
    now = route(rule(pool("new")), managedFields=[entries[0], managed("manager", rules=False, **PARENTS), OURS])
    now["metadata"]["resourceVersion"] = "1"
    fields = patched(now, give_back(now, rec, PLAN))["metadata"]["managedFields"]
    assert fields[0] == entries[0]
    assert fields[1]["fieldsV1"]["f:spec"] == {**PARENTS, "f:rules": {}}


def test_another_namespaces_route_needs_a_grant_for_the_new_pool() -> None:
    rec = known(route(rule(pool("old", namespace="serving")), namespace="elsewhere"))
    grant = {
        "metadata": {"namespace": "serving"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "elsewhere"}],
            "to": [{"group": GA, "kind": "InferencePool", "name": "old"}],
        },
    }
    assert not granted(rec, PLAN, [grant])
    assert granted(rec, PLAN, [{**grant, "spec": {**grant["spec"], "to": [{"group": GA, "kind": "InferencePool"}]}}])
    assert granted(known(MIXED), PLAN, [])


def test_our_own_route_is_matched_before_the_rule_it_copies_and_is_not_one_to_change() -> None:
    path = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
    filters = [{"type": "URLRewrite", "urlRewrite": {"path": path}}]
    found = route(rule(pool("old", 3), path="/qwen", filters=filters))
    got = hold(found, known(found), PLAN, "own", "x-own", "token")
    assert got is not None
    assert got["spec"]["parentRefs"] == found["spec"]["parentRefs"]
    assert got["spec"]["hostnames"] == found["spec"]["hostnames"]
    assert [each["filters"] for each in got["spec"]["rules"]] == [filters, filters]
    assert [each["backendRefs"] for each in got["spec"]["rules"]] == [[pool("new", 1)], [pool("old", 1)]]
    assert [each["matches"] for each in got["spec"]["rules"]] == [
        [
            {
                "path": {"type": "PathPrefix", "value": "/qwen"},
                "headers": [{"type": "Exact", "name": "x-own", "value": f"token-{which}"}],
            }
        ]
        for which in ("new", "old")
    ]
    assert record(got, PLAN) is None
    # At the last step, where the old pool has weight 0, and after it.
    last = patched(found, shift_patch(found, known(found), PLAN, 100))
    assert hold(last, known(found), PLAN, "own", "x-own", "token") == got
    done = patched(last, final_patch(last, known(found), PLAN))
    assert hold(done, known(found), PLAN, "own", "x-own", "token") == got
    assert hold(route(rule(pool("third"), path="/x")), known(found), PLAN, "own", "x-own", "token") is None


def test_plans_are_kept_whole_and_wrong_ones_name_the_field() -> None:
    full = Plan(
        old=PLAN.old, new=PLAN.new, steps=(10, 100), manual=(10,), gates=("errors",), min_sample=5,
        remove_old=(ObjectRef("apps", "v1", "deployments", "serving", "x"),),
    )  # fmt: skip
    assert parse_plan(full.as_json()) == full
    for wrong, message in (
        ({"steps": [5, 1, 100]}, "steps: "), ({"steps": [50]}, "the last one 100"), ({"alpha": 2}, "alpha: 2"),
        ({"gates": ["x"]}, r"gates\[0\]: 'x'"), ({"stepz": [1]}, "no such field"), ({"old": {}}, "old.name"),
        ({"interval": "1m"}, "give a number"), ({"manual": [3]}, "among steps"), ({"new": "old"}, "another pool"),
        ({"gate_timeout": 2}, "at least interval"), ({"remove_old": [{}]}, r"remove_old\[0\]"),
    ):  # fmt: skip
        with pytest.raises(InvalidPlan, match=message):
            parse_plan({"old": "old", "new": "new", **wrong})
    with pytest.raises(InvalidPlan, match="give an object"):
        parse_plan([])


def test_a_grpc_route_is_one_among_the_others() -> None:
    found = grpc(pool("old", 2), service(1))
    one = known(found)
    assert str(one) == "GRPCRoute serving/route"
    assert one.key != known(route(rule(pool("old")))).key, "a route of the other kind may have the same name"
    moved = patched(found, shift_patch(found, one, PLAN, 25))
    assert [ref["weight"] for ref in moved["spec"]["rules"][0]["backendRefs"]] == [3, 2, 1]
    assert patched(moved, restore_patch(moved, one, PLAN)) == found


def test_a_grpc_route_is_held_by_one_of_its_kind() -> None:
    found = grpc(pool("old"))
    held = hold(found, known(found), PLAN, "canary", "headrace-replace", "token")
    assert held is not None
    assert held["kind"] == "GRPCRoute"
    headers = [match["headers"][0]["value"] for rule_ in held["spec"]["rules"] for match in rule_["matches"]]
    assert headers == ["token-new", "token-old"]
    assert all("path" not in match for rule_ in held["spec"]["rules"] for match in rule_["matches"])
    bare = {**found, "spec": {**found["spec"], "rules": [{"backendRefs": [pool("old")]}]}}
    held = hold(bare, known(bare), PLAN, "canary", "headrace-replace", "token")
    assert held is not None
    assert list(held["spec"]["rules"][0]["matches"][0]) == ["headers"], "a GRPCRoute has no paths"


def test_a_grant_is_for_one_kind_of_route() -> None:
    def grant(kind: str) -> dict[str, Any]:
        peer = {"group": "gateway.networking.k8s.io", "kind": kind, "namespace": "elsewhere"}
        to = {"group": GA, "kind": "InferencePool"}
        return {"metadata": {"namespace": "serving"}, "spec": {"from": [peer], "to": [to]}}

    one = known(grpc(pool("old", namespace="serving"), namespace="elsewhere"))
    assert granted(one, PLAN, [grant("GRPCRoute")])
    assert not granted(one, PLAN, [grant("HTTPRoute")])


def rematched(found: dict[str, Any], at: int, path: str) -> dict[str, Any]:
    """The route with other matches of a rule, as somebody else may leave them."""
    found = copy.deepcopy(found)
    found["spec"]["rules"][at]["matches"] = [{"path": {"type": "PathPrefix", "value": path}}]
    return found


def test_a_rule_whose_matches_somebody_changed_gets_its_backends_back() -> None:
    found = route(rule(pool("old", 3), path="/a"), rule(pool("old", 2), path="/b"), rule(pool("new"), path="/own"))
    one = known(found)
    for moved in (
        patched(found, shift_patch(found, one, PLAN, 25)),
        patched(found, final_patch(found, one, PLAN)),
    ):
        changed = rematched(moved, 1, "/c")
        with pytest.raises(Foreign):
            shift_patch(changed, one, PLAN, 50)
        assert patched(changed, restore_patch(changed, one, PLAN)) == rematched(found, 1, "/c")
        # Without a place to go by, and two that it may be, none is guessed.
        gone = copy.deepcopy(changed)
        del gone["spec"]["rules"][1]
        assert patched(gone, restore_patch(gone, one, PLAN))["spec"]["rules"][1]["backendRefs"] == [pool("new")]


def test_a_rule_that_comes_to_lead_to_the_old_pool_is_noticed() -> None:
    found = route(rule(pool("old")), rule(pool("third"), path="/x"))
    one = known(found)
    found["spec"]["rules"][1]["backendRefs"] = [pool("old")]
    for patch in (lambda: shift_patch(found, one, PLAN, 50), lambda: final_patch(found, one, PLAN)):
        with pytest.raises(Foreign, match="rule 1: somebody else changed it to lead to"):
            patch()
    assert restore_patch(found, one, PLAN) == []


def test_a_forged_record_changes_no_route() -> None:
    done = route(rule(pool("new", 3), service(1)))
    honest = known(route(rule(pool("old", 3), service(1))))
    assert patched(done, restore_patch(done, honest, PLAN)) == route(rule(pool("old", 3), service(1)))
    filters = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}}]
    for refs in ((pool("old", 3, filters=filters), service(1)), (service(1),), ()):
        forged = structs.replace(honest.rules[0], refs=refs)
        with pytest.raises(Foreign, match="route, rule 0"):
            restore_patch(done, structs.replace(honest, rules=(forged,)), PLAN)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("old", {"name": "a\nrules"}), ("new", {"name": "Upper"}), ("old", {"name": "a b"}),
        ("new", {"namespace": "../x", "name": "y"}), ("old", {"name": "../../pods"}),
    ],
)  # fmt: skip
def test_names_are_those_that_kubernetes_allows(field: str, value: dict[str, str]) -> None:
    with pytest.raises(InvalidPlan, match=f"^{field}\\.|^new.namespace"):
        parse_plan(
            {"old": {"namespace": "serving", "name": "a"}, "new": {"namespace": "serving", "name": "b"}}
            | {field: {"namespace": "serving", **value}}
        )


@pytest.mark.parametrize("change", [
    {"plural": "pods/exec"}, {"group": "*"}, {"plural": "*"}, {"name": "a\n"}, {"namespace": "x/y"},
    {"version": "../v1"},
])  # fmt: skip
def test_what_is_removed_is_named_as_the_api_server_names_it(change: dict[str, str]) -> None:
    fine = {"group": "apps", "version": "v1", "plural": "deployments", "namespace": "serving", "name": "x"}
    assert parse_plan({"old": "a", "new": "b", "remove_old": [fine]}).remove_old
    with pytest.raises(InvalidPlan, match=r"^remove_old\[0\]"):
        parse_plan({"old": "a", "new": "b", "remove_old": [{**fine, **change}]})

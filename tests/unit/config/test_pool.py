"""Both API groups' pools become one value, or a message that names field, value and fix."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.pools import parse_pool
from headrace.core import EXTENSION_GROUP, GA_GROUP, FailureMode, InvalidPool, PickerReference

# The example of the InferencePool API page, with its `port`.
PAGE: dict[str, Any] = {
    "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
    "kind": "InferencePool",
    "metadata": {"name": "vllm-llama3-8b-instruct"},
    "spec": {
        "targetPortNumber": 8000,
        "selector": {"app": "vllm-llama3-8b-instruct"},
        "extensionRef": {"name": "vllm-llama3-8b-instruct-epp", "port": 9002, "failureMode": "FailClose"},
    },
}
V1: dict[str, Any] = {
    "apiVersion": "inference.networking.k8s.io/v1",
    "kind": "InferencePool",
    "metadata": {"name": "qwen", "namespace": "models", "uid": "u1", "generation": 4, "annotations": {"a": "b"}},
    "spec": {
        "selector": {"matchLabels": {"app": "qwen"}},
        "targetPorts": [{"number": 8000}, {"number": 8001}],
        "appProtocol": "kubernetes.io/h2c",
        "endpointPickerRef": {"name": "qwen-epp", "port": {"number": 9010}, "failureMode": "FailOpen"},
    },
}


def test_the_pages_example() -> None:
    pool = parse_pool(PAGE)
    assert pool.group == EXTENSION_GROUP
    assert (pool.namespace, pool.name) == ("default", "vllm-llama3-8b-instruct")
    assert pool.target_ports == (8000,)
    assert pool.picker == PickerReference(name="vllm-llama3-8b-instruct-epp", port=9002)
    assert pool.failure_mode is FailureMode.CLOSE
    assert pool.label_selector == "app=vllm-llama3-8b-instruct"
    assert pool.selects({"app": "vllm-llama3-8b-instruct", "other": "x"})
    assert not pool.selects({"app": "another"})


def test_a_v1_pool() -> None:
    pool = parse_pool(V1)
    assert (pool.group, pool.namespace) == (GA_GROUP, "models")
    assert pool.target_ports == (8000, 8001)
    assert pool.app_protocol == "kubernetes.io/h2c"
    assert pool.picker == PickerReference(name="qwen-epp", port=9010, failure_mode=FailureMode.OPEN)
    assert (pool.uid, pool.generation, pool.annotations) == ("u1", 4, {"a": "b"})


def test_v1_without_a_picker() -> None:
    pool = parse_pool(changed(V1, "spec.endpointPickerRef", None))
    assert pool.picker is None
    assert pool.failure_mode is FailureMode.CLOSE


def test_a_null_is_as_good_as_nothing() -> None:
    nulls = {"kind": None, "group": None, "failureMode": None}
    for base, field in ((PAGE, "spec.extensionRef"), (V1, "spec.endpointPickerRef")):
        reference = {"name": "epp", "port": 9002 if base is PAGE else {"number": 9002}}
        found = parse_pool(changed(base, field, {**reference, **nulls}))
        assert found.picker == PickerReference(name="epp", port=9002)
        # Also where nothing else makes the object be read twice.
        assert parse_pool(changed(base, field, {**reference, "group": None})).picker == found.picker
    bare = {"name": "p", "namespace": None, "uid": None, "generation": None, "annotations": None}
    pool = parse_pool({**V1, "metadata": bare})
    assert (pool.namespace, pool.uid, pool.generation, pool.annotations) == ("default", "", 0, {})


@pytest.mark.parametrize("also", [{}, {"failureMode": None}])
@pytest.mark.parametrize(
    ("base", "selector", "reference"),
    [(PAGE, "spec.selector", "extensionRef"), (V1, "spec.selector.matchLabels", "endpointPickerRef")],
)
def test_a_null_label_is_refused_whatever_else_is_null(
    base: dict[str, Any], selector: str, reference: str, also: dict[str, None]
) -> None:
    obj = changed(base, selector, {"app": "x", "tier": None})
    obj["spec"][reference] |= also
    with pytest.raises(InvalidPool) as caught:
        parse_pool(obj)
    assert (caught.value.field, caught.value.value) == (f"{selector}[tier]", None)


@pytest.mark.parametrize(
    ("reference", "port"),
    [({}, 9002), ({"portNumber": 7}, 7), ({"port": 8}, 8), ({"port": 9, "portNumber": 9}, 9)],
)
def test_v1alpha2_picker_ports(reference: dict[str, int], port: int) -> None:
    pool = parse_pool(changed(PAGE, "spec.extensionRef", {"name": "epp", **reference}))
    assert pool.picker is not None
    assert pool.picker.port == port


@pytest.mark.parametrize(
    ("base", "path", "value", "field"),
    [
        (PAGE, "apiVersion", "inference.networking.k8s.io/v1alpha2", "apiVersion"),
        (PAGE, "apiVersion", None, "apiVersion"),
        (PAGE, "kind", "Pod", "kind"),
        (PAGE, "metadata.name", "", "metadata.name"),
        (PAGE, "spec", None, "spec"),
        (PAGE, "spec.targetPortNumber", 0, "spec.targetPortNumber"),
        (PAGE, "spec.targetPortNumber", True, "spec.targetPortNumber"),
        (PAGE, "spec.targetPortNumber", "8000", "spec.targetPortNumber"),
        (PAGE, "spec.selector", {}, "spec.selector"),
        (PAGE, "spec.selector", {"bad key": "x"}, "spec.selector"),
        (PAGE, "spec.selector", {"app": "-x"}, "spec.selector[app]"),
        (PAGE, "spec.extensionRef", None, "spec.extensionRef"),
        (PAGE, "spec.extensionRef", {"name": "e", "port": 1, "portNumber": 2}, "spec.extensionRef.port"),
        (PAGE, "spec.extensionRef.failureMode", "Maybe", "spec.extensionRef.failureMode"),
        (V1, "spec.selector", {"app": "flat"}, "spec.selector.matchLabels"),
        (V1, "spec.targetPorts", [], "spec.targetPorts"),
        (V1, "spec.targetPorts", [{"number": n} for n in range(1, 10)], "spec.targetPorts"),
        (V1, "spec.targetPorts", [{"number": 1}, {"number": 1}], "spec.targetPorts[1].number"),
        (V1, "spec.targetPorts", [8000], "spec.targetPorts[0]"),
        (V1, "spec.appProtocol", "https", "spec.appProtocol"),
        (V1, "spec.endpointPickerRef", {"name": "e"}, "spec.endpointPickerRef.port"),
        (V1, "spec.endpointPickerRef.port", {"number": 70000}, "spec.endpointPickerRef.port.number"),
    ],
)
def test_what_is_refused(base: dict[str, Any], path: str, value: object, field: str) -> None:
    with pytest.raises(InvalidPool) as caught:
        parse_pool(changed(base, path, value))
    assert caught.value.field == field
    assert field in str(caught.value)
    assert caught.value.fix in str(caught.value)


PATHS = ["metadata", "metadata.annotations", "metadata.generation", "spec", "spec.selector", "spec.targetPorts"]
PATHS += ["spec.selector.matchLabels", "spec.extensionRef", "spec.endpointPickerRef", "spec.endpointPickerRef.port"]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    base=st.sampled_from([PAGE, V1]),
    path=st.sampled_from(PATHS),
    value=ANY_JSON,
)
def test_any_json_is_a_pool_or_an_invalid_pool(base: dict[str, Any], path: str, value: object) -> None:
    try:
        parse_pool(changed(base, path, value))
    except InvalidPool as error:
        assert error.fix


def changed(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of `base` with one field set; None leaves it out."""
    copied = copy.deepcopy(base)
    *parents, last = path.split(".")
    at: Any = copied
    for parent in parents:
        at = at.setdefault(parent, {})
        if not isinstance(at, dict):
            return copied
    if value is None:
        at.pop(last, None)
    else:
        at[last] = value
    return copied

"""InferenceObjective and InferenceModelRewrite: what is read, what is refused, and which rule counts."""

from __future__ import annotations

import copy
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.policies import parse_model_rewrite, parse_objective
from headrace.core import (
    EXTENSION_GROUP,
    GA_GROUP,
    InvalidObject,
    ModelRewrite,
    RewriteTable,
)
from headrace.core.model_rewrite import RewriteRule, RewriteTarget
from headrace.core.objective import PoolReference

API = f"{EXTENSION_GROUP}/v1alpha2"


def objective(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "InferenceObjective",
        "metadata": {"name": "chat", "namespace": "n"},
        "spec": {"poolRef": {"name": "pool"}, **spec},
    }


def rewrite(*rules: Any, name: str = "r", created: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "InferenceModelRewrite",
        "metadata": {"name": name, "namespace": "n", "creationTimestamp": created},
        "spec": {"poolRef": {"name": "pool", "group": EXTENSION_GROUP}, "rules": list(rules)},
    }


def rule(*models: str, to: Any = "t") -> dict[str, Any]:
    targets = [{"modelRewrite": to}] if isinstance(to, str) else [{"modelRewrite": m, "weight": w} for m, w in to]
    return {"matches": [{"model": {"value": model}} for model in models], "targets": targets}


def test_an_objective() -> None:
    found = parse_objective(objective(priority=-5))
    assert (found.namespace, found.name, found.priority) == ("n", "chat", -5)
    assert found.pool == PoolReference("pool", GA_GROUP)
    assert parse_objective(objective()).priority == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"priority": "high"}, "spec.priority"),
        ({"priority": True}, "spec.priority"),
        ({"priority": 1.5}, "spec.priority"),
        ({"poolRef": None}, "spec.poolRef"),
        ({"poolRef": {}}, "spec.poolRef.name"),
        ({"poolRef": {"name": "p", "kind": "Service"}}, "spec.poolRef.kind"),
        ({"poolRef": {"name": "p", "group": "apps"}}, "spec.poolRef.group"),
    ],
)
def test_what_is_no_objective(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidObject) as caught:
        parse_objective(objective(**change))
    assert caught.value.field == field


def test_a_rewrite() -> None:
    found = parse_model_rewrite(rewrite(rule("a", "b", to=[("x", 9), ("y", 1)]), rule(to="z")))
    assert found.pool == PoolReference("pool", EXTENSION_GROUP)
    assert found.rules == (
        RewriteRule(frozenset("ab"), (RewriteTarget("x", 9), RewriteTarget("y", 1))),
        RewriteRule(frozenset(), (RewriteTarget("z", 1),)),
    )


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ("x", "spec.rules[0]"),
        ({"matches": "x"}, "spec.rules[0].matches"),
        ({"matches": [{}]}, "spec.rules[0].matches[0].model"),
        ({"matches": [{"model": {"value": ""}}]}, "spec.rules[0].matches[0].model.value"),
        ({"matches": [{"model": {"type": "Prefix", "value": "x"}}]}, "spec.rules[0].matches[0].model.type"),
        ({"targets": [{}]}, "spec.rules[0].targets[0].modelRewrite"),
        ({"targets": [{"modelRewrite": "x", "weight": 0}]}, "spec.rules[0].targets[0].weight"),
        ({"targets": [{"modelRewrite": "x", "weight": 1_000_001}]}, "spec.rules[0].targets[0].weight"),
        ({"targets": [{"modelRewrite": "x", "weight": 1}, {"modelRewrite": "y"}]}, "spec.rules[0].targets"),
    ],
)
def test_what_is_no_rewrite(bad: Any, field: str) -> None:
    with pytest.raises(InvalidObject) as caught:
        parse_model_rewrite(rewrite(bad))
    assert caught.value.field == field


@pytest.mark.parametrize("parse", [parse_objective, parse_model_rewrite])
@given(
    found=st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda i: (
            st.lists(i, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "apiVersion",
                        "kind",
                        "metadata",
                        "spec",
                        "name",
                        "poolRef",
                        "rules",
                        "matches",
                        "targets",
                        "model",
                    ]
                ),
                i,
                max_size=5,
            )
        ),
    )
)
def test_anything_is_read_or_refused_by_name(parse: Any, found: Any) -> None:
    for base in (objective(), rewrite(rule("a"))):
        obj = copy.deepcopy(base)
        obj["spec"] = found
        try:
            parse(obj)
        except InvalidObject as error:
            assert error.field
        else:
            assert isinstance(found["poolRef"]["name"], str), "only what names its pool is read"


def table(*objects: Any) -> RewriteTable:
    return RewriteTable([parse_model_rewrite(obj) for obj in objects])


def chosen(rules: RewriteTable, model: str) -> tuple[str, str] | None:
    found = rules.choose(model, Random(1))
    return None if found is None else (found.model, found.rewrite)


def test_exact_goes_before_generic_then_age_then_order() -> None:
    old = rewrite(rule(to="old-any"), rule("b", to="old-b"), rule("b", to="old-b-2"), name="old")
    new = rewrite(
        rule("a", to="new-a"), rule("b", to="new-b"), rule(to="any"), name="new", created="2026-01-02T00:00:00Z"
    )
    for rules in (table(old, new), table(new, old)):
        assert chosen(rules, "a") == ("new-a", "new")
        assert chosen(rules, "b") == ("old-b", "old")
        assert chosen(rules, "c") == ("old-any", "old")
    assert chosen(table(), "a") is None
    assert not table()


def test_a_rule_without_targets_leaves_its_models_alone() -> None:
    rules = table(rewrite({"matches": [{"model": {"value": "a"}}]}, rule(to="t")))
    assert chosen(rules, "a") is None
    assert chosen(rules, "b") == ("t", "r")


def test_weights_are_shares() -> None:
    rules = table(rewrite(rule("a", to=[("x", 900), ("y", 100)])))
    rng = Random(7)
    drawn = Counter(found.model for _ in range(5000) if (found := rules.choose("a", rng)) is not None)
    assert set(drawn) == {"x", "y"}
    assert 0.08 < drawn["y"] / 5000 < 0.12


def test_objects_without_a_timestamp_come_last() -> None:
    found = parse_model_rewrite(rewrite(rule("a", to="dated")))
    undated = ModelRewrite(
        "n", "a-first-by-name", found.pool, (RewriteRule(frozenset("a"), (RewriteTarget("undated"),)),)
    )
    assert chosen(RewriteTable([undated, found]), "a") == ("dated", "r")

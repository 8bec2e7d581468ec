"""EndpointPickerConfig: the reference picker's files load, wrong ones are refused by field."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.decode import InvalidConfig
from headrace.config.plugins import known
from headrace.core import Request
from headrace.scheduling import default_profile, read_config
from headrace.scheduling.affinity import IdentifiedSession, SessionAffinityScorer, TokenSession
from headrace.scheduling.config import TYPES
from headrace.scheduling.pickers import MaxScorePicker, WeightedRandomPicker

from .states import facts, state

HEAD = {"apiVersion": "inference.networking.x-k8s.io/v1alpha1", "kind": "EndpointPickerConfig"}


@pytest.mark.parametrize("kind", [None, "", "EndpointPicker", "endpointpickerconfig"])
def test_another_kind_is_refused(kind: object) -> None:
    with pytest.raises(InvalidConfig, match="kind"):
        read_config({**HEAD, "kind": kind})


def test_a_reference_file() -> None:
    config = read_config(
        {
            **HEAD,
            "plugins": [
                {"type": "queue-scorer"},
                {"type": "kv-cache-utilization-scorer"},
                {"name": "prefix", "type": "prefix-cache-scorer", "parameters": {"blockSizeTokens": 128}},
                {"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 2}},
                {"type": "single-profile-handler"},
            ],
            "schedulingProfiles": [
                {
                    "name": "default",
                    "plugins": [
                        {"pluginRef": "queue-scorer", "weight": 2},
                        {"pluginRef": "kv-cache-utilization-scorer"},
                        {"pluginRef": "prefix", "weight": 3},
                        {"pluginRef": "max-score-picker"},
                    ],
                }
            ],
        }
    )
    weights = [(entry.name, entry.weight) for entry in config.profile.scorers]
    assert weights == [("queue-scorer", 2.0), ("kv-cache-utilization-scorer", 1.0), ("prefix", 3.0)]
    assert config.profile.picker == MaxScorePicker(2)
    assert config.prefix.block_bytes == 512
    assert config.notes == ()


def test_other_group_and_no_profiles() -> None:
    document = {**HEAD, "apiVersion": "llm-d.ai/v1alpha1"}
    assert read_config(document).profile == default_profile()
    document["plugins"] = [{"type": "queue-scorer"}, {"type": "weighted-random-picker"}]
    profile = read_config(document).profile
    assert [entry.name for entry in profile.scorers] == ["queue-scorer"]
    assert profile.picker == WeightedRandomPicker(1)


def test_what_has_no_effect_is_said() -> None:
    config = read_config({**HEAD, "nonsense": {}, "flowControl": {}, "plugins": [{"type": "tokenizer"}]})
    assert len(config.notes) == 2
    assert "nonsense" in config.notes[0]
    # YAML has keys that Python cannot write.
    assert len(read_config({**HEAD, 0x10**5000: {}}).notes) == 1


def test_a_header_chooses_the_profile() -> None:
    document = {
        **HEAD,
        "plugins": [
            {"type": "queue-scorer"},
            {"type": "random-picker"},
            {"type": "header-profile-handler", "parameters": {"headerName": "X-Profile", "defaultProfile": "b"}},
        ],
        "schedulingProfiles": [
            {"name": "a", "plugins": [{"pluginRef": "queue-scorer"}]},
            {"name": "b", "plugins": [{"pluginRef": "random-picker"}]},
        ],
    }
    config = read_config(document)

    def chosen(headers: dict[str, str]) -> str | None:
        profile = config.choose(Request(request_id="r", headers=headers))
        return profile.name if profile is not None else None

    assert chosen({}) == "b"
    assert chosen({"x-profile": "a"}) == "a"
    assert chosen({"x-profile": "absent"}) is None
    # With one profile there is nothing to choose.
    document["schedulingProfiles"] = [{"name": "a"}]
    assert chosen_only(document, {"x-profile": "absent"}) == "a"


def chosen_only(document: object, headers: dict[str, str]) -> str:
    profile = read_config(document).choose(Request(request_id="r", headers=headers))
    assert profile is not None
    return profile.name


def test_a_plugin_may_be_filter_and_scorer_and_a_detector_filters_only_where_it_is_asked_to() -> None:
    plugins = [{"type": "context-length-aware"}, {"type": "utilization-detector"}, {"type": "queue-scorer"}]
    profile = read_config({**HEAD, "plugins": plugins}).profile
    assert [step.type_name for step in profile.filters] == ["context-length-aware"]
    assert [entry.name for entry in profile.scorers] == ["context-length-aware", "queue-scorer"]
    asked = {
        **HEAD,
        "plugins": plugins,
        "schedulingProfiles": [{"name": "p", "plugins": [{"pluginRef": "utilization-detector"}]}],
    }
    assert [step.type_name for step in read_config(asked).profile.filters] == ["utilization-detector"]


@pytest.mark.parametrize(
    ("parameters", "block_bytes", "max_blocks"),
    [
        ({}, 256, 2048),
        ({"blockSizeTokens": 16, "autoTune": False}, 256, 2048),
        ({"blockSizeTokens": 128, "maxPrefixTokensToMatch": 1280}, 512, 10),
        # Names of earlier releases, in characters.
        ({"hashBlockSize": 512, "maxPrefixBlocksToMatch": 9}, 512, 9),
        ({"blockSize": 64}, 256, 2048),
    ],
)
def test_prefix_settings(parameters: dict[str, Any], block_bytes: int, max_blocks: int) -> None:
    plugins = [{"type": "approx-prefix-cache-producer", "parameters": parameters}]
    prefix = read_config({**HEAD, "plugins": plugins}).prefix
    assert (prefix.block_bytes, prefix.max_blocks) == (block_bytes, max_blocks)
    assert prefix.block_tokens * 4 == block_bytes


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"apiVersion": "v1"}, "apiVersion"),
        ({"kind": "Pod"}, "kind"),
        ({"plugins": {}}, "plugins"),
        ({"plugins": ["x"]}, "plugins[0]"),
        ({"plugins": [{}]}, "plugins[0].type"),
        ({"plugins": [{"type": "unheard-of"}]}, "plugins[0].type"),
        ({"plugins": [{"type": "queue-scorer"}, {"type": "queue-scorer"}]}, "plugins[1].name"),
        ({"plugins": [{"type": "queue-scorer", "parameters": {"x": 1}}]}, "plugins[0].parameters.x"),
        ({"plugins": [{"type": "queue-scorer", "parameters": [1]}]}, "plugins[0].parameters"),
        (
            {"plugins": [{"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 0}}]},
            "plugins[0].parameters.maxNumOfEndpoints",
        ),
        (
            {"plugins": [{"type": "load-aware-scorer", "parameters": {"threshold": "9"}}]},
            "plugins[0].parameters.threshold",
        ),
        (
            {"schedulingProfiles": [{"name": "p", "plugins": [{"pluginRef": "absent"}]}]},
            "schedulingProfiles[0].plugins[0].pluginRef",
        ),
        (
            {
                "plugins": [{"type": "queue-scorer"}],
                "schedulingProfiles": [{"name": "p", "plugins": [{"pluginRef": "queue-scorer", "weight": -1}]}],
            },
            "schedulingProfiles[0].plugins[0].weight",
        ),
        (
            {
                "plugins": [{"type": "random-picker"}, {"type": "max-score-picker"}],
                "schedulingProfiles": [
                    {"name": "p", "plugins": [{"pluginRef": "random-picker"}, {"pluginRef": "max-score-picker"}]}
                ],
            },
            "profile p",
        ),
        (
            {"schedulingProfiles": [{"name": "a"}, {"name": "b"}]},
            "schedulingProfiles",
        ),
        ({"schedulingProfiles": [{"name": "a"}, {"name": "a"}]}, "schedulingProfiles[1].name"),
        (
            {
                "plugins": [{"type": "header-profile-handler"}],
                "schedulingProfiles": [{"name": "a"}, {"name": "b"}],
            },
            "defaultProfile",
        ),
        ({"plugins": [{"type": "single-profile-handler"}, {"type": "header-profile-handler"}]}, "plugins"),
        ({"plugins": [{"type": "disagg-profile-handler"}]}, "plugins[0].type"),
        ({"plugins": [{"type": "multicluster-queue-scorer"}]}, "plugins[0].type"),
        (
            {
                "plugins": [{"type": "single-profile-handler"}],
                "schedulingProfiles": [{"name": "p", "plugins": [{"pluginRef": "single-profile-handler"}]}],
            },
            "profile p",
        ),
        *(
            ({"plugins": [{"type": plugin_type, "parameters": parameters}]}, f"plugins[0].parameters.{field}")
            for plugin_type, parameters, field in [
                ("by-label", {"label": "x"}, "validValues"),
                ("by-label", {"validValues": ["a"]}, "label"),
                (
                    "label-selector-filter",
                    {"matchExpressions": [{"key": "a", "operator": "Is"}]},
                    "matchExpressions[0].operator",
                ),
                (
                    "label-selector-filter",
                    {"matchExpressions": [{"key": "a", "operator": "In"}]},
                    "matchExpressions[0].values",
                ),
                ("label-selector-filter", {"matchLabels": {"a": 1}}, "matchLabels.a"),
                ("session-affinity-scorer", {"strategy": "guess"}, "strategy"),
                (
                    "session-affinity-scorer",
                    {"encodedEndpointHeaderConfig": {"header": 3}},
                    "encodedEndpointHeaderConfig.header",
                ),
                ("session-affinity-scorer", {"encodedEndpointHeaderConfig": []}, "encodedEndpointHeaderConfig"),
                (
                    "session-affinity-filter",
                    {"strategy": "session_id", "sessionIdConfig": {"sources": [{"attribute": "x"}]}},
                    "sessionIdConfig.sources[0].attribute",
                ),
                (
                    "session-affinity-scorer",
                    {"strategy": "session_id", "sessionIdConfig": {"evictionTtlSeconds": 0}},
                    "sessionIdConfig.evictionTtlSeconds",
                ),
                ("header-label-affinity-scorer", {"headerName": "x"}, "labelKey"),
                ("prefix-cache-affinity-filter", {"ttftSource": "latencyPredictor"}, "ttftSource"),
                ("prefix-cache-affinity-filter", {"peakPrefillThroughput": 0}, "peakPrefillThroughput"),
                ("prefix-cache-affinity-filter", {"affinityThreshold": 1.5}, "affinityThreshold"),
                ("utilization-filter", {}, "conditions"),
                ("utilization-filter", {"conditions": [{"metric": "gpu", "maxValue": 1}]}, "conditions[0].metric"),
                ("utilization-filter", {"conditions": [{"metric": "waiting-queue"}]}, "conditions[0].maxValue"),
                (
                    "utilization-filter",
                    {"conditions": [{"metric": "kv-cache-utilization", "maxValue": 80}]},
                    "conditions[0].maxValue",
                ),
                ("utilization-detector", {"queueDepthThreshold": 0}, "queueDepthThreshold"),
                ("utilization-detector", {"kvCacheUtilThreshold": 80}, "kvCacheUtilThreshold"),
                ("utilization-detector", {"metricsStalenessThreshold": 200}, "metricsStalenessThreshold"),
                ("concurrency-detector", {"concurrencyMode": "bytes"}, "concurrencyMode"),
                ("endpoint-attribute-scorer", {"algorithm": {"type": "log"}}, "algorithm.type"),
                (
                    "endpoint-attribute-scorer",
                    {
                        "attributeKey": "x",
                        "algorithm": {
                            "type": "linear_lower_is_better",
                            "normalization": {"fixedRange": {"min": 1, "max": 1}},
                        },
                    },
                    "algorithm.normalization.fixedRange.max",
                ),
                ("endpoint-attribute-filter", {"algorithm": {"type": "percentile"}}, "algorithm.type"),
                ("token-load-scorer", {"queueThresholdTokens": 0}, "queueThresholdTokens"),
                ("no-hit-lru-scorer", {"lruSize": 0}, "lruSize"),
            ]
        ),
    ],
)
def test_what_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        read_config({**HEAD, **change})
    assert caught.value.field == field
    assert caught.value.fix in str(caught.value)


# What cannot do without.
NEEDED: dict[str, dict[str, Any]] = {
    "by-label": {"label": "x", "validValues": ["a"]},
    "header-label-affinity-scorer": {"headerName": "X-Tenant", "labelKey": "tenant"},
    "utilization-filter": {"conditions": [{"metric": "waiting-queue", "maxValue": 4}]},
    "endpoint-attribute-scorer": {"attributeKey": "x", "algorithm": {"type": "linear_lower_is_better"}},
    "endpoint-attribute-filter": {
        "attribute": "x",
        "algorithm": {"type": "threshold", "threshold": {"operator": "LessThan", "value": -1.5}},
    },
}


@pytest.mark.parametrize("plugin_type", known(TYPES))
def test_every_known_type_loads(plugin_type: str) -> None:
    plugin = {"type": plugin_type, "parameters": NEEDED.get(plugin_type, {})}
    assert plugin_type in read_config({**HEAD, "plugins": [plugin]}).plugins


def test_a_type_is_refused_by_every_name_that_begins_so() -> None:
    for name in ("file-discovery", "multicluster-anything"):
        with pytest.raises(InvalidConfig) as caught:
            read_config({**HEAD, "plugins": [{"type": name}]})
        assert "known:" not in caught.value.fix
        assert name not in known(TYPES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(known(TYPES)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "name", "plugins", "pluginRef", "parameters", "weight"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(plugins=JSON, profiles=JSON)
def test_any_document_loads_or_is_refused(plugins: object, profiles: object) -> None:
    try:
        read_config({**HEAD, "plugins": plugins, "schedulingProfiles": profiles})
    except InvalidConfig as error:
        assert error.fix


@pytest.mark.parametrize("also", [{}, {"matchExpressions": None}])
def test_a_label_without_a_value_is_the_empty_text(also: dict[str, Any]) -> None:
    entry = {"type": "label-selector-filter", "parameters": {"matchLabels": {"tier": None, "app": "x"}, **also}}
    (selector,) = read_config({**HEAD, "plugins": [entry]}).profile.filters
    pods = [
        state(number)._replace(endpoint=replace(state(number).endpoint, labels=labels))
        for number, labels in enumerate(({"tier": "", "app": "x"}, {"app": "x"}, {"tier": "a", "app": "x"}))
    ]
    assert selector.keep(pods, facts()) == pods[:1]


_LARGE = {f"k{number}": number for number in range(2000)}


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"plugins": [{"type": "tokenizer", "parameters": _LARGE}] * 1000}, "plugins[1].name"),
        ({"plugins": [{"type": "tokenizer", "name": f"n{n}", "parameters": _LARGE} for n in range(1000)]}, None),
        (
            {
                "plugins": [{"type": "queue-scorer"}],
                "schedulingProfiles": [{"name": "p", "plugins": [{"pluginRef": "queue-scorer"}] * 2000}] * 1000,
            },
            "schedulingProfiles[1].name",
        ),
    ],
)
def test_aliases_cost_no_more_than_the_text(sections: dict[str, Any], field: str | None) -> None:
    tracemalloc.start()
    try:
        if field is None:
            assert len(read_config({**HEAD, **sections}).plugins) == 1000
        else:
            with pytest.raises(InvalidConfig) as caught:
                read_config({**HEAD, **sections})
            assert caught.value.field == field
        # A copy of what is aliased for each of its aliases would take 50 MB or more.
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("parameters", [[], "x", 3, False])
@pytest.mark.parametrize("plugin_type", ["queue-scorer", "tokenizer"])
def test_parameters_are_an_object(plugin_type: str, parameters: object) -> None:
    with pytest.raises(InvalidConfig) as caught:
        read_config({**HEAD, "plugins": [{"type": plugin_type, "parameters": parameters}]})
    assert (caught.value.field, caught.value.value) == ("plugins[0].parameters", parameters)


@pytest.mark.parametrize(
    "unused", [{"sources": [{"attribute": "a"}]}, {"header": 3, "x": 1}, {"evictionTtlSeconds": 0}]
)
def test_a_session_strategy_goes_by_its_own_settings_alone(unused: dict[str, Any]) -> None:
    def strategy(**parameters: Any) -> object:
        config = read_config({**HEAD, "plugins": [{"type": "session-affinity-scorer", "parameters": parameters}]})
        return config.plugins["session-affinity-scorer"]

    by_token = strategy(sessionIdConfig=unused, encodedEndpointHeaderConfig={"header": " X-Token "})
    assert by_token == SessionAffinityScorer(TokenSession("x-token"))
    assert strategy(sessionIdConfig=unused) == SessionAffinityScorer(TokenSession("x-session-token"))
    config = {"sources": [{"header": "X-Id", "producer": "p"}], "evictionTtlSeconds": 5}
    by_name = strategy(strategy="session_id", sessionIdConfig=config, encodedEndpointHeaderConfig=unused)
    assert by_name == SessionAffinityScorer(IdentifiedSession(("x-id",), 5.0))

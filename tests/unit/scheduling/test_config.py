"""EndpointPickerConfig: the reference picker's files load, wrong ones are refused by field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.scheduling import InvalidConfig, default_profile, read_config
from headrace.scheduling.config import known_plugin_types
from headrace.scheduling.pickers import MaxScorePicker, WeightedRandomPicker

HEAD = {"apiVersion": "inference.networking.x-k8s.io/v1alpha1", "kind": "EndpointPickerConfig"}


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


def test_what_is_not_supported_yet_is_said() -> None:
    config = read_config({**HEAD, "flowControl": {}, "featureGates": ["x"]})
    assert len(config.notes) == 2


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
    ],
)
def test_what_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        read_config({**HEAD, **change})
    assert caught.value.field == field
    assert caught.value.fix in str(caught.value)


@pytest.mark.parametrize("plugin_type", known_plugin_types())
def test_every_known_type_loads_without_parameters(plugin_type: str) -> None:
    read_config({**HEAD, "plugins": [{"type": plugin_type}]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(known_plugin_types()),
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

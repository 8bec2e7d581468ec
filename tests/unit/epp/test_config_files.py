"""Whole configuration files: the reference picker's load unchanged, wrong ones are refused, changes are taken up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.decode import Duration, InvalidConfig
from headrace.datalayer.engines import Series
from headrace.epp.config_file import PickerConfig, load_config, parse_config, watched_config
from headrace.flowcontrol.admitters import ProbabilisticAdmitter
from headrace.flowcontrol.config import BandConfig
from headrace.flowcontrol.fairness import GlobalStrict, LeastAttainedService, RoundRobin
from headrace.flowcontrol.limits import PriorityHoldback, StaticLimit
from headrace.flowcontrol.ordering import EarliestDeadlineFirst, SloDeadline
from headrace.prefixes.kv_settings import KvEventsSettings
from headrace.scheduling import default_profile
from headrace.scheduling.latency import SloHeadroomTierFilter
from headrace.scheduling.pickers import WeightedRandomPicker
from headrace.scheduling.saturation import ConcurrencyDetector, UtilizationDetector

CONFIGS = Path(__file__).parent / "configs"
HEAD = {"apiVersion": "inference.networking.x-k8s.io/v1alpha1", "kind": "EndpointPickerConfig"}


def sample(name: str) -> PickerConfig:
    return load_config(CONFIGS / f"{name}.yaml")


def parse(document: dict[str, Any]) -> PickerConfig:
    return parse_config(yaml.safe_dump({**HEAD, **document}), "test")


def test_the_default_written_out() -> None:
    config = sample("v1.5.0-default")
    assert config.scheduling.profile.scorers == default_profile().scorers
    assert config.scheduling.prefix.max_blocks == 256
    assert not config.flow_control.enabled
    assert [note.partition(":")[0] for note in config.notes] == ["metrics-data-source"]


def test_flow_control_of_the_reference() -> None:
    config = sample("v1.5.0-flow-control")
    flow = config.flow_control
    assert flow.enabled
    assert flow.detector == ConcurrencyDetector(max_requests=64, headroom=0.2)
    assert (flow.max_bytes, flow.max_requests) == (4 << 30, 10_000)
    assert (flow.request_ttl, flow.no_endpoint_ttl) == (30.0, 30.0)
    assert flow.usage_limit == StaticLimit(0.9)
    assert flow.bands[100] == BandConfig(1000, 500_000_000, RoundRobin(), SloDeadline())
    assert flow.bands[-10] == BandConfig(max_requests=50)
    assert flow.default_band == BandConfig(max_requests=500)
    assert flow.default_negative_band == flow.default_band
    profile = config.scheduling.profile
    assert profile.filters == (ConcurrencyDetector(max_requests=64, headroom=0.2),)
    assert profile.picker == WeightedRandomPicker(2)
    assert config.notes == ()


def test_affinities_of_llm_d() -> None:
    profile = sample("llm-d-affinity").scheduling.profile
    assert [step.type_name for step in profile.filters] == [
        "by-label",
        "label-selector-filter",
        "prefix-cache-affinity-filter",
        "context-length-aware",
    ]
    weights = {entry.name: entry.weight for entry in profile.scorers}
    assert weights["session-affinity-scorer"] == 10.0
    assert len(weights) == 7
    assert len(profile.note_takers) == 2


def test_flow_control_of_llm_d() -> None:
    config = sample("llm-d-flow-control")
    flow = config.flow_control
    assert flow.detector == UtilizationDetector(8, 0.9, metrics_staleness_threshold=Duration(0.5))
    assert flow.usage_limit == PriorityHoldback(0.4, 0.9)
    assert (flow.request_ttl, flow.no_endpoint_ttl) == (60.0, 300.0)
    fair = LeastAttainedService(0.7, 0.3, 120.0)
    assert flow.default_band == BandConfig(fairness=fair)
    assert flow.default_negative_band == BandConfig(10, fairness=fair, ordering=EarliestDeadlineFirst())
    assert flow.admitters == (ProbabilisticAdmitter(),)
    assert flow.eviction
    assert flow.fairness_policies == {fair}
    engine = config.engines.of({})
    assert engine.name == "mine"
    assert engine.waiting == (Series("my_queue", (("kind", "waiting"),)),)
    assert engine.running == (Series("my_queue", (("kind", "running"),)),)
    assert engine.custom == (("temperature", Series("my_gpu_temperature")),)
    assert config.engines.of({"llm-d.ai/engine-type": "sglang"}).name == "sglang"


def test_what_is_not_done_by_predicted_latencies_is_said() -> None:
    names = ["slo-headroom-tier-filter", "latency-slo-admitter", "queue-scorer"]
    config = parse(
        {
            "plugins": [
                {"type": names[0], "parameters": {"epsilonExploreNeg": 0.1}},
                *({"type": n} for n in names[1:]),
            ],
            "schedulingProfiles": [{"name": "p", "plugins": [{"pluginRef": name} for name in (names[0], names[2])]}],
        }
    )
    assert [note.partition(":")[0] for note in config.notes] == names[1:2]
    assert config.flow_control.admitters == ()
    assert config.scheduling.profile.filters == (SloHeadroomTierFilter(epsilon=0.1),)


def test_the_servers_own_events_of_llm_d() -> None:
    config = sample("llm-d-precise")
    assert config.kv_events == KvEventsSettings(5556, "kv@")
    assert next(entry.name for entry in config.scheduling.profile.scorers) == "prefix-cache-scorer"
    assert parse({}).kv_events is None


def test_without_flow_control() -> None:
    flow = parse({}).flow_control
    assert (flow.enabled, flow.detector) == (False, UtilizationDetector())
    assert flow.default_band == BandConfig(5000, 1_000_000_000, GlobalStrict())
    # The thresholds where they stood before there were plugins.
    old = parse({"saturationDetector": {"queueDepthThreshold": 9, "metricsStalenessThreshold": "200ms"}})
    assert old.flow_control.detector == UtilizationDetector(9)
    # A detector among the plugins under its own name is meant, even if nothing refers to it.
    named = parse({"plugins": [{"type": "utilization-detector", "parameters": {"queueDepthThreshold": 7}}]})
    assert named.flow_control.detector == UtilizationDetector(7)
    assert parse({"featureGates": ["flowControl=false"], "flowControl": {}}).notes == ()
    (note,) = parse({"flowControl": {"maxRequests": 5}}).notes
    assert "featureGates" in note
    (note,) = parse({"featureGates": ["flowcontrol"]}).notes
    assert "not known" in note


@pytest.mark.parametrize("band", ["defaultPriorityBand", "defaultNegativePriorityBand"])
@pytest.mark.parametrize("priority", ["high", -(1 << 40), 7])
def test_a_default_band_has_no_priority(band: str, priority: object) -> None:
    found = parse({"flowControl": {band: {"priority": priority, "maxRequests": 3}}}).flow_control
    bounds = (found.default_band.max_requests, found.default_negative_band.max_requests)
    assert bounds == ((3, 3) if band == "defaultPriorityBand" else (5_000, 3))


def test_the_section_of_old_is_not_looked_at_where_flow_control_names_a_detector() -> None:
    named = {"flowControl": {"saturationDetector": {"pluginRef": "utilization-detector"}}}
    assert parse({**named, "saturationDetector": {"queueDepth": 5}}).flow_control.detector == UtilizationDetector()


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"featureGates": "flowControl"}, "featureGates"),
        ({"featureGates": ["flowControl=perhaps"]}, "featureGates"),
        ({"flowControl": []}, "flowControl"),
        ({"flowControl": {"maxRequest": 1}}, "flowControl.maxRequest"),
        ({"flowControl": {"maxBytes": "1 GB"}}, "flowControl.maxBytes"),
        ({"flowControl": {"maxBytes": "9" * 30}}, "flowControl.maxBytes"),
        ({"flowControl": {"maxRequests": -1}}, "flowControl.maxRequests"),
        ({"flowControl": {"maxRequests": True}}, "flowControl.maxRequests"),
        ({"flowControl": {"defaultRequestTTL": 30}}, "flowControl.defaultRequestTTL"),
        ({"flowControl": {"defaultRequestTTL": "-1s"}}, "flowControl.defaultRequestTTL"),
        ({"flowControl": {"noEndpointRequestTTL": "soon"}}, "flowControl.noEndpointRequestTTL"),
        ({"flowControl": {"enableEviction": "yes"}}, "flowControl.enableEviction"),
        ({"flowControl": {"usageLimitPolicyPluginRef": "absent"}}, "flowControl.usageLimitPolicyPluginRef"),
        ({"flowControl": {"priorityBands": [{"priority": "high"}]}}, "flowControl.priorityBands[0].priority"),
        (
            {"flowControl": {"priorityBands": [{"priority": 1}, {"priority": 1}]}},
            "flowControl.priorityBands[1].priority",
        ),
        (
            {"flowControl": {"priorityBands": [{"priority": 1, "fairnessPolicyRef": "fcfs-ordering-policy"}]}},
            "flowControl.priorityBands[0].fairnessPolicyRef",
        ),
        (
            {"flowControl": {"defaultPriorityBand": {"orderingPolicyRef": "lifo"}}},
            "flowControl.defaultPriorityBand.orderingPolicyRef",
        ),
        ({"flowControl": {"defaultPriorityBand": {"bytes": 1}}}, "flowControl.defaultPriorityBand.bytes"),
        ({"saturationDetector": {"pluginRef": "absent"}}, "saturationDetector.pluginRef"),
        ({"saturationDetector": {"queueDepth": 5}}, "saturationDetector.queueDepth"),
        ({"flowControl": {"saturationDetector": {"pluginRef": 5}}}, "flowControl.saturationDetector.pluginRef"),
        *(
            ({"plugins": [{"type": plugin_type, "parameters": parameters}]}, f"plugins[0].parameters.{field}")
            for plugin_type, parameters, field in [
                ("priority-holdback-policy", {}, "minCeiling"),
                ("priority-holdback-policy", {"minCeiling": 1.0}, "minCeiling"),
                ("priority-holdback-policy", {"minCeiling": 0.1, "shape": "cubic"}, "shape"),
                ("soft-reflective-ceiling-policy", {"steep": True}, "steep"),
                ("program-aware-fairness", {"strategy": "drr"}, "strategy"),
                ("program-aware-fairness", {"lasHalfLifeSeconds": -1}, "lasHalfLifeSeconds"),
                ("probabilistic-admitter", {"power": 0}, "power"),
                ("probabilistic-admitter", {"k": 0}, "k"),
                ("core-metrics-extractor", {"defaultEngine": "absent"}, "defaultEngine"),
                ("core-metrics-extractor", {"engineConfigs": [{}]}, "engineConfigs[0].name"),
                ("core-metrics-extractor", {"engineConfigs": [{"name": "default"}]}, "engineConfigs[0].name"),
                ("core-metrics-extractor", {"engineConfigs": [{"name": "x"}]}, "engineConfigs[0].queuedRequestsSpec"),
                (
                    "core-metrics-extractor",
                    {"engineConfigs": [{"name": "x", "kvUsageSpec": "a{b"}]},
                    "engineConfigs[0].kvUsageSpec",
                ),
                (
                    "core-metrics-extractor",
                    {"engineConfigs": [{"name": "x", "kvUsageSpec": "a", "customMetrics": [{"attributeKey": "y"}]}]},
                    "engineConfigs[0].customMetrics[0].metricSpec",
                ),
            ]
        ),
    ],
)
def test_what_is_refused(document: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(document)
    assert caught.value.field == f"test: {field}"
    assert caught.value.fix


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["1Gi", "5s", "queue-scorer", "flowControl", ""]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["priority", "maxBytes", "pluginRef", "defaultPriorityBand", "priorityBands", "name"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@given(flow=VALUES, gates=VALUES, detector=VALUES)
def test_any_section_is_read_or_refused(flow: object, gates: object, detector: object) -> None:
    try:
        parse({"flowControl": flow, "featureGates": gates, "saturationDetector": detector})
    except InvalidConfig as error:
        assert error.fix


HUGE = hex(10**5000)  # hexadecimal numbers have no longest form in YAML


@pytest.mark.parametrize(
    "text",
    [
        f"schedulingProfiles: [{{name: p, plugins: [{{pluginRef: queue-scorer, weight: {HUGE}}}]}}]",
        "schedulingProfiles: [{name: p, plugins: [{pluginRef: queue-scorer, weight: .inf}]}]",
        f"flowControl: {{maxRequests: {HUGE}}}",
        f"flowControl: {{maxRequests: '{'9' * 5000}'}}",
        f"flowControl: {{maxRequests: '{'9' * 400}k'}}",
        f"flowControl: {{defaultRequestTTL: '{'9' * 400}s'}}",
        f"flowControl: {{defaultRequestTTL: {HUGE}}}",
        f"flowControl: {{enableEviction: {HUGE}}}",
        f"featureGates: {HUGE}",
    ],
)
def test_numbers_beyond_reckoning_are_refused(text: str) -> None:
    head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: queue-scorer}]\n"
    with pytest.raises(InvalidConfig) as refused:
        parse_config(head + text, "the file")
    assert len(str(refused.value)) < 1000


def test_a_value_that_is_large_by_aliases_is_not_written_out() -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 20))
    text = f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nl0: &l0 [x]\n{levels}featureGates: *l19\n"
    with pytest.raises(InvalidConfig) as refused:
        parse_config(text, "the file")
    assert len(str(refused.value)) < 1000


# A file that changes.


class Taken:
    """What a watched file led to."""

    def __init__(self, path: Path) -> None:
        self.file = watched_config(path, self._count)
        self.configs: list[PickerConfig] = []
        self.bad = 0

    def look(self) -> tuple[int, int]:
        config = self.file.changed()
        if config is not None:
            self.configs.append(config)
        return len(self.configs), self.bad

    def _count(self) -> None:
        self.bad += 1


def text(picker: str) -> str:
    return yaml.safe_dump({**HEAD, "plugins": [{"type": picker}]})


def test_a_changed_file_is_taken_up_and_a_bad_one_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text("random-picker"))
    taken = Taken(path)
    assert taken.file.current.scheduling.profile.picker.type_name == "random-picker"
    assert taken.look() == (0, 0)
    path.write_text(text("weighted-random-picker"))
    assert taken.look() == (1, 0)
    assert taken.configs[0].scheduling.profile.picker.type_name == "weighted-random-picker"
    path.write_text(text("nonsense-picker"))
    assert taken.look() == (1, 1)
    assert "nonsense-picker" in caplog.text
    assert str(path) in caplog.text
    assert taken.look() == (1, 1)
    # Back to what it was before counts as a change too: what is in use is known to be the same, and taken up again.
    path.write_text(text("weighted-random-picker"))
    assert taken.look() == (2, 1)
    path.unlink()
    assert taken.look() == (2, 2)
    assert taken.look() == (2, 2)
    path.write_text(text("max-score-picker"))
    assert taken.look() == (3, 2)


def test_a_config_map_swaps_links(tmp_path: Path) -> None:
    for version, picker in (("1", "random-picker"), ("2", "max-score-picker")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.yaml").write_text(text(picker))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    taken = Taken(tmp_path / "config.yaml")
    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert taken.look() == (1, 0)
    assert taken.configs[0].scheduling.profile.picker.type_name == "max-score-picker"

"""The EndpointPickerConfig: YAML text, and documents put together of the names that mean something.

Only InvalidConfig may come out, and it says where and what to do. A file that is taken has finite settings."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any

from msgspec import Struct, structs

from headrace.config.decode import InvalidConfig
from headrace.config.plugins import known
from headrace.epp.config_file import PLUGIN_TYPES, PickerConfig, parse_config
from headrace.scheduling.config import API_VERSIONS, KIND, SECTIONS

from .reader import Reader

TYPES = known(PLUGIN_TYPES)
_FIELDS = """
addEstimatedOutputTokens affinityThreshold attributeKey autoTune blockSize blockSizeTokens
cacheBlockSizeLabelName cacheBlockSizeSpec cacheInfoSpec cacheNumBlocksSpec customMetrics defaultEngine defaultProfile
defaultNegativePriorityBand defaultPriorityBand defaultRequestTTL discoverPods enableEviction engineConfigs
engineLabelKey evictionTtlSeconds fairnessPolicyRef featureGates flowControl hashBlockSize headroom header
kvCacheUtilThreshold kvEventsConfig kvUsageSpec lasHalfLifeSeconds lasWeightHeadWait lasWeightService loraSpec
lruCapacityPerServer lruSize matchExpressions matchLabels matchLengthWeight maxBytes maxCeiling maxConcurrency
maxNumOfEndpoints maxPrefixBlocksToMatch maxPrefixTokensToMatch maxRequests metricSpec metricsStalenessThreshold
minCeiling name noEndpointRequestTTL orderingPolicyRef parameters pluginRef plugins podDiscoveryConfig priority
priorityBands queueDepthThreshold queueThresholdTokens queuedRequestsSpec runningRequestsSpec saturationDetector
schedulingProfiles sessionIdConfig socketPort sources strategy threshold topicFilter type
usageLimitPolicyPluginRef weight key operator values
"""
NAMES = [*_FIELDS.split(), *SECTIONS]
TEXTS = ["1k", "500M", "4Gi", "30s", "1m30s", "kv@", "las", "In", "default", "flowControl", "queue{kind=waiting}", "x"]
NUMBERS: list[Any] = [0, 1, -1, 64, 0.5, 1.0, 2**31, 2**63, 10**5000, 1e308, math.inf, -math.inf, math.nan, True, None]


def target(data: bytes) -> None:
    """One input."""
    reader = Reader(data)
    choice = reader.byte() % 3
    if choice == 0:
        parse(reader.rest())
    elif choice == 1:
        parse(b"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n" + reader.rest())
    else:
        parse(as_text(a_document(reader)))


def parse(content: bytes | str) -> None:
    """Parse a file, and see that what comes out is fit for use."""
    try:
        config = parse_config(content, "the file")
    except InvalidConfig as error:
        text = str(error)
        assert text.startswith("the file")
        assert len(text) < 20_000
        return
    assert isinstance(config, PickerConfig)
    assert all(config.notes)
    finite(config.scheduling.profile)
    finite(config.flow_control)


def finite(value: object) -> None:
    """Every number that was read is one to reckon with."""
    if isinstance(value, float):
        assert math.isfinite(value), value
    elif is_dataclass(value):
        for field in fields(value):
            finite(getattr(value, field.name, None))
    elif isinstance(value, Struct):
        finite(structs.astuple(value))
    elif isinstance(value, tuple | list):
        for entry in value:
            finite(entry)
    elif isinstance(value, dict):
        for entry in value.values():
            finite(entry)


def a_document(reader: Reader) -> dict[str, Any]:
    document = {"apiVersion": reader.choice(API_VERSIONS), "kind": KIND}
    document["plugins"] = [a_plugin(reader) for _ in range(reader.below(5))]
    names = [plugin["name"] if "name" in plugin else plugin["type"] for plugin in document["plugins"]] or ["none"]
    if reader.flag():
        steps = []
        for _ in range(reader.below(5)):
            step: dict[str, Any] = {"pluginRef": reader.choice(names)}
            if reader.flag():
                step["weight"] = a_value(reader, 0, names)
            steps.append(step)
        document["schedulingProfiles"] = [{"name": "default", "plugins": steps}]
    for _ in range(reader.below(4)):
        document[reader.choice(SECTIONS)] = a_value(reader, 3, names)
    return document


def a_plugin(reader: Reader) -> dict[str, Any]:
    plugin: dict[str, Any] = {"type": reader.choice(TYPES)}
    bits = reader.byte()
    if bits & 1:
        plugin["name"] = reader.choice(TEXTS)
    if bits & 2:
        plugin["parameters"] = {reader.choice(NAMES): a_value(reader, 3, TEXTS) for _ in range(reader.below(4))}
    if bits & 4:
        plugin[reader.choice(NAMES)] = a_value(reader, 2, TEXTS)
    return plugin


def a_value(reader: Reader, depth: int, names: list[str]) -> Any:
    kind = reader.below(7 if depth else 4)
    if kind == 0:
        return reader.choice(names)
    if kind == 1:
        return reader.choice(NUMBERS)
    if kind == 2:
        return reader.choice(TEXTS)
    if kind == 3:
        return reader.text()
    if kind == 4:
        return [a_value(reader, depth - 1, names) for _ in range(reader.below(4))]
    return {reader.choice(NAMES): a_value(reader, depth - 1, names) for _ in range(reader.below(4))}


def as_text(value: Any) -> str:
    """YAML's flow style, which JSON is but for a few numbers. Whole numbers in hexadecimal have no longest form."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {as_text(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_text(entry) for entry in value) + "]"
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int):
        return hex(value) if value > 2**62 else str(value)
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), str(value))

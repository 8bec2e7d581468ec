"""Every plugin type of the data layer that a configuration may name."""

from __future__ import annotations

from headrace.config.plugins import PluginType
from headrace.datalayer.engines import EngineParameters
from headrace.datalayer.kv_settings import KvEventsParameters
from headrace.datalayer.tokenizer import TokenizerParameters

PLUGINS = (
    PluginType("core-metrics-extractor", EngineParameters, EngineParameters.engines),
    PluginType("precise-prefix-cache-producer", KvEventsParameters, KvEventsParameters.settings),
    PluginType("token-producer", TokenizerParameters, TokenizerParameters.settings),
)

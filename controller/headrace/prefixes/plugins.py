"""Every plugin type of the data producers that a configuration may name."""

from __future__ import annotations

from headrace.config.plugins import PluginType
from headrace.prefixes.kv_settings import KvEventsParameters
from headrace.prefixes.tokenizer import TokenizerParameters

PLUGINS = (
    PluginType("precise-prefix-cache-producer", KvEventsParameters, KvEventsParameters.settings),
    PluginType("token-producer", TokenizerParameters, TokenizerParameters.settings),
)

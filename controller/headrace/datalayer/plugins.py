"""Every plugin type of the data layer that a configuration may name."""

from __future__ import annotations

from headrace.config.plugins import PluginType
from headrace.datalayer.engines import EngineParameters

PLUGINS = (
    # Which metrics each kind of server has.
    PluginType("core-metrics-extractor", EngineParameters, EngineParameters.engines),
)

"""Reading an EndpointPickerConfig: from a file or a flag, at the start and again when the file has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from headrace.config.decode import InvalidConfig
from headrace.config.plugins import joined
from headrace.datalayer import plugins as datalayer_plugins
from headrace.datalayer.engines import EngineSet
from headrace.flowcontrol import FlowControlConfig, read_flow_control
from headrace.flowcontrol import plugins as flowcontrol_plugins
from headrace.prefixes import plugins as prefixes_plugins
from headrace.prefixes.kv_settings import KvEventsSettings
from headrace.prefixes.tokenizer import TokenizerSettings
from headrace.scheduling import SchedulingConfig, read_config
from headrace.scheduling import plugins as scheduling_plugins
from headrace.serving.files import Reloading

# Such files have a few kilobytes; YAML's aliases can make much of little.
_MAX_BYTES = 1 << 20
# The kubelet takes about a minute to bring a changed ConfigMap into a Pod: looking more often gains nothing.
POLL_SECONDS = 2.0
# All that a file may name: what the picker loads, and what `lint` and the documentation go by.
PLUGIN_TYPES = joined(
    scheduling_plugins.PLUGINS, flowcontrol_plugins.PLUGINS, datalayer_plugins.PLUGINS, prefixes_plugins.PLUGINS
)


@dataclass(frozen=True)
class PickerConfig:
    """Everything that an EndpointPickerConfig comes to."""

    scheduling: SchedulingConfig = field(default_factory=SchedulingConfig)
    flow_control: FlowControlConfig = field(default_factory=FlowControlConfig)
    engines: EngineSet = field(default_factory=EngineSet)
    # None: servers are not asked what their caches hold.
    kv_events: KvEventsSettings | None = None
    # None: text prompts are not tokenized.
    tokenizer: TokenizerSettings | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the operator should know of how the file was read."""
        idle = self.tokenizer is not None and self.kv_events is None
        own = ("token-producer has no effect without precise-prefix-cache-producer",) if idle else ()
        return self.scheduling.notes + self.flow_control.notes + own


def parse_config(content: bytes | str, source: str) -> PickerConfig:
    """The settings of YAML or JSON text. Raises InvalidConfig, its message naming the source."""
    if len(content) > _MAX_BYTES:
        raise InvalidConfig(source, f"{len(content)} bytes", f"keep it under {_MAX_BYTES} bytes")
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidConfig(source, "", f"it is not YAML: {' '.join(str(error).split())[:300]}") from None
    try:
        return read_document(document)
    except InvalidConfig as error:
        raise InvalidConfig(f"{source}: {error.field}", error.value, error.fix) from None


def read_document(document: Any) -> PickerConfig:
    """The settings of a decoded EndpointPickerConfig. Raises InvalidConfig."""
    scheduling = read_config(document, PLUGIN_TYPES)
    flow_control = read_flow_control(document, scheduling.plugins)
    plugins = scheduling.plugins.values()
    return PickerConfig(
        scheduling,
        flow_control,
        engines=next((plugin for plugin in plugins if isinstance(plugin, EngineSet)), EngineSet()),
        kv_events=next((plugin for plugin in plugins if isinstance(plugin, KvEventsSettings)), None),
        tokenizer=next((plugin for plugin in plugins if isinstance(plugin, TokenizerSettings)), None),
    )


def load_config(path: Path) -> PickerConfig:
    """The settings of a file, YAML or JSON. Raises InvalidConfig, its message naming the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidConfig(str(path), "", f"the file cannot be read: {error.strerror}") from None
    return parse_config(content, str(path))


def watched_config(path: Path, on_bad: Callable[[], None] = lambda: None) -> Reloading[PickerConfig]:
    """The settings of a file that may change. Raises InvalidConfig."""
    return Reloading((path,), partial(load_config, path), "the configuration", on_bad=on_bad)


async def watch_config(
    file: Reloading[PickerConfig], apply: Callable[[PickerConfig], None], *, seconds: float = POLL_SECONDS
) -> None:
    """Apply the file whenever it changes. Never returns."""
    while True:
        await asyncio.sleep(seconds)
        config = file.changed()
        if config is not None:
            apply(config)

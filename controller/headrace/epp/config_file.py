"""Reading an EndpointPickerConfig: from a file or a flag, at the start and again when the file has changed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
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

logger = logging.getLogger(__name__)

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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidConfig(str(path), "", f"the file cannot be read: {error.strerror}") from None


class ConfigFile:
    """A configuration file that is watched. By content: a mounted ConfigMap changes by swapping links, and a file's
    times say little about that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest = b""

    def load(self) -> PickerConfig:
        """The file as it is now, YAML or JSON. Raises InvalidConfig, its message naming the file."""
        content = _read(self.path)
        self._digest = _digest(content)
        return parse_config(content, str(self.path))

    def changed(self) -> PickerConfig | None:
        """The file's settings, if it has other contents than when last looked at.

        Raises InvalidConfig, once for each contents that cannot be used."""
        try:
            content = _read(self.path)
        except InvalidConfig:
            if not self._digest:
                return None
            self._digest = b""
            raise
        digest = _digest(content)
        if digest == self._digest:
            return None
        self._digest = digest
        return parse_config(content, str(self.path))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


async def watch_config(
    file: ConfigFile,
    apply: Callable[[PickerConfig], None],
    *,
    on_bad: Callable[[], None],
    seconds: float = POLL_SECONDS,
) -> None:
    """Take up the file whenever it changes. One that cannot be used is told of, and the settings before it stay."""
    while True:
        await asyncio.sleep(seconds)
        look_at_config(file, apply, on_bad=on_bad)


def look_at_config(file: ConfigFile, apply: Callable[[PickerConfig], None], *, on_bad: Callable[[], None]) -> None:
    """One look of `watch_config`."""
    try:
        config = file.changed()
    except InvalidConfig as error:
        on_bad()
        logger.error("the configuration stays as it was: %s", error)
        return
    if config is not None:
        apply(config)
        logger.info("the configuration has changed", extra={"file": str(file.path), "notes": list(config.notes)})

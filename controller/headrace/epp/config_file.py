"""Reading an EndpointPickerConfig from a file."""

from __future__ import annotations

from pathlib import Path

import yaml

from headrace.scheduling import InvalidConfig, SchedulingConfig, read_config

# Such files have a few kilobytes; YAML's aliases can make much of little.
_MAX_BYTES = 1 << 20


def load_config(path: Path) -> SchedulingConfig:
    """The settings of a YAML or JSON file. Raises InvalidConfig, its message naming the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidConfig(str(path), "", f"the file cannot be read: {error.strerror}") from None
    return read_text(content, str(path))


def read_text(content: bytes, source: str) -> SchedulingConfig:
    """The settings of YAML or JSON text. Raises InvalidConfig, its message naming `source`."""
    if len(content) > _MAX_BYTES:
        raise InvalidConfig(source, f"{len(content)} bytes", f"keep it under {_MAX_BYTES} bytes")
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidConfig(source, "", f"the file is not YAML: {' '.join(str(error).split())[:300]}") from None
    try:
        return read_config(document)
    except InvalidConfig as error:
        raise InvalidConfig(f"{source}: {error.field}", error.value, error.fix) from None

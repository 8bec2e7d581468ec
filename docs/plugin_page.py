"""Write the list of plugin types, docs/plugins.md, from the picker's registry: `python docs/plugin_page.py`.

`--check` writes nothing and fails where the page is not what the registry says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.config.decode import Duration, fields_of
from headrace.config.plugins import PluginType
from headrace.epp.config_file import PLUGIN_TYPES

PAGE = Path(__file__).resolve().parent / "plugins.md"
HEAD = """# Plugin types

<!-- Made of the picker's registry by `make docs`: change that. -->

What an `EndpointPickerConfig` may name. What the parameters mean, and how plugins work together, is in
[configuration.md](configuration.md).

## Supported

| type | other names | parameters and their defaults | parameters without effect |
|---|---|---|---|
"""
IDLE = """
## Accepted

These may be named and change nothing: what they stand for is done in any case, set elsewhere, or not done.

| type | note |
|---|---|
"""
REFUSED = """
## Refused

| type | why, and what to do |
|---|---|
"""


def page(types: Mapping[str, PluginType]) -> str:
    """The whole page."""
    rows = sorted({row.name: row for row in types.values()}.values(), key=lambda row: row.name)
    used = [row for row in rows if row.parameters is not None and not row.refused]
    idle = [row for row in rows if row.parameters is None and not row.refused]
    return "".join(
        (
            HEAD,
            *table((row.name, codes(row.had), parameters(row), codes(row.ignored)) for row in used),
            IDLE,
            *table((row.name, row.note or "done in any case") for row in idle),
            REFUSED,
            *table((row.name, row.refused) for row in rows if row.refused),
        )
    )


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a table, the first cells as code."""
    for name, *cells in rows:
        yield " | ".join((f"| `{name}`", *(cell.replace("|", "\\|") for cell in cells))).rstrip() + " |\n"


def codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def parameters(row: PluginType) -> str:
    """The parameters with their defaults, and what the operator should know."""
    found = [
        f"`{field.encode_name}`" + (", required" if field.required else default(field))
        for field in fields_of(msgspec.inspect.type_info(row.parameters))
    ]
    return "; ".join((*found, *((row.note,) if row.note else ())))


def default(field: Any) -> str:
    """A default as a configuration would have it; nothing where no one value says what leaving it out means."""
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, bool):
        shown = str(value).lower()
    elif isinstance(value, Duration):
        shown = f"{value:g}s"
    elif isinstance(value, str | int | float):
        shown = f"{value:.15g}" if isinstance(value, float) else str(value)
    else:
        shown = ""
    return f" `{shown}`" if shown else ""


def main(arguments: list[str]) -> int:
    wanted = page(PLUGIN_TYPES)
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    if "--check" in arguments:
        print("docs/plugins.md is not what the registry says. Fix: make docs", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The registry of plugin types: what a configuration may name, and what it comes to.

Each wing has its rows, one a plugin; whoever reads configurations joins those it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.config.decode import InvalidConfig, Parameters, decode


def _itself(parameters: Any) -> Any:
    return parameters


def _nothing(parameters: Any) -> None:
    return None


@dataclass(frozen=True)
class PluginType:
    """A plugin type. `parameters` is decoded, and `make` makes the plugin of it: by default it is the plugin.

    `ignored` are parameters that mean something upstream and nothing here. `had` are other names that upstream has or
    had for it. `note` is what the operator should know of its use; `refused` why it is not supported, and what to do
    instead. A `name` that ends with * stands for all that begin so."""

    name: str
    parameters: type | None = Parameters
    make: Callable[[Any], object] = _itself
    ignored: tuple[str, ...] = ()
    had: tuple[str, ...] = ()
    note: str = ""
    refused: str = ""

    def read(self, values: object, at: str) -> Any:
        """The decoded parameters; None where they are not looked at. Raises InvalidConfig."""
        if not isinstance(values, Mapping):
            raise InvalidConfig(at, values, "give an object")
        if self.parameters is None:
            return None
        return decode({k: v for k, v in values.items() if k not in self.ignored}, self.parameters, at)


def plugin(made: Any, *made_by: Any, **more: Any) -> PluginType:
    """A type that is a class with a `type_name`, whose parameters are its fields."""
    return PluginType(made.type_name, made, *made_by, **more)


def built_in(name: str, note: str = "") -> PluginType:
    """A type whose work is done in any case."""
    return PluginType(name, None, _nothing, note=note)


def refused(why: str, *names: str) -> tuple[PluginType, ...]:
    """Types that are known and not done here."""
    return tuple(PluginType(name, None, refused=why) for name in names)


def accepted(name: str, parameters: type = Parameters, **more: Any) -> PluginType:
    """A type whose parameters are read, and that is no plugin of its own."""
    return PluginType(name, parameters, _nothing, **more)


def joined(*wings: Iterable[PluginType]) -> Mapping[str, PluginType]:
    """One registry of several wings' rows, by name, the names that a type had included. Raises ValueError for a name
    that stands in two rows."""
    found: dict[str, PluginType] = {}
    for row in (row for rows in wings for row in rows):
        for name in (row.name, *row.had):
            if name in found:
                raise ValueError(f"plugin type {name} is there twice")
            found[name] = row
    return found


def known(types: Mapping[str, PluginType]) -> tuple[str, ...]:
    """The names that a configuration may use, sorted."""
    return tuple(sorted(name for name, row in types.items() if not row.refused))


def find(types: Mapping[str, PluginType], name: str, at: str) -> PluginType:
    """The row of a name. Raises InvalidConfig for one that is unknown or refused."""
    row = types.get(name) or next(
        (row for row in types.values() if row.name.endswith("*") and name.startswith(row.name[:-1])), None
    )
    if row is None:
        raise InvalidConfig(at, name, f"unknown plugin type; known: {', '.join(known(types))}")
    if row.refused:
        raise InvalidConfig(at, name, row.refused)
    return row

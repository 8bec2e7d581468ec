"""The registry of plugin types: one row a type, and every reader sees the joined one."""

import re
from pathlib import Path

import pytest

from headrace.config.decode import InvalidConfig, Parameters
from headrace.config.plugins import PluginType, built_in, find, joined, known, refused
from headrace.epp.config_file import PLUGIN_TYPES

ROOT = Path(__file__).parents[3]
ROWS = (PluginType("new", had=("old",)), built_in("done", "a note"), *refused("use new", "gone", "far-*"))


def test_a_type_is_found_by_every_name_it_has_or_had() -> None:
    types = joined(ROWS)
    assert find(types, "old", "at") is find(types, "new", "at")
    assert known(types) == ("done", "new", "old")


@pytest.mark.parametrize(("name", "fix"), [("gone", "use new"), ("far-away", "use new"), ("x", "known: done")])
def test_what_is_refused_or_unknown_says_why(name: str, fix: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        find(joined(ROWS), name, "plugins[0].type")
    assert (caught.value.field, caught.value.value) == ("plugins[0].type", name)
    assert fix in caught.value.fix


def test_a_name_stands_in_one_row() -> None:
    with pytest.raises(ValueError, match="old"):
        joined(ROWS, [PluginType("old")])


def test_parameters_are_read_but_where_they_are_ignored() -> None:
    row = PluginType("x", ignored=("theirs",))
    assert row.read({"theirs": 1}, "at") == Parameters()
    with pytest.raises(InvalidConfig):
        row.read({"other": 1}, "at")
    assert built_in("y").read({"anything": 1}, "at") is None


def test_the_documentation_names_every_type_that_is_configured() -> None:
    """Those whose work is done in any case have no parameters to tell of."""
    named = set(re.findall(r"`([a-z-]+)`", (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")))
    rows = {row.name: row for row in PLUGIN_TYPES.values()}
    assert {name for name, row in rows.items() if row.parameters is not None and name not in named} == set()

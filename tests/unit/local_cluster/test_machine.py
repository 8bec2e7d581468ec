"""What the tests of a whole life compare a machine by: a rule in a chain that was there before must be seen."""

from __future__ import annotations

from pathlib import Path

from ...full.machine import cgroups, rules

RULES = """table ip nat {
\tchain POSTROUTING {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr 10.0.0.0/8 counter packets 3 bytes 180 masquerade
\t}
}
"""


def test_a_rule_is_what_it_is_whatever_it_counted() -> None:
    assert rules(RULES) == rules(RULES.replace("packets 3 bytes 180", "packets 4 bytes 240"))
    more = RULES.replace("masquerade\n", "masquerade\n\t\tcounter packets 0 bytes 0 accept\n")
    assert len(rules(more) - rules(RULES)) == 1


def test_groups_are_found_one_level_below_each_hierarchy(tmp_path: Path) -> None:
    for path in ("v1/memory/headrace/n1", "v1/cpu/docker", "v2/headrace/n1", "v2/init"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "v2/cgroup.controllers").touch()
    assert cgroups(tmp_path / "v1") == {str(tmp_path / "v1/memory/headrace"), str(tmp_path / "v1/cpu/docker")}
    assert cgroups(tmp_path / "v2") == {str(tmp_path / "v2/headrace"), str(tmp_path / "v2/init")}

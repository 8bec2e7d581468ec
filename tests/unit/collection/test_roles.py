"""Every role keeps the same promises: documented defaults, prefixed variables, tags, a README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


@pytest.fixture(params=ROLES, ids=lambda path: path.name)
def role(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def squeezed(value: Any) -> Any:
    """A default with its kinds told apart, as 1 is not true, and without blanks where Jinja does not mind them."""
    if isinstance(value, dict):
        return {name: squeezed(one) for name, one in value.items()}
    if isinstance(value, list):
        return [squeezed(one) for one in value]
    if isinstance(value, str) and "{{" in value:
        return "".join(value.split())
    return type(value), value


def drift(defaults: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Variables whose argument spec states another default than they have, or none."""
    none = object()
    return [name for name, value in defaults.items() if squeezed(options[name].get("default", none)) != squeezed(value)]


def test_defaults_and_argument_specs_name_the_same_variables(role: Path) -> None:
    defaults = set(load(role / "defaults/main.yml") or {})
    options = load(role / "meta/argument_specs.yml")["argument_specs"]["main"].get("options", {})
    required = {name for name, option in options.items() if option.get("required")}
    assert defaults == set(options) - required
    assert not defaults & required, "a required variable has no default"


def test_defaults_are_what_the_argument_specs_say(role: Path) -> None:
    defaults = load(role / "defaults/main.yml") or {}
    options = load(role / "meta/argument_specs.yml")["argument_specs"]["main"].get("options", {})
    assert drift(defaults, options) == []
    for name in defaults:
        assert options[name].get("description"), name


@pytest.mark.parametrize(
    ("default", "stated"),
    [
        ("monitoring", "observability"),
        (["a"], ["a", "b"]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}),
        ("{{ a }}", "{{ b }}"),
        (1, True),
        ("1", 1),
    ],
)
def test_a_default_that_the_argument_specs_state_otherwise_is_found(default: Any, stated: Any) -> None:
    assert drift({"name": default}, {"name": {"default": stated}}) == ["name"]
    assert drift({"name": default}, {"name": {}}) == ["name"]
    assert drift({"name": default}, {"name": {"default": default}}) == []
    assert drift({"name": "{{ a\n| b }}"}, {"name": {"default": "{{ a | b }}"}}) == []


def test_every_default_has_a_comment(role: Path) -> None:
    lines = (role / "defaults/main.yml").read_text().splitlines() if (role / "defaults/main.yml").exists() else []
    for number, line in enumerate(lines):
        if re.match(r"[a-z_]+:", line):
            assert lines[number - 1].startswith("#") or re.match(r"[a-z_]+:", lines[number - 1]), line


def test_variables_carry_the_roles_name(role: Path) -> None:
    assert all(name.startswith(f"{role.name}_") for name in load(role / "defaults/main.yml") or {})
    internal = load(role / "vars/main.yml") or {}
    assert all(name.startswith((f"__{role.name}_", f"{role.name}_")) for name in internal)


def test_the_readme_has_a_runnable_example(role: Path) -> None:
    readme = (role / "README.md").read_text()
    assert f"headrace.inference.{role.name}" in readme


def test_the_table_of_contents_is_tagged(role: Path) -> None:
    tasks = load(role / "tasks/main.yml")
    assert len(tasks) <= 14, "main.yml is a table of contents"
    for task in tasks:
        tags = task.get("tags", [])
        tags = [tags] if isinstance(tags, str) else tags
        assert role.name in tags or "always" in tags, task["name"]


def test_misspelt_variables_are_looked_for_first(role: Path) -> None:
    """In somebody else's playbook as well, which runs no playbook of ours."""
    entry = role / "tasks/preflight.yml" if (role / "tasks/preflight.yml").exists() else role / "tasks/main.yml"
    assert load(entry)[0]["inference_preflight"] == {"role": role.name}


def test_whatever_a_role_makes_teardown_knows() -> None:
    """By the kinds in the templates of roles that work in a cluster; the local cluster goes whole."""
    variables = load(ROOT / "playbooks/vars/teardown.yml")
    known = {one["kind"] for one in variables["teardown_kinds"]}
    # Namespaces, volumes, nodes' labels and CRDs have tasks of their own, pools and the users' objects go by name.
    known |= {"Namespace", "PersistentVolumeClaim", "Node", "CustomResourceDefinition", "InferencePool"}
    made = set()
    for role in ROLES:
        if role.name in ("local_cluster", "container_images"):
            continue
        for path in [*role.glob("templates/*.yaml.j2"), *role.glob("tasks/*.yml")]:
            for match in re.finditer(r"^( *)kind: ([A-Z]\w+)$", path.read_text(), re.M):
                # At the top of a document, or of a task's definition.
                if len(match[1]) in (0, 6):
                    made.add(match[2])
    assert "HTTPRoute" in made
    assert made - known == set()


def test_what_set_filters_give_is_sorted(role: Path) -> None:
    # Their order is another in every process: messages and loops would change from run to run.
    for path in sorted(path for folder in ("tasks", "vars") for path in (role / folder).glob("*.yml")):
        text = path.read_text()
        for match in re.finditer(r"\| (?:difference|intersect|union|symmetric_difference)\(", text):
            rest = text[match.end() :]
            depth, end = 1, 0
            while depth:
                depth += {"(": 1, ")": -1}.get(rest[end], 0)
                end += 1
            assert re.match(r"\s*\)*\s*(?:\| sort\b|\| length\b|== \[\])", rest[end:]), f"{path.name}: {rest[:80]}"


@pytest.mark.parametrize("playbook", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.name)
def test_helm_asks_the_cluster_that_the_other_modules_ask(playbook: Path) -> None:
    """Without these Helm takes the kubeconfig's current context, whichever cluster was named."""
    for play in load(playbook):
        defaults = play.get("module_defaults") or {}
        assert defaults.get("group/kubernetes.core.helm") == defaults.get("group/kubernetes.core.k8s")


@pytest.mark.parametrize(("inventory", "software"), [("gke", "none"), ("eks", "operator"), ("aks", "operator")])
def test_an_inventory_has_exactly_one_device_plugin(inventory: str, software: str) -> None:
    """GKE brings its own. Without one no GPU is ever allocatable."""
    stack = load(ROOT / "inventories" / inventory / "group_vars/all/stack.yml")
    assert stack.get("gpu_node_pool_software", "none") == software

"""Refuse wrong input from the inventory's variables, before anything is applied.

An action plugin and no module, because it looks at variables as the inventory has them: which names there are, and
what each says, also those that mention facts a later play sets. The checks are pure functions of those values: here
those that follow from the roles' argument specs, in plugin_utils/stack_checks.py those of a stack that fits together.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

ROOT = Path(__file__).resolve().parents[2]


def _beside(name: str) -> Any:
    """A file of plugin_utils, by its path: in a checkout Ansible has no name for it."""
    spec = importlib.util.spec_from_file_location(f"headrace_{name}", ROOT / "plugins" / "plugin_utils" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stack_checks = _beside("stack_checks")
UNRESOLVED = stack_checks.UNRESOLVED
Values = Mapping[str, Any]


# ---- what may be set -------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    # With libyaml, where PyYAML has it: every role looks at these files.
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def load_specs(root: Path, only: str = "") -> dict[str, dict[str, Any]]:
    """Role name (or `headrace`, for the variables all share) -> its options, from the argument specs.

    With `only`, the other roles are named and not read."""
    specs = {}
    for path in sorted((root / "roles").glob("*/meta/argument_specs.yml")):
        role = path.parents[1].name
        specs[role] = (_read(path)["argument_specs"]["main"].get("options") or {}) if only in ("", role) else {}
    specs["headrace"] = _read(root / "meta" / "inventory_variables.yml")["options"]
    if not only:
        # The inventory-wide name of the role's own list: what is wrong in an entry is told by either name.
        specs["headrace"]["gpu_node_pools"]["options"] = specs["gpu_node_pool"]["gpu_node_pool_pools"]["options"]
    return specs


def load_facts(root: Path) -> set[str]:
    """Names that roles set for those after them: no variables of an inventory, but no mistakes either."""
    return set(_read(root / "meta" / "inventory_variables.yml")["facts"])


def load_removed(root: Path) -> dict[str, str]:
    """Names that variables had in former versions -> the version and what to set instead."""
    return dict(_read(root / "meta" / "inventory_variables.yml")["removed"] or {})


def is_ours(name: str, specs: Mapping[str, Any]) -> bool:
    """Whether a variable's name claims to be one of a role's: `inference_pool_x`, and `inference_pools` as well."""
    return any(re.match(rf"{role}(s?_|s?$)", name) for role in specs)


# ---- the checks ------------------------------------------------------------------------------------------------------


def unknown_variables(
    names: Iterable[str],
    specs: Mapping[str, Mapping[str, Any]],
    facts: set[str],
    removed: Mapping[str, str] = MappingProxyType({}),
    only: str = "",
) -> Iterator[str]:
    """Variables that carry a role's prefix, `only`'s where it is given, and that no role knows."""
    known = {name for options in specs.values() for name in options} | facts
    for name in sorted(names):
        if name in known or not is_ours(name, specs):
            continue
        role = max((role for role in specs if name.startswith(role)), key=len)
        if only and role != only:
            continue
        if name in removed:
            yield f"{name}: removed in {removed[name]}"
            continue
        # Within the role without its prefix, which would make everything look alike; then anywhere.
        own = {option.removeprefix(f"{role}_"): option for option in specs[role]}
        near = difflib.get_close_matches(name.removeprefix(f"{role}_"), own, n=1, cutoff=0.6)
        close = [own[key] for key in near] or difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        place = f"roles/{role}/README.md" if role != "headrace" else "meta/inventory_variables.yml"
        fix = f"did you mean {close[0]}?" if close else f"see {place}, or remove it."
        yield f"{name}: no role knows this variable. Fix: {fix}"


def unknown_keys(name: str, value: Any, option: Mapping[str, Any]) -> Iterator[str]:
    """Keys of nested values that the spec has not got, with the nearest that it has."""
    options = option.get("options")
    if not options:
        return
    for at, entry in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(entry, dict):
            continue
        here = f"{name}[{entry.get('name', at)}]" if isinstance(value, list) else name
        for key in entry:
            if key not in options:
                close = difflib.get_close_matches(str(key), list(options), n=1, cutoff=0.5)
                fix = f"did you mean {close[0]}?" if close else f"its keys are {', '.join(sorted(options))}."
                yield f"{here}.{key}: unknown key. Fix: {fix}"
            else:
                yield from unknown_keys(f"{here}.{key}", entry[key], options[key])


def wrong_types(values: Values, specs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What the roles' own argument specs refuse, before a role runs."""
    for options in specs.values():
        given = {name: value for name, value in values.items() if name in options}
        for name, value in given.items():
            yield from unknown_keys(name, value, options[name])
        spec = {name: _without_unknown(options[name]) for name in given}
        for message in (
            ArgumentSpecValidator(spec)
            .validate({name: _known(given[name], options[name]) for name in given})
            .error_messages
        ):
            yield f"{message}. Fix: see the variable's description in the role's README.md."


def _without_unknown(option: Mapping[str, Any]) -> dict[str, Any]:
    """The option as the validator takes it: a default is the role's business."""
    kept = {
        key: value for key, value in option.items() if key in ("type", "elements", "choices", "required", "options")
    }
    if "options" in kept:
        kept["options"] = {name: _without_unknown(inner) for name, inner in kept["options"].items()}
    return kept


def _known(value: Any, option: Mapping[str, Any]) -> Any:
    """The value without keys that `unknown_keys` has named already."""
    options = option.get("options")
    if not options:
        return value
    if isinstance(value, list):
        return [_known(entry, option) for entry in value]
    if isinstance(value, dict):
        return {key: _known(inner, options[key]) for key, inner in value.items() if key in options}
    return value


def problems(
    values: Values,
    names: Iterable[str],
    specs: Mapping[str, Mapping[str, Any]],
    facts: set[str],
    removed: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """All of the above, for an inventory."""
    found = [
        *unknown_variables(names, specs, facts, removed),
        *stack_checks.stack_problems(values),
        *wrong_types(values, specs),
    ]
    return list(dict.fromkeys(found))


# ---- what there is ---------------------------------------------------------------------------------------------------


def summary(values: Values) -> list[str]:
    """What the inventory asks for, a line for each kind of thing; what is not there is said as well."""
    replicas = values.get("vllm_model_server_replicas", 1)
    servers = []
    for one in _entries(values, "vllm_model_server_groups"):
        scaled = one.get("autoscaling", values.get("vllm_model_server_autoscaling"))
        count = "scaled" if scaled else f"replicas: {one.get('replicas', replicas)}"
        servers.append(f"{_named(one)} ({count})")
    nodes = _entries(values, "gpu_node_pools") or _entries(values, "gpu_node_pool_pools")
    kinds = {
        "GPU node pools": [_named(one) for one in nodes],
        "Model servers": servers,
        "Pools": [_named(one) for one in _entries(values, "inference_pool_pools")],
        "Gateways": [_named(one) for one in _entries(values, "inference_gateway_gateways")],
        "Routes": [_named(one) for one in _entries(values, "inference_gateway_routes")],
    }
    return [f"{kind}: {', '.join(names) or 'none'}" for kind, names in kinds.items()]


def _entries(values: Values, name: str) -> list[Mapping[str, Any]]:
    found = values.get(name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _named(entry: Mapping[str, Any]) -> str:
    name = str(entry.get("name", "?"))
    return f"{entry['namespace']}/{name}" if entry.get("namespace") else name


# ---- Ansible ---------------------------------------------------------------------------------------------------------


class ActionModule(ActionBase):
    """See plugins/modules/inference_preflight.py for what users read."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fail with every problem at once, or tell how many variables were looked at."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        facts, removed = load_facts(ROOT), load_removed(ROOT)
        role = str(self._task.args.get("role") or "")
        specs = load_specs(ROOT, role)
        names = [name for name in variables if is_ours(name, specs)]
        if role:
            # Its argument specs are checked by Ansible itself.
            found = list(unknown_variables(names, specs, facts, removed, role))
            if found:
                # The right name may be another role's.
                found = list(unknown_variables(names, load_specs(ROOT), facts, removed, role))
        else:
            values = {name: value for name in names if (value := self._resolve(variables[name])) is not UNRESOLVED}
            found = problems(values, names, specs, facts, removed)
            result["summary"] = summary(values)
        result.update(changed=False, problems=found)
        if found:
            count = "one problem" if len(found) == 1 else f"{len(found)} problems"
            whose = f"Role {role}" if role else "The inventory"
            result.update(
                failed=True,
                msg="\n".join([f"{whose} has {count}; nothing was applied.", *(f"- {one}" for one in found)]),
            )
        else:
            result["msg"] = f"{len(names)} variables looked at: nothing is wrong."
        return result

    def _resolve(self, value: Any) -> Any:
        """The value with its templates filled in; what needs facts of later plays is left out, the rest stays."""
        try:
            return _plain(self._templar.template(value))
        except AnsibleError:
            pass
        if isinstance(value, Mapping):
            inner = {key: self._resolve(item) for key, item in value.items()}
            return {key: item for key, item in inner.items() if item is not UNRESOLVED}
        if isinstance(value, list):
            return [item for entry in value if (item := self._resolve(entry)) is not UNRESOLVED]
        return UNRESOLVED


def _plain(value: Any) -> Any:
    """Plain dicts and lists, of whatever Ansible wraps values in."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value

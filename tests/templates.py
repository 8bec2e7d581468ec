"""A role's templates, rendered as the role does it, without Ansible's process.

Ansible's plugins must be loaded before: `ansible.plugins.loader.init_plugin_loader()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template


def render(repository: Path, template: str, variables: dict[str, Any], loop: str) -> list[Any]:
    """The objects that a template makes, for each entry of the list named `loop`."""
    role, name = template.split("/", 1)
    folder = repository / "roles" / role
    loader = DataLoader()
    loader.set_basedir(str(folder))
    known: dict[str, Any] = {"role_path": str(folder), "ansible_check_mode": False}
    for part in ("defaults", "vars"):
        if (folder / part / "main.yml").exists():
            known |= loader.load_from_file(str(folder / part / "main.yml"), trusted_as_template=True) or {}
    known |= variables
    # As a lookup in the role would: template files of the role by their short name.
    known["ansible_search_path"] = [str(folder)]
    text = trust_as_template(f"{{{{ lookup('ansible.builtin.template', '{folder / 'templates' / name}') }}}}")
    items = Templar(loader, variables=known).template(trust_as_template(f"{{{{ {loop} }}}}")) if loop else [{}]
    made: list[Any] = []
    for item in items:
        rendered = Templar(loader, variables={**known, "item": item}).template(text)
        # What is JSON alone is a value already.
        made += [rendered] if not isinstance(rendered, str) else yaml.safe_load_all(rendered)
    return [one for one in made if one]

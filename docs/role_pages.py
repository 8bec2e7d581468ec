"""Write the roles' reference pages, docs/roles/*.md, from their argument specs: `python docs/role_pages.py`.

A page says what `ansible-doc -t role` says, where people look for it. `--check` writes nothing and fails where a page
is not what the argument specs say.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
GENERATED = "<!-- Made of the role's argument specs by `make docs`: change those. -->"


def pages(root: Path) -> dict[Path, str]:
    """Each page by its path: one for every role, and an index."""
    found = {}
    index = []
    for path in sorted((root / "roles").glob("*/meta/argument_specs.yml")):
        role = path.parents[1].name
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]
        found[root / "docs" / "roles" / f"{role}.md"] = page(role, spec)
        index.append(f"- [`{role}`]({role}.md): {sentence(spec['short_description'])}")
    lines = [
        "# Roles",
        "",
        GENERATED,
        "",
        "Every variable of every role. What a role is for is in its README.",
        "",
        *index,
    ]
    found[root / "docs" / "roles" / "README.md"] = "\n".join(lines) + "\n"
    return found


def page(role: str, spec: Mapping[str, Any]) -> str:
    """The page of one role."""
    lines = [
        f"# {role}",
        "",
        GENERATED,
        "",
        f"{sentence(spec['short_description'])} ([README](../../roles/{role}/README.md))",
        "",
    ]
    description = spec.get("description") or []
    lines += [markup(one) for one in ([description] if isinstance(description, str) else description)]
    options = spec.get("options") or {}
    if not options:
        lines += ["", "It has no variables."]
    for name, option in options.items():
        lines += ["", f"## `{name}`", "", facts(option), "", markup(text(option))]
        rows = list(keys(option.get("options") or {}))
        if rows:
            lines += ["", "| key | type | default | what it is |", "|---|---|---|---|", *rows]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def facts(option: Mapping[str, Any]) -> str:
    """Type, default and choices in a line."""
    kind = option.get("type", "str")
    if "elements" in option:
        kind += f" of {option['elements']}"
    known = [kind, "required" if option.get("required") else f"default {value(option.get('default'))}"]
    if "choices" in option:
        known.append("one of " + ", ".join(value(choice) for choice in option["choices"]))
    return ", ".join(known)


def keys(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The rows of an entry's keys, those of entries within it after them."""
    for name, option in options.items():
        default = "required" if option.get("required") else value(option["default"]) if "default" in option else ""
        what = markup(text(option))
        if "choices" in option:
            what += " One of " + ", ".join(value(choice) for choice in option["choices"]) + "."
        cells = [f"`{prefix}{name}`", option.get("type", "str"), default, what]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield from keys(option.get("options") or {}, f"{prefix}{name}.")


def text(option: Mapping[str, Any]) -> str:
    """A description, which is a text or a list of paragraphs."""
    description = option["description"]
    return description if isinstance(description, str) else " ".join(description)


def value(content: Any) -> str:
    """A value as YAML in one line would have it."""
    if content is None:
        return "none"
    return f"`{content}`" if isinstance(content, str) and content else f"`{json.dumps(content)}`"


def sentence(content: str) -> str:
    return content.rstrip(".") + "."


def markup(content: str) -> str:
    """Ansible's C(...), V(...) and O(...) as code."""
    return re.sub(r"\b[CVO]\(([^)]*)\)", r"`\1`", content)


def main(arguments: list[str]) -> int:
    wanted = pages(ROOT)
    stale = [
        path for path, content in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    stale += [path for path in (ROOT / "docs" / "roles").glob("*.md") if path not in wanted]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the argument specs say. Fix: make docs", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        if path in wanted:
            path.write_text(wanted[path], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

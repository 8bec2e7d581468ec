"""The argument specs of other collections' modules, read from their sources: importing them wants libraries."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import ansible_collections

COLLECTIONS = Path(next(iter(ansible_collections.__path__)))


class Unreadable(Exception):  # noqa: N818
    """A spec that is more than literals and dict(...)."""


def value(node: ast.expr, names: dict[str, ast.expr]) -> Any:
    """A literal, or dict() of such."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: value(keyword.value, names) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {value(key, names): value(item, names) for key, item in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List | ast.Tuple):
        return [value(item, names) for item in node.elts]
    if isinstance(node, ast.Name) and node.id in names:
        return value(names[node.id], names)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise Unreadable(ast.unparse(node)) from error


RULES = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")


def parse(name: str) -> ast.Module:
    """The source of a module, given by its full name."""
    namespace, collection, module = name.split(".")
    return ast.parse((COLLECTIONS / namespace / collection / "plugins/modules" / f"{module}.py").read_text())


def rules(name: str) -> dict[str, Any]:
    """What a module says of arguments that go together or do not, as ArgumentSpecValidator takes it."""
    keywords = [node for node in ast.walk(parse(name)) if isinstance(node, ast.keyword)]
    return {keyword.arg: value(keyword.value, {}) for keyword in keywords if keyword.arg in RULES}


def spec(name: str) -> dict[str, Any]:
    """The argument spec in the source of a module, given by its full name."""
    tree = parse(name)
    names: dict[str, ast.expr] = {}
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name):
                names[target.id] = node.value
            if isinstance(target, ast.Attribute) and target.attr == "module_arg_spec":
                found.append(node.value)
        if isinstance(node, ast.keyword) and node.arg == "argument_spec":
            found.append(node.value)
    answer = value(found[0], names)
    assert isinstance(answer, dict)
    return answer

"""Each name on the wire is written once: in headrace.protocol (the pools' own groups in core)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import headrace
from headrace.core import GA_GROUP
from headrace.protocol import http, objects, rpc

ROOT = Path(headrace.__file__).parent
# What such names look like, for those that protocol does not have yet.
SHAPES = re.compile(
    r"x-[a-z0-9-]+"  # headers
    r"|:[a-z]+"  # pseudo headers
    r"|([a-z0-9-]+\.)+(io|ai|dev|com|org)/(?!v[0-9]|\w+-controller$)[A-Za-z0-9.=-]+"  # annotations, labels, conditions
    r"|envoy\.lb[a-z._]*"  # filter metadata
    r"|([a-z0-9_]+\.)+(v[0-9]+\.)?[A-Z][A-Za-z]+(Service|Processor|Extension|Health|Peers)"  # gRPC services
)
# The device plugin's resource is an argument's example; appProtocol's value is the InferencePool API's.
ELSEWHERE = {"nvidia.com/gpu": "simulator/gpu_command.py", "kubernetes.io/h2c": "core/pool.py"}


def texts(tree: ast.AST) -> Iterator[str]:
    """The text constants of a module that are no docstrings."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in bare:
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode("latin-1")


def written() -> Iterator[tuple[str, str]]:
    """The module and the value of each text constant in the controller."""
    for path in sorted(ROOT.rglob("*.py")):
        if not path.stem.endswith("_pb2"):
            module = path.relative_to(ROOT).as_posix()
            yield from ((module, text) for text in texts(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Every text that protocol's constants hold, but those that are ordinary words too."""
    found: set[str] = set()
    for module in (http, objects, rpc):
        for name, value in vars(module).items():
            if name.isupper():
                found.update([value] if isinstance(value, str) else value)
    return found - {GA_GROUP, objects.PICKER_ANNOTATION_OURS, http.HOST, http.ACCEPT}


def test_no_name_of_protocol_is_written_elsewhere(names: set[str]) -> None:
    groups = (f"{GA_GROUP}/", f"{objects.GATEWAY_GROUP}/", f"{objects.COORDINATION_GROUP}/")
    again = [
        (module, text)
        for module, text in written()
        if (text in names or text.startswith(groups)) and not module.startswith("protocol/")
    ]
    assert again == []


def test_no_name_of_protocol_is_written_twice_in_it(names: set[str]) -> None:
    inside = [text for module, text in written() if module.startswith("protocol/") and text in names]
    assert sorted(inside) == sorted(set(inside))
    assert len(inside) > 50


def test_nothing_that_looks_like_such_a_name_is_written_elsewhere() -> None:
    strays = [
        (module, text)
        for module, text in written()
        if SHAPES.fullmatch(text) and not module.startswith("protocol/") and ELSEWHERE.get(text) != module
    ]
    assert strays == []

"""Manifests as they stand in files: several YAML documents each, with the line of every field."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from headrace.core import fields
from headrace.core.fields import mapping

_MAX_BYTES = 16 << 20
_STEP = re.compile(r"\[([^\]]*)\]|([^.\[\]]+)")


class UnreadableFile(ValueError):  # noqa: N818
    """A file that is no YAML, or cannot be read; the message names file, line and fix."""


class _Loader(yaml.SafeLoader):
    """Reads plain values. Timestamps stay text, as in Kubernetes."""


_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in resolvers if entry[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class Document:
    """One document of a file. `text` is how it stands there, `---` included; `value` what it says, None if nothing."""

    source: str
    line: int
    text: str
    value: Any
    node: Any = field(default=None, repr=False, compare=False)

    @property
    def kind(self) -> str:
        """The object's kind; "" for what is no object."""
        return str(mapping(self.value).get("kind") or "")

    @property
    def group(self) -> str:
        """The object's API group; "" for the core group."""
        return fields.text(mapping(self.value).get("apiVersion")).rpartition("/")[0]

    @property
    def name(self) -> str:
        """The object's name, "" without one."""
        return str(mapping(mapping(self.value).get("metadata")).get("name") or "")

    @property
    def namespace(self) -> str:
        """Its namespace; the default one where it names none, as kubectl does without -n."""
        return str(mapping(mapping(self.value).get("metadata")).get("namespace") or "default")

    def line_of(self, path: str) -> int:
        """The line in the file of a field like `spec.targetPorts[0].number`, or of what is nearest above it."""
        node, line = self.node, self.line
        for bracket, plain in _STEP.findall(path):
            node = _child(node, bracket or plain)
            if node is None:
                break
            line = self.line + node[0].start_mark.line
            node = node[1]
        return line


def read_files(paths: Sequence[str]) -> list[Document]:
    """The documents of files, `-` for standard input. The items of a List are documents of their own.

    Raises UnreadableFile."""
    return [document for path in paths for document in read_text(_content(path), path)]


def read_text(text: str, source: str) -> list[Document]:
    """The documents of YAML text. Raises UnreadableFile."""
    try:
        starts: list[Any] = [
            event.start_mark for event in yaml.parse(text, Loader=_Loader) if isinstance(event, yaml.DocumentStartEvent)
        ]
        found = []
        for number, mark in enumerate(starts):
            begin = mark.index if number else 0
            end = starts[number + 1].index if number + 1 < len(starts) else len(text)
            part = text[begin:end]
            node = yaml.compose(part, Loader=_Loader)
            line = 1 + (mark.line if number else 0)
            found.append(Document(source, line, part, yaml.load(part, Loader=_Loader), node))
        return found
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark is not None else source
        problem = getattr(error, "problem", None) or " ".join(str(error).split())[:200]
        raise UnreadableFile(f"{where}: this is not YAML: {problem}") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"{source}: this is not YAML: {error}") from None


def items(documents: Sequence[Document]) -> Iterator[Document]:
    """The objects of documents: a List gives its items."""
    for document in documents:
        listed = document.value.get("items") if document.kind == "List" else None
        if not isinstance(listed, list):
            yield document
            continue
        nodes = _child(document.node, "items")
        for number, value in enumerate(listed):
            inner = _child(nodes[1], str(number)) if nodes is not None else None
            line = document.line + (inner[0].start_mark.line if inner is not None else 0)
            yield Document(document.source, line, "", value)


def duplicate_keys(document: Document) -> list[tuple[str, int]]:
    """Keys that a mapping has twice, with their lines: the last one counts, silently."""
    found: list[tuple[str, int]] = []

    def walk(node: Any) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen and key.value != "<<":
                        found.append((key.value, document.line + key.start_mark.line))
                    seen.add(key.value)
                walk(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                walk(value)

    walk(document.node)
    return found


def _child(node: Any, step: str) -> tuple[Any, Any] | None:
    """The key and value nodes of a step."""
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if getattr(key, "value", None) == step), None)
    if isinstance(node, yaml.SequenceNode) and step.isascii() and step.isdigit() and int(step) < len(node.value):
        return node.value[int(step)], node.value[int(step)]
    return None


def _content(path: str) -> str:
    try:
        content = sys.stdin.buffer.read(_MAX_BYTES + 1) if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{path}: the file cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise UnreadableFile(f"{path}: the file is over {_MAX_BYTES} bytes; give manifests only")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UnreadableFile(f"{path}: the file is not UTF-8 text") from None

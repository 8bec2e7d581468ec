"""What a check of manifests finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import partial
from typing import Any

from msgspec import Struct

from headrace.cli.pool.manifests import Document
from headrace.core.invalid import InvalidField, shown


class Severity(StrEnum):
    """ERROR does not work. WARNING works here and perhaps not elsewhere, or not as it looks. INFO is good to know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Finding(Struct, frozen=True):
    """One thing about one field. `path` is "" for the whole object; `message` says what is wrong and what to do."""

    severity: Severity
    source: str
    line: int
    subject: str
    path: str
    message: str

    def as_text(self) -> str:
        """One line, as compilers write it."""
        parts = [f"{self.source}:{self.line}: {self.severity.value}", self.subject, self.path, self.message]
        return ": ".join(part for part in parts if part)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "severity": self.severity.value,
            "file": self.source,
            "line": self.line,
            "object": self.subject,
            "field": self.path,
            "message": self.message,
        }


def finding(severity: Severity, document: Document, path: str, message: str) -> Finding:
    """A finding about a field of a document."""
    subject = f"{document.kind} {document.namespace}/{document.name}" if document.kind else ""
    return Finding(severity, document.source, document.line_of(path), subject, path, message)


error = partial(finding, Severity.ERROR)
warning = partial(finding, Severity.WARNING)
info = partial(finding, Severity.INFO)


def invalid(document: Document, refusal: InvalidField, at: str = "") -> Finding:
    """A field that cannot be used. `at` is where the value is that the refusal is about."""
    where = f"{at}: {refusal.field}" if at else refusal.field
    return error(document, where, f"{shown(refusal.value)}: {refusal.fix}")


def in_order(found: Iterable[Finding]) -> list[Finding]:
    """Each once, by file and line; the files in the order in which they came."""
    once = list(dict.fromkeys(found))
    files = list(dict.fromkeys(one.source for one in once))
    return sorted(once, key=lambda one: (files.index(one.source), one.line, one.path))

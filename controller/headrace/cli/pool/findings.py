"""What a check of manifests finds, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from headrace.cli.pool.manifests import Document
from headrace.core.invalid import InvalidField, shown


class Severity(StrEnum):
    """ERROR does not work. WARNING works here and perhaps not elsewhere, or not as it looks. INFO is good to know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
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


class Findings:
    """Collects findings in the order of files and lines."""

    def __init__(self) -> None:
        self._found: list[Finding] = []

    def add(self, document: Document, severity: Severity, path: str, message: str) -> None:
        """One finding about a field of a document."""
        subject = f"{document.kind} {document.namespace}/{document.name}" if document.kind else ""
        found = Finding(severity, document.source, document.line_of(path), subject, path, message)
        if found not in self._found:
            self._found.append(found)

    def error_at(self, document: Document, line: int, message: str) -> None:
        """What does not work about a line."""
        self._found.append(Finding(Severity.ERROR, document.source, line, "", "", message))

    def invalid(self, document: Document, error: InvalidField, at: str = "") -> None:
        """A field that cannot be used. `at` is where the value is that the error is about."""
        where = f"{at}: {error.field}" if at else error.field
        self.add(document, Severity.ERROR, where, f"{shown(error.value)}: {error.fix}")

    def error(self, document: Document, path: str, message: str) -> None:
        """What does not work."""
        self.add(document, Severity.ERROR, path, message)

    def warning(self, document: Document, path: str, message: str) -> None:
        """What may not work elsewhere, or not as it looks."""
        self.add(document, Severity.WARNING, path, message)

    def info(self, document: Document, path: str, message: str) -> None:
        """What is good to know."""
        self.add(document, Severity.INFO, path, message)

    @property
    def all(self) -> list[Finding]:
        """All of them, by file and line."""
        order: dict[str, int] = {}
        for found in self._found:
            order.setdefault(found.source, len(order))
        return sorted(self._found, key=lambda f: (order[f.source], f.line, f.path))

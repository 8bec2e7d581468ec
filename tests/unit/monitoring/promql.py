"""Which metrics a PromQL expression names. Not a parser: enough of PromQL's words to tell a metric from the rest."""

from __future__ import annotations

import re

_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\b\s*(\([^)]*\))?")
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def metrics(expression: str) -> set[str]:
    """The metrics, as `rate(requests_total{a="b"}[5m])` names requests_total."""
    text = re.sub(r'"(\\.|[^"\\])*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = _GROUPING.sub(" ", text)
    found = set()
    for match in re.finditer(r"[a-zA-Z_:][a-zA-Z0-9_:]*", text):
        before, after = text[: match.start()], text[match.end() :].lstrip()
        if after.startswith("(") or match[0].lower() in _WORDS or re.search(r"[0-9.]$", before):
            continue
        found.add(match[0])
    return found

"""JSON Patch (RFC 6902) as the API server applies it, as far as the tests need it."""

from __future__ import annotations

import copy
from typing import Any


class TestFailed(Exception):  # noqa: N818
    """A `test` operation did not hold: the server answers 422 and changes nothing."""

    __test__ = False


def patched(document: Any, operations: list[dict[str, Any]]) -> Any:
    """The document after all operations."""
    document = copy.deepcopy(document)
    for operation in operations:
        *parents, last = operation["path"].lstrip("/").split("/")
        at = document
        for part in parents:
            at = at[int(part)] if isinstance(at, list) else at[part]
        key: Any = int(last) if isinstance(at, list) else last
        if operation["op"] == "test":
            if at[key] != operation["value"]:
                raise TestFailed(operation["path"])
        elif operation["op"] == "remove":
            del at[key]
        else:
            assert operation["op"] in ("add", "replace")
            assert not (isinstance(at, list) and operation["op"] == "add"), "would insert"
            assert operation["op"] == "add" or key in (at if isinstance(at, dict) else range(len(at)))
            at[key] = copy.deepcopy(operation["value"])
    return document

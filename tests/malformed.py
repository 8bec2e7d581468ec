"""Objects with any value in any place: what is left of a schema that nobody enforces."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Python reads no number of so many digits.
DIGITS = "9" * 5000
_LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=4)
    | st.builds(lambda: DIGITS)
    | st.sampled_from(["", "8000", "-1", "a,8000", "True", "default", "2026-01-01T00:00:00Z"])
)
JSON = st.recursive(
    _LEAF,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "port", "spec", "kind", "number", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
    yield ()
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        for place in _places(entry):
            yield (key, *place)


def broken(whole: dict[str, Any]) -> st.SearchStrategy[Any]:
    """The object with one to three of its values, at any depth, replaced by any JSON."""
    places = list(_places(whole))

    def made(changes: list[tuple[tuple[Any, ...], Any]]) -> Any:
        found: Any = copy.deepcopy(whole)
        for place, value in changes:
            if not place:
                return value
            # An earlier change may have taken the place away.
            with contextlib.suppress(LookupError, TypeError):
                parent = found
                for key in place[:-1]:
                    parent = parent[key]
                parent[place[-1]] = value
        return found

    return st.lists(st.tuples(st.sampled_from(places), JSON), min_size=1, max_size=3).map(made)


def pod(name: str, address: str, **annotations: str) -> dict[str, Any]:
    """A ready Pod of the pool whose selector is `app: m`."""
    return {
        "metadata": {
            "name": name,
            "namespace": "n",
            "uid": name,
            "resourceVersion": "1",
            "labels": {"app": "m"},
            "annotations": annotations,
        },
        "spec": {"nodeName": "node"},
        "status": {"podIP": address, "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }

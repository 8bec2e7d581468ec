"""The decoder: what is good comes through, what is not is refused by field, value and fix."""

from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from headrace.config.decode import (
    Duration,
    InvalidConfig,
    Number,
    OverZero,
    Parameters,
    Positive,
    Quantity,
    Refused,
    Share,
    Text,
    decode,
)


class Inner(Parameters, frozen=True):
    key: Text
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.key == "bad":
            raise Refused("key", "give another key")


class Outer(Parameters, frozen=True):
    max_count: Positive = 1
    share: Share = 0.5
    amount: Number = 0.0
    power: OverZero = 1.0
    wait: Duration = Duration(2)
    later: Duration | None = None
    size: Quantity = Quantity(3)
    inner: Inner | None = None
    entries: tuple[Inner, ...] = ()
    needed: Annotated[tuple[str, ...], Meta(min_length=1)] = ("x",)
    on: bool = True
    exact: Annotated[float, Meta(ge=0.5, le=0.75)] = 0.5
    few: Annotated[tuple[str, ...], Meta(min_length=1, max_length=2)] = ("x",)
    anything: Any = None


def test_what_is_left_out_or_null_has_its_default() -> None:
    assert decode({}, Outer, "") == Outer()
    assert decode({"maxCount": None, "inner": None, "anything": None}, Outer, "") == Outer()


def test_every_kind_of_value() -> None:
    found = decode(
        {
            "maxCount": 7, "share": 1, "wait": "1m30s", "later": 0, "size": "1Ki", "on": False,
            "inner": {"key": "k", "kind": "b"}, "entries": [{"key": "l"}], "anything": {"x": [1]},
        },
        Outer,
        "at",
    )  # fmt: skip
    assert (found.max_count, found.share, found.wait, found.later, found.size) == (7, 1.0, 90.0, 0.0, 1024)
    assert found.inner == Inner("k", "b")
    assert found.entries == (Inner("l"),)
    assert found.anything == {"x": [1]}
    assert decode({"size": 1 << 40}, Outer, "").size == 1 << 40
    assert decode({"size": "2500m"}, Outer, "").size == 2


@pytest.mark.parametrize(
    ("value", "field", "shown", "fix"),
    [
        ([1], "at", [1], "object"),
        ({1: 2}, "at", {1: 2}, "object"),
        ({"maxCount": 0}, "at.maxCount", 0, "a whole number of at least 1"),
        ({"maxCount": "1"}, "at.maxCount", "1", "a whole number of at least 1"),
        ({"maxCount": True}, "at.maxCount", True, "a whole number"),
        ({"maxCount": 1.0}, "at.maxCount", 1.0, "a whole number"),
        ({"share": 1.5}, "at.share", 1.5, "of 0 to 1"),
        ({"share": "x"}, "at.share", "x", "a number of 0 to 1"),
        ({"amount": float("inf")}, "at.amount", float("inf"), "a number of at least 0"),
        ({"amount": 10**400}, "at.amount", 10**400, "a number"),
        ({"power": 0}, "at.power", 0, "a number over 0"),
        ({"exact": 0.1}, "at.exact", 0.1, "a number of 0.5 to 0.75"),
        ({"few": ["x"] * 3}, "at.few", ["x"] * 3, "a list of 1 to 2 texts"),
        ({"wait": "soon"}, "at.wait", "soon", "1m30s"),
        ({"wait": 5}, "at.wait", 5, "1m30s"),
        ({"wait": False}, "at.wait", False, "1m30s"),
        ({"later": []}, "at.later", [], "1m30s"),
        ({"size": "x"}, "at.size", "x", "500M"),
        ({"size": "64m"}, "at.size", "64m", "M or Mi"),
        ({"size": True}, "at.size", True, "500M"),
        ({"inner": {}}, "at.inner.key", None, "a text"),
        ({"inner": {"key": " "}}, "at.inner.key", " ", "a text"),
        ({"inner": {"key": "bad"}}, "at.inner.key", "bad", "another key"),
        ({"inner": {"key": "k", "kind": "c"}}, "at.inner.kind", "c", "a or b"),
        ({"inner": {"key": "k", "kind": 3}}, "at.inner.kind", 3, "a or b"),
        ({"entries": {}}, "at.entries", {}, "a list of objects"),
        ({"entries": [{"key": "k"}, 3]}, "at.entries[1]", 3, "an object"),
        ({"entries": [{"key": "k"}, {"key": "bad"}]}, "at.entries[1].key", "bad", "another key"),
        ({"entries": [{"key": "k", "x": 1}]}, "at.entries[0].x", 1, "parameters here: key, kind"),
        ({"inner": {"key": "k", "x": 1}}, "at.inner.x", 1, "parameters here: key, kind"),
        ({"needed": []}, "at.needed", [], "a list of at least 1 texts"),
        ({"needed": [1]}, "at.needed[0]", 1, "a text"),
        ({"on": "yes"}, "at.on", "yes", "true or false"),
        ({"other": 1}, "at.other", 1, "unknown"),
    ],
)
def test_what_is_refused_names_field_value_and_fix(value: object, field: str, shown: object, fix: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        decode(value, Outer, "at")
    assert (caught.value.field, caught.value.value) == (field, shown)
    assert fix in caught.value.fix


def test_a_number_that_is_too_long_to_write_is_refused() -> None:
    with pytest.raises(InvalidConfig):
        decode({10**5000: {}}, Outer, "at")
    for name in ("size", "amount", "wait"):
        with pytest.raises(InvalidConfig) as caught:
            decode({name: 10**5000}, Outer, "at")
        assert caught.value.field == f"at.{name}"


def test_a_document_has_no_path_before_its_fields() -> None:
    with pytest.raises(InvalidConfig) as caught:
        decode({"inner": {"kind": "a"}}, Outer, "")
    assert caught.value.field == "inner.key"


def test_aliases_cost_no_more_than_the_text_and_circles_end() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    assert decode({"anything": yaml.safe_load("\n".join(lines))}, Outer, "").anything
    for wrong in (yaml.safe_load("&a [*a]"), yaml.safe_load("&a {entries: [*a]}")["entries"]):
        with pytest.raises(InvalidConfig):
            decode({"entries": wrong}, Outer, "")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"inner": {"\ud800": 1}}, "at.inner.\ud800"),
        ({"\udfff": 1}, "at.\udfff"),
    ],
)
def test_text_that_cannot_be_written_is_refused(value: object, field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        decode(value, Outer, "at")
    assert caught.value.field == field


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidConfig) as caught:
        decode({"anything": deep, "maxCount": None}, Outer, "at")
    assert caught.value.field == "at"


# What the decoder's own messages say, and so what a text must not be taken for.
_MESSAGES = [
    "a` - at `$.b",
    "` - at `$.q",
    "a` - at `$[5]",
    "` - at `key` in `$.inner.key",
    "Object missing required field `",
]


@pytest.mark.parametrize("text", _MESSAGES)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ((), "at.{}"),
        (("inner",), "at.inner.{}"),
        (("entries", 1), "at.entries[1].{}"),
    ],
)
def test_a_name_that_reads_as_a_message_is_shown_as_it_is(text: str, path: tuple[Any, ...], field: str) -> None:
    entry: dict[str, Any] = {"key": "k", text: 1} if path else {text: 1}
    value = {(): entry, ("inner",): {"inner": entry}}.get(path, {"entries": [{"key": "k"}, entry]})
    with pytest.raises(InvalidConfig) as caught:
        decode(value, Outer, "at")
    assert (caught.value.field, caught.value.value) == (field.format(text), 1)


@pytest.mark.parametrize("text", _MESSAGES)
def test_a_value_that_reads_as_a_message_is_shown_as_it_is(text: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        decode({"inner": {"key": "k", "kind": text}}, Outer, "at")
    assert (caught.value.field, caught.value.value) == ("at.inner.kind", text)


_TEXTS = st.one_of(st.sampled_from([*_MESSAGES, "inner", "entries", "key", "kind", "maxCount", "later"]), st.text())
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.one_of(_TEXTS, st.integers()), inner, max_size=3),
)


@given(_VALUES)
def test_any_value_is_good_or_refused(value: object) -> None:
    try:
        decode(value, Outer, "at")
    except InvalidConfig as error:
        assert error.field.startswith("at")


class Labels(Parameters, frozen=True):
    match_labels: dict[str, Any] = {}
    free: Any = None
    inner: Inner | None = None
    entries: tuple[Inner, ...] = ()


@pytest.mark.parametrize("also", [{}, {"inner": None}, {"entries": [{"key": "k", "kind": None}]}])
def test_nulls_among_names_of_the_operators_own_stay(also: dict[str, Any]) -> None:
    shared = {"tier": None, "deep": [{"x": None}]}
    found = decode({"matchLabels": shared, "free": shared, **also}, Labels, "")
    assert (found.match_labels, found.free) == (shared, shared)
    assert (found.inner, found.entries) == (None, (Inner("k"),) * len(also.get("entries") or ()))


def test_one_object_in_two_places_is_read_as_each_has_it() -> None:
    shared = {"key": "k", "kind": None}
    found = decode({"free": shared, "inner": shared, "entries": [shared, shared]}, Labels, "")
    assert (found.free, found.inner, found.entries) == (shared, Inner("k"), (Inner("k"), Inner("k")))


def test_an_unknown_name_is_refused_with_a_null_too() -> None:
    with pytest.raises(InvalidConfig) as caught:
        decode({"inner": {"key": "k", "x": None}}, Outer, "at")
    assert caught.value.field == "at.inner.x"

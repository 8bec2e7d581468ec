"""Decide which CRDs to install: those that are not older than what the cluster has.

An action plugin and no module, because it reads the sources and asks the cluster nothing: what the cluster has is
handed over. The decision is a pure function of both, `decide`.

The CRDs of the Gateway API are one bundle: its `safe-upgrades` policy refuses every CRD of an older release, and those
of the experimental channel over those of the standard one. They are installed all or not at all. Headrace's own
inference CRDs are looked at one by one. Everything else is installed as it is.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import reprlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ansible.module_utils.urls import open_url
from ansible.plugins.action import ActionBase

GATEWAY_API = "gateway.networking.k8s.io"
INFERENCE = "inference.networking.k8s.io"
# A release of the Gateway API has 1 MB.
MOST_BYTES = 32 << 20
# Aliases make lists of YAML grow beyond the file's own size.
MOST_ITEMS = 10_000
SECONDS = 60
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNREADABLE = (
    OSError, ValueError, EOFError, zlib.error, http.client.HTTPException, yaml.YAMLError, RecursionError,
)  # fmt: skip
WANTED = "a file, a folder with *.yaml files, or an http(s) URL."
# What Headrace reads and writes, by CRD.
NEEDED_OF_GATEWAY_API = {
    f"gatewayclasses.{GATEWAY_API}": "v1",
    f"gateways.{GATEWAY_API}": "v1",
    f"httproutes.{GATEWAY_API}": "v1",
    f"backendtlspolicies.{GATEWAY_API}": "v1",
    f"referencegrants.{GATEWAY_API}": "v1beta1",
}
Document = Mapping[str, Any]
# Major, minor, patch; then whether it is a release, and which of those before it.
Version = tuple[int, int, int, bool, tuple[tuple[int, int, str], ...]]


class InvalidSource(Exception):  # noqa: N818
    """A source that cannot be read; the message names the variable, the value and the fix."""


# ---- versions --------------------------------------------------------------------------------------------------------


def parse_version(text: str) -> Version | None:
    """A release's version, to be compared; None for what is none, as builds of a branch, v0.0.0-dev.

    Of two pre-releases the parts between dots are compared one by one, numbers as numbers."""
    found = re.fullmatch(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-([0-9A-Za-z.-]{1,99}))?(?:\+.*)?", text)
    if found is None or text.startswith(("v0.0.0", "0.0.0")):
        return None
    before = found[4] or ""
    parts = tuple((0, int(one), "") if one.isdigit() else (1, 0, one) for one in before.split(".") if one)
    return int(found[1]), int(found[2]), int(found[3]), not before, parts


class Bundle(NamedTuple):
    """CRDs of one project: which versions and channels they say they are of, as they say it; "" says nothing."""

    versions: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    @property
    def newest(self) -> str:
        """The newest version; one that cannot be compared counts as newer than any."""
        return max(self.versions, key=lambda text: (parse_version(text) is None, parse_version(text) or ()), default="")

    def __str__(self) -> str:
        channels = f" ({' and '.join(self.channels)} channel)" if self.channels else ""
        return f"{self.newest}{channels}"


def annotation(document: Document, bundle: str, key: str) -> str:
    """An annotation of a project's; "" where there is none."""
    value = (document["metadata"].get("annotations") or {}).get(f"{bundle}/{key}")
    return value if isinstance(value, str) else ""


def bundle_of(documents: Iterable[Document], bundle: str) -> Bundle:
    """What CRDs and policies say. The policies count for the version only: they are the same in both channels."""
    versions = dict.fromkeys(annotation(one, bundle, "bundle-version") for one in documents)
    channels = {
        annotation(one, bundle, "channel") for one in documents if one.get("kind") == "CustomResourceDefinition"
    }
    return Bundle(tuple(one for one in versions if one), tuple(sorted(channels - {""})))


def served(crd: Document) -> list[str]:
    """The versions of a CRD that the API server serves."""
    return [one["name"] for one in crd["spec"]["versions"] if one.get("served")]


# ---- the decision ----------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """A file or URL of CRDs. `variable` and `given` are the role's variable that names it, and its value.

    `lists`: the file has lists of objects, whose items are among the documents."""

    variable: str
    given: str
    path: str
    documents: tuple[Document, ...]
    lists: bool = False


class Plan(NamedTuple):
    """What is installed: a file or URL whole (`src`), or some of its documents (`definition`). `lines` say it."""

    install: list[dict[str, Any]]
    lines: list[str]
    problems: list[str]


def reason_to_keep(there: Bundle, wanted: Bundle) -> str:
    """Why what is there stays; "" where the wanted is installed."""
    if not there.versions:
        return ""
    is_there, would_be = parse_version(there.newest), parse_version(wanted.newest)
    if there.newest != wanted.newest and (is_there is None or would_be is None):
        return "which cannot be compared with"
    if is_there is not None and would_be is not None and is_there > would_be:
        return "which is newer than"
    if there.channels and wanted.channels and there.channels != wanted.channels:
        return "which is of another channel than"
    return ""


def decide(sources: Sequence[Source], found: Sequence[Document]) -> Plan:
    """What to install of the sources, given the CRDs and admission policies that the cluster has."""
    plan = Plan([], [], [])
    there = {_identity(one): one for one in found}
    for variable in dict.fromkeys(one.variable for one in sources):
        own = [one for one in sources if one.variable == variable]
        documents = [document for one in own for document in one.documents]
        # Later sources are judged by what earlier ones will have installed.
        now = list(there.values())
        kept = _gateway_api(plan, own[0], documents, now) | _inference(plan, own[0], documents, now)
        for source in own:
            left = [document for document in source.documents if _identity(document) not in kept]
            there.update((_identity(document), document) for document in left)
            if len(left) == len(source.documents) and not source.lists:
                plan.install.append({"label": source.path.rpartition("/")[2], "src": source.path})
            elif left:
                plan.install.append({"label": source.path.rpartition("/")[2], "definition": left})
    return plan


def _gateway_api(
    plan: Plan, source: Source, documents: Sequence[Document], found: Sequence[Document]
) -> set[tuple[str, str]]:
    """The documents of a source that are not installed because the cluster's Gateway API stays."""
    own = [one for one in documents if annotation(one, GATEWAY_API, "bundle-version")]
    if not own:
        return set()
    # CRDs that the source does not have stay as they are, whatever is installed. The policies count whole: they decide
    # on all CRDs.
    names = {_identity(one) for one in own}
    touched = [one for one in found if one.get("kind") != "CustomResourceDefinition" or _identity(one) in names]
    there, wanted = bundle_of(touched, GATEWAY_API), bundle_of(own, GATEWAY_API)
    reason = reason_to_keep(there, wanted)
    if not reason:
        plan.lines.append(_installs("Gateway API", there, wanted))
        return set()
    plan.lines.append(f"Gateway API: {there} stays, {reason} {wanted} of {source.variable}.")
    for name, version in NEEDED_OF_GATEWAY_API.items():
        plan.problems.extend(_lacking(source, f"Gateway API {there}", wanted, name, [version], _served(found)))
    return names


def _inference(
    plan: Plan, source: Source, documents: Sequence[Document], found: Sequence[Document]
) -> set[tuple[str, str]]:
    """The same, of inference CRDs, each for itself. Those that name no version are of the source's."""
    own = bundle_of(documents, INFERENCE)
    if not own.versions:
        return set()
    wanted, here = Bundle(own.versions), {_identity(one): one for one in found}
    kept = set[tuple[str, str]]()
    for document in _crds(documents):
        if document["spec"]["group"] not in (INFERENCE, "inference.networking.x-k8s.io"):
            continue
        name, one = document["metadata"]["name"], here.get(_identity(document))
        there = Bundle(bundle_of([one], INFERENCE).versions) if one is not None else Bundle()
        reason = reason_to_keep(there, wanted)
        if not reason:
            plan.lines.append(_installs(name, there, wanted))
            continue
        kept.add(_identity(document))
        plan.lines.append(f"{name}: {there} stays, {reason} {wanted} of {source.variable}.")
        plan.problems.extend(_lacking(source, f"{name} {there}", wanted, name, served(document), _served(found)))
    return kept


def _installs(what: str, there: Bundle, wanted: Bundle) -> str:
    if there.newest == wanted.newest:
        return f"{what}: {there} is there, and is what is wanted."
    return f"{what}: {wanted} is installed{f' over {there}' if there.versions else ''}."


def _lacking(
    source: Source,
    there: str,
    wanted: Bundle,
    name: str,
    versions: Iterable[str],
    served_there: Mapping[str, list[str]],
) -> Iterator[str]:
    """What the cluster lacks of a CRD that Headrace needs."""
    for version in versions:
        if version in served_there.get(name, []):
            continue
        has = f"serves {', '.join(served_there[name]) or 'no version'}" if name in served_there else "is not there"
        yield (
            f"{source.variable}: {source.given} has {wanted}, which is not installed over {there}; but Headrace needs "
            f"{name} with version {version}, and it {has}. Fix: install what is missing from the release that the "
            f"cluster has, or set {source.variable} to a file of that release."
        )


def _crds(documents: Iterable[Document]) -> Iterator[Document]:
    return (one for one in documents if one.get("kind") == "CustomResourceDefinition")


def _served(found: Iterable[Document]) -> dict[str, list[str]]:
    return {one["metadata"]["name"]: served(one) for one in _crds(found)}


def _identity(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


# ---- reading ---------------------------------------------------------------------------------------------------------


def _fields(document: Any) -> Iterator[tuple[str, Any, type, str]]:
    """The fields that the decision reads: name, value, type, and the type in words. Each is asked for after the one
    that it is in was found right."""
    yield "a document", document, dict, "a Kubernetes object"
    yield "kind", (kind := document.get("kind")), str, "text"
    yield "metadata", (metadata := document.get("metadata")), dict, "a mapping"
    yield "metadata.name", metadata.get("name"), str, "text"
    yield "metadata.annotations", metadata.get("annotations") or {}, dict, "a mapping"
    if kind != "CustomResourceDefinition":
        return
    yield "spec", (spec := document.get("spec")), dict, "a mapping"
    yield "spec.group", spec.get("group"), str, "text"
    yield "spec.versions", (versions := spec.get("versions")), list, "a list"
    for number, version in enumerate(versions):
        yield f"spec.versions[{number}]", version, dict, "a mapping"
        yield f"spec.versions[{number}].name", version.get("name"), str, "text"


def check(document: Any) -> None:
    """Raises ValueError, which names field and value, for what is no Kubernetes object or no CRD."""
    for field, value, kind, words in _fields(document):
        if not isinstance(value, kind) or value == "":
            where = f" of {reprlib.repr(document)}" if field != "a document" else ""
            raise ValueError(f"{field} is {reprlib.repr(value)}, not {words}{where}")


def files(variable: str, given: str) -> list[str]:
    """The URL or file that a source is, or the *.yaml and *.yml below a folder. Raises InvalidSource for none."""
    path, below = Path(given), list[str]()
    # A text that can be no path is one where there is nothing.
    with contextlib.suppress(OSError, ValueError):
        if re.match("https?://", given) or path.is_file():
            return [given]
        below = sorted(str(one) for one in path.rglob("*.y*ml") if one.suffix in (".yaml", ".yml") and one.is_file())
    if not below:
        raise InvalidSource(f"{variable} names {given}, where there is no CRD file. Fix: set {variable} to {WANTED}")
    return below


def _load(content: bytes) -> list[Any]:
    """The documents of a YAML file. Raises ValueError, yaml.YAMLError, RecursionError."""
    try:
        return [one for one in yaml.load_all(content, Loader=LOADER) if one is not None]
    except (AttributeError, LookupError, TypeError) as error:
        # PyYAML's, of values like "!!bool text".
        raise ValueError(f"a value is not of its tag: {error}") from error


def flatten(documents: Iterable[Any]) -> tuple[list[Any], bool]:
    """The documents, with lists of objects replaced by their items, and whether there were any.

    As with kubernetes.core.k8s, every kind that ends in List is one, and an item without kind has the list's. Raises
    ValueError for too many items."""
    flat, waiting, items = list[Any](), [*documents][::-1], 0
    lists = False
    while waiting:
        one = waiting.pop()
        kind = one.get("kind") if isinstance(one, dict) else None
        if not isinstance(kind, str) or not kind.endswith("List") or not isinstance(one.get("items", 0), list | None):
            flat.append(one)
            continue
        lists = True
        inside = one["items"] or []
        items += len(inside)
        if items > MOST_ITEMS:
            raise ValueError(f"its lists have more than {MOST_ITEMS} items")
        defaults = {"apiVersion": one.get("apiVersion"), "kind": kind.removesuffix("List")}
        waiting.extend({**defaults, **item} if isinstance(item, dict) else item for item in reversed(inside))
    return flat, lists


def read(variable: str, given: str, path: str) -> Source:
    """The documents of a file or URL. Raises InvalidSource."""
    try:
        if re.match("https?://", path):
            content = open_url(path, timeout=SECONDS).read(MOST_BYTES + 1)
        else:
            with Path(path).open("rb") as stream:
                content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
        documents, lists = flatten(_load(content))
        for one in documents:
            check(one)
    except UNREADABLE as error:
        why = " ".join(str(error).split())
        raise InvalidSource(
            f"{variable} names {given}, where {path} cannot be read: {why:.300}. "
            f"Fix: mend it, or set {variable} to {WANTED}"
        ) from error
    return Source(variable, given, path, tuple(documents), lists)


def plan(sources: Mapping[str, str], found: Sequence[Any]) -> Plan:
    """What to install of the sources, the value of each by the variable that names it; empty ones are left out.

    `found` are the CRDs and admission policies that the cluster has. Raises InvalidSource."""
    for number, one in enumerate(found):
        try:
            check(one)
        except ValueError as error:
            raise InvalidSource(f"found[{number}]: {error}. Fix: hand over what k8s_info answers.") from error
    return decide(
        [
            read(variable, source, path)
            for variable, source in sources.items()
            for path in (files(variable, source) if source else ())
        ],
        found,
    )


# ---- Ansible ---------------------------------------------------------------------------------------------------------


class ActionModule(ActionBase):
    """See plugins/modules/inference_crds_plan.py for what users read."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The plan, or every problem at once."""
        result = super().run(tmp, task_vars)
        given = self._task.args
        try:
            made = plan(given["sources"], given["found"])
        except InvalidSource as error:
            return {**result, "failed": True, "changed": False, "problems": [str(error)], "msg": str(error)}
        if made.problems:
            message = "\n".join([*made.lines, *made.problems])
            return {**result, "failed": True, "changed": False, "problems": made.problems, "msg": message}
        return {**result, "changed": False, "install": made.install, "lines": made.lines, "msg": "\n".join(made.lines)}

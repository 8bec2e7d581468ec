"""InferencePool v1alpha2 to v1: what the API's own conversion does, and what it cannot: a port for every picker.

Source: the API's conversion between its groups. Nothing is left out in silence: what v1 has no field for is carried
over as it is and named, so that a strict API server, or a reader, decides."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from headrace.cli.pool.manifests import Document, items
from headrace.config.pools import parse_pool
from headrace.core import EXTENSION_GROUP, GA_GROUP, InvalidPool
from headrace.core.fields import mapping, mappings
from headrace.core.pool import DEFAULT_PICKER_PORT, VERSION_OF_GROUP
from headrace.protocol.objects import LAST_APPLIED_ANNOTATION

_V1ALPHA2 = f"{EXTENSION_GROUP}/{VERSION_OF_GROUP[EXTENSION_GROUP]}"
_V1 = f"{GA_GROUP}/{VERSION_OF_GROUP[GA_GROUP]}"
# What an API server writes: of the old object, not of the new one.
_SERVERS_OWN = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink")
_REFERENCE_FIELDS = ("group", "kind", "name", "portNumber", "port", "failureMode")
_REFERRERS = ("InferenceObjective", "InferenceModelRewrite")


class CannotMigrate(ValueError):  # noqa: N818
    """A pool that is not valid as it is; the message names file, line, field and fix."""


@dataclass
class Migration:
    """The manifests afterwards, as YAML, and what whoever applies them should know."""

    text: str = ""
    notes: list[str] = field(default_factory=list)
    pools: int = 0


def migrate(documents: Sequence[Document]) -> Migration:
    """Convert every v1alpha2 pool, and references to it. All other documents come out as they went in.

    Raises CannotMigrate."""
    known = {(one.namespace, one.name) for one in items(documents) if _is_pool(one)}
    result = Migration(pools=sum(map(_is_pool, items(documents))))
    for document in documents:
        objects = list(items([document]))
        changed = [_converted(one, known, result.notes) for one in objects]
        if not any(changed):
            text = document.text if document.text.endswith("\n") or not document.text else document.text + "\n"
            result.text += text if text.startswith("---") else f"---\n{text}"
            continue
        value = changed[0]
        if document.kind == "List":
            listed = [one.value if new is None else new for one, new in zip(objects, changed, strict=True)]
            value = {**document.value, "items": listed}
        result.text += "---\n" + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
    return result


def _is_pool(document: Document) -> bool:
    return document.kind == "InferencePool" and document.value.get("apiVersion") == _V1ALPHA2


def _converted(document: Document, known: Collection[tuple[str, str]], notes: list[str]) -> dict[str, Any] | None:
    """An object's new value; None where it stays as it is. `known` are namespace and name of the pools to convert."""
    where = f"{document.source}:{document.line}: {document.kind} {document.name}"
    if _is_pool(document):
        return _pool(document.value, where, notes)
    if document.kind in _REFERRERS:
        return _referrer(document, known, where, notes)
    if document.kind in ("HTTPRoute", "GRPCRoute"):
        return _route(document, known, where, notes)
    return None


def _pool(value: Mapping[str, Any], where: str, notes: list[str]) -> dict[str, Any]:
    try:
        pool = parse_pool(value)
    except InvalidPool as error:
        raise CannotMigrate(f"{where}: {error}") from None
    spec = value["spec"]
    reference = spec["extensionRef"]
    picker: dict[str, Any] = {name: reference[name] for name in ("group", "kind") if name in reference}
    picker["name"] = reference["name"]
    is_service = (reference.get("kind") or "Service") == "Service"
    given = reference.get("portNumber", reference.get("port"))
    if given is not None or is_service:
        assert pool.picker is not None, "a v1alpha2 pool has a picker"
        picker["port"] = {"number": pool.picker.port}
    if given is None and is_service:
        notes.append(f"{where}: spec.endpointPickerRef.port.number: {DEFAULT_PICKER_PORT} put in, which v1 requires")
    if "failureMode" in reference:
        picker["failureMode"] = reference["failureMode"]
    picker |= _carried(reference, _REFERENCE_FIELDS, f"{where}: spec.endpointPickerRef.", notes)
    converted: dict[str, Any] = {
        "selector": {"matchLabels": dict(pool.selector)},
        "targetPorts": [{"number": port} for port in pool.target_ports],
        "endpointPickerRef": picker,
    }
    converted |= _carried(spec, ("selector", "targetPortNumber", "extensionRef"), f"{where}: spec.", notes)
    made = {"apiVersion": _V1, "kind": "InferencePool", "metadata": _metadata(value, where, notes), "spec": converted}
    if "status" in value:
        notes.append(f"{where}: status: left out; gateways write it")
    return made | _carried(value, ("apiVersion", "kind", "metadata", "spec", "status"), f"{where}: ", notes)


def _metadata(value: Mapping[str, Any], where: str, notes: list[str]) -> dict[str, Any]:
    metadata = {name: entry for name, entry in value["metadata"].items() if name not in _SERVERS_OWN}
    if LAST_APPLIED_ANNOTATION in mapping(metadata.get("annotations")):
        kept = {name: text for name, text in metadata["annotations"].items() if name != LAST_APPLIED_ANNOTATION}
        metadata["annotations"] = kept
    if metadata.get("finalizers") or metadata.get("ownerReferences"):
        notes.append(f"{where}: metadata: its finalizers and ownerReferences are carried over; check that they fit")
    return metadata


def _carried(old: Mapping[str, Any], known: Sequence[str], where: str, notes: list[str]) -> dict[str, Any]:
    found = {name: copy.deepcopy(value) for name, value in old.items() if name not in known}
    notes += [f"{where}{name}: carried over as it is; neither API version has such a field" for name in found]
    return found


def _referrer(
    document: Document, known: Collection[tuple[str, str]], where: str, notes: list[str]
) -> dict[str, Any] | None:
    reference = mapping(mapping(document.value.get("spec")).get("poolRef"))
    if reference.get("group") != EXTENSION_GROUP:
        return None
    if (document.namespace, reference.get("name")) not in known:
        notes.append(f"{where}: spec.poolRef: left as it is; pool {reference.get('name')} is not in these files")
        return None
    changed: dict[str, Any] = copy.deepcopy(document.value)
    changed["spec"]["poolRef"]["group"] = GA_GROUP
    return changed


def _route(
    document: Document, known: Collection[tuple[str, str]], where: str, notes: list[str]
) -> dict[str, Any] | None:
    changed: dict[str, Any] = copy.deepcopy(document.value)
    done = False
    for rule in mappings(mapping(changed.get("spec")).get("rules")):
        for reference in mappings(rule.get("backendRefs")):
            if not isinstance(reference, dict) or reference.get("group") != EXTENSION_GROUP:
                continue
            if (str(reference.get("namespace") or document.namespace), reference.get("name")) in known:
                reference["group"] = GA_GROUP
                done = True
            else:
                name = reference.get("name")
                notes.append(f"{where}: its reference to pool {name}, not in these files, is left as it is")
    return changed if done else None

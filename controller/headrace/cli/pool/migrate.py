"""InferencePool v1alpha2 to v1: what the API's own conversion does, and what it cannot: a port for every picker.

Source: the API's conversion between its groups. Nothing is left out in silence: what v1 has no field for is carried
over as it is and named, so that a strict API server, or a reader, decides."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from headrace.cli.pool.manifests import Document
from headrace.config.pools import parse_pool
from headrace.core import EXTENSION_GROUP, GA_GROUP, InvalidPool
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
    result = Migration()
    known = _pools(documents)
    parts = []
    for document in documents:
        changed = _document(document, known, result)
        if changed is None:
            text = document.text if document.text.endswith("\n") or not document.text else document.text + "\n"
            parts.append(text if text.startswith("---") else f"---\n{text}")
        else:
            parts.append("---\n" + yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, width=120))
    result.text = "".join(parts)
    return result


def _pools(documents: Sequence[Document]) -> frozenset[tuple[str, str]]:
    """Namespace and name of the pools to convert."""
    found = set()
    for document in documents:
        value = document.value
        for one in value.get("items") or [] if document.kind == "List" else [value]:
            if _is_pool(one):
                metadata = one.get("metadata") or {}
                found.add((str(metadata.get("namespace") or "default"), str(metadata.get("name") or "")))
    return frozenset(found)


def _is_pool(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("apiVersion") == _V1ALPHA2 and value.get("kind") == "InferencePool"


def _document(document: Document, known: frozenset[tuple[str, str]], result: Migration) -> Any:
    """The document's new value; None where it stays as it is."""
    if document.kind == "List" and isinstance(document.value.get("items"), list):
        changed = [_object(document, one, known, result) for one in document.value["items"]]
        if all(one is None for one in changed):
            return None
        old = document.value["items"]
        return {**document.value, "items": [o if c is None else c for o, c in zip(old, changed, strict=True)]}
    return _object(document, document.value, known, result)


def _object(document: Document, value: Any, known: frozenset[tuple[str, str]], result: Migration) -> Any:
    if _is_pool(value):
        result.pools += 1
        return _pool(document, value, result.notes)
    if not isinstance(value, Mapping):
        return None
    kind = value.get("kind")
    if kind in _REFERRERS:
        return _referrer(document, value, known, result.notes)
    if kind in ("HTTPRoute", "GRPCRoute"):
        return _route(document, value, known, result.notes)
    return None


def _pool(document: Document, value: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    where = f"{document.source}:{document.line}: InferencePool {(value.get('metadata') or {}).get('name')}"
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
    annotations = metadata.get("annotations")
    if isinstance(annotations, Mapping) and LAST_APPLIED_ANNOTATION in annotations:
        metadata["annotations"] = {
            name: entry for name, entry in annotations.items() if name != LAST_APPLIED_ANNOTATION
        }
    if metadata.get("finalizers") or metadata.get("ownerReferences"):
        notes.append(f"{where}: metadata: its finalizers and ownerReferences are carried over; check that they fit")
    return metadata


def _carried(old: Mapping[str, Any], known: Sequence[str], where: str, notes: list[str]) -> dict[str, Any]:
    found = {name: copy.deepcopy(value) for name, value in old.items() if name not in known}
    notes += [f"{where}{name}: carried over as it is; neither API version has such a field" for name in found]
    return found


def _referrer(document: Document, value: Mapping[str, Any], known: frozenset[tuple[str, str]], notes: list[str]) -> Any:
    reference = (value.get("spec") or {}).get("poolRef") if isinstance(value.get("spec"), Mapping) else None
    if not isinstance(reference, Mapping) or reference.get("group") != EXTENSION_GROUP:
        return None
    metadata = value.get("metadata") or {}
    where = f"{document.source}:{document.line}: {value['kind']} {metadata.get('name')}"
    if (str(metadata.get("namespace") or "default"), reference.get("name")) not in known:
        notes.append(f"{where}: spec.poolRef: left as it is; pool {reference.get('name')} is not in these files")
        return None
    changed = copy.deepcopy(dict(value))
    changed["spec"]["poolRef"]["group"] = GA_GROUP
    return changed


def _route(document: Document, value: Mapping[str, Any], known: frozenset[tuple[str, str]], notes: list[str]) -> Any:
    changed = copy.deepcopy(dict(value))
    metadata = value.get("metadata") or {}
    spec = changed.get("spec")
    rules = spec.get("rules") if isinstance(spec, Mapping) else None
    done = False
    for rule in rules if isinstance(rules, list) else []:
        for reference in rule.get("backendRefs") or [] if isinstance(rule, Mapping) else []:
            if not isinstance(reference, dict) or reference.get("group") != EXTENSION_GROUP:
                continue
            namespace = str(reference.get("namespace") or metadata.get("namespace") or "default")
            if (namespace, reference.get("name")) in known:
                reference["group"] = GA_GROUP
                done = True
            else:
                where = f"{document.source}:{document.line}: {value['kind']} {metadata.get('name')}"
                notes.append(
                    f"{where}: its reference to pool {reference.get('name')}, not in these files, is left as it is"
                )
    return changed if done else None

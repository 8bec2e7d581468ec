"""Checks of inference pool manifests, as files, without a cluster: each object by itself.

What concerns several objects is in `links`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from msgspec import inspect as types

from headrace.cli.pool import findings
from headrace.cli.pool.findings import Finding, Severity, in_order
from headrace.cli.pool.links import check_links
from headrace.cli.pool.manifests import Document, duplicate_keys, items
from headrace.config.decode import InvalidConfig, fields_of
from headrace.config.policies import parse_model_rewrite, parse_objective
from headrace.config.pools import SPECS, parse_pool
from headrace.core import EXTENSION_GROUP, GA_GROUP, InvalidObject, InvalidPool
from headrace.core.fields import mapping
from headrace.core.invalid import shown
from headrace.core.pool import DEFAULT_PICKER_PORT, VERSION_OF_GROUP
from headrace.epp.config_file import read_document
from headrace.scheduling.config import API_VERSIONS, KIND

# Names of the other version, or of an older one: too far from the right one for a guess by letters.
_OTHER_NAMES = {
    "targetPort": "targetPortNumber",
    "targetPorts": "targetPortNumber",
    "endpointPickerRef": "extensionRef",
    "extensionRef": "endpointPickerRef",
    "targetPortNumber": "targetPorts: [{number: PORT}]",
    "portNumber": "port: {number: PORT}",
    "endpointPicker": "endpointPickerRef",
    "matchLabels": "the labels themselves, without matchLabels",
}
# Objects that are right but for the field under test: a pool's parser stops at the first error, a reader wants all.
_GOOD: dict[str, dict[str, Any]] = {
    EXTENSION_GROUP: {"selector": {"a": "b"}, "targetPortNumber": 1, "extensionRef": {"name": "x"}},
    GA_GROUP: {"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{"number": 1}]},
}


def lint(documents: Sequence[Document]) -> list[Finding]:
    """Everything there is to say about manifests, by file and line. Kinds of other APIs pass."""
    return in_order(_all(documents))


def _all(documents: Sequence[Document]) -> Iterator[Finding]:
    for document in documents:
        for key, line in duplicate_keys(document):
            text = f"the key {key!r} is there twice; the last one counts, silently"
            yield Finding(Severity.ERROR, document.source, line, "", "", text)
    objects = list(items(documents))
    for document in objects:
        yield from _check(document)
    yield from check_links(objects)


def _check(document: Document) -> Iterator[Finding]:
    kind, value = document.kind, document.value
    if value is None:
        return
    if not isinstance(value, Mapping) or not kind:
        yield findings.error(document, "", "this is no Kubernetes object: give apiVersion, kind and metadata")
    elif kind == "InferencePool":
        yield from _check_pool(document)
    elif kind in ("InferenceObjective", "InferenceModelRewrite"):
        parse = parse_objective if kind == "InferenceObjective" else parse_model_rewrite
        try:
            parse(value)
        except InvalidObject as error:
            yield findings.invalid(document, error)
    elif kind == "InferenceModel":
        text = "InferenceModel is gone since the API's v1.0, and nothing reads it"
        fix = "write an InferenceObjective for its criticality and an InferenceModelRewrite for its targetModels"
        yield findings.error(document, "kind", f"{text}: {fix}")
    elif kind == KIND or value.get("apiVersion") in API_VERSIONS:
        yield from _check_config(document, "", value)
    elif kind == "ConfigMap" and document.group == "":
        for name, text in mapping(value.get("data")).items():
            if isinstance(text, str) and KIND in text:
                yield from _check_config(document, f"data[{name}]", text)


def _check_config(document: Document, path: str, content: Any) -> Iterator[Finding]:
    """An EndpointPickerConfig, decoded or as text."""
    if isinstance(content, str):
        try:
            content = yaml.safe_load(content)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            yield findings.error(document, path, f"this is not YAML: {' '.join(str(error).split())[:200]}")
            return
        if not isinstance(content, Mapping) or content.get("kind") != KIND:
            return
    try:
        config = read_document(content)
    except InvalidConfig as error:
        yield findings.invalid(document, error, path)
        return
    for note in config.notes:
        yield findings.info(document, path, note)


def _check_pool(document: Document) -> Iterator[Finding]:
    value, group = document.value, document.group
    version = VERSION_OF_GROUP.get(group)
    if version is None or value.get("apiVersion") != f"{group}/{version}":
        known = " or ".join(f"{g}/{v}" for g, v in VERSION_OF_GROUP.items())
        yield findings.error(document, "apiVersion", f"{shown(value.get('apiVersion'))}: use {known}")
        return
    spec = value.get("spec")
    if not isinstance(spec, Mapping):
        yield findings.error(document, "spec", f"{shown(spec)}: give an object")
        return
    yield from _check_fields(document, "spec", types.type_info(SPECS[group]), spec)
    yield from _errors(document, spec)
    if "status" in value:
        yield findings.warning(document, "status", "leave it out: gateways write it, and applying it does nothing")
    reference = spec.get("endpointPickerRef" if group == GA_GROUP else "extensionRef")
    if isinstance(reference, Mapping):
        yield from _check_reference(document, reference, group)
    elif group == GA_GROUP and reference is None:
        text = "a pool without an endpoint picker: not every gateway takes one, and Headrace's picks nothing for it"
        yield findings.warning(document, "spec.endpointPickerRef", text)
    if group == EXTENSION_GROUP:
        text = "v1alpha2 is no longer part of the API since its v1.5.0; `headrace pool migrate` writes v1"
        yield findings.info(document, "apiVersion", text)


def _check_reference(document: Document, reference: Mapping[str, Any], group: str) -> Iterator[Finding]:
    path = "spec.endpointPickerRef" if group == GA_GROUP else "spec.extensionRef"
    kind = reference.get("kind") or "Service"
    if kind != "Service":
        yield findings.warning(document, f"{path}.kind", f"{shown(kind)}: gateways know pickers that are Services only")
    if group == GA_GROUP:
        return
    if "port" in reference:
        text = (
            "`port` is not a field of this API, though its documentation's example has it: other API servers drop it "
            f"or refuse the object. Headrace reads it as portNumber. Write portNumber: {reference['port']}"
        )
        yield findings.warning(document, f"{path}.port", text)
    elif "portNumber" not in reference and kind == "Service":
        text = f"no portNumber: {DEFAULT_PICKER_PORT} is meant, and v1 will require it. Write it down"
        yield findings.info(document, path, text)


def _check_fields(document: Document, path: str, kind: Any, value: object) -> Iterator[Finding]:
    """Fields that a type of `msgspec.inspect` does not have."""
    known = {field.encode_name: field.type for field in fields_of(kind)}
    for name, inner in mapping(value).items() if known else ():
        if name in known:
            yield from _check_fields(document, f"{path}.{name}", known[name], inner)
            continue
        close = difflib.get_close_matches(str(name), known, 1, 0.75)
        meant = close[0] if close else _OTHER_NAMES.get(str(name), "")
        fix = f"{meant} is meant" if meant else f"known: {', '.join(known)}"
        text = f"unknown field: API servers drop it, or refuse the object; {fix}"
        yield findings.error(document, f"{path}.{name}", text)


def _errors(document: Document, spec: Mapping[str, Any]) -> Iterator[Finding]:
    """Every error of a pool, each found in an object that is right but for one part."""
    good = _GOOD[document.group]
    variants: list[Mapping[str, Any]] = [{**good, name: spec.get(name)} for name in good]
    labels, is_v1 = mapping(spec.get("selector")), document.group == GA_GROUP
    if is_v1:
        labels = mapping(labels.get("matchLabels"))
        variants += [{**good, name: spec[name]} for name in ("appProtocol", "endpointPickerRef") if name in spec]
    for one in ({key: label} for key, label in labels.items()):
        variants.append({**good, "selector": {"matchLabels": one} if is_v1 else one})
    changes: list[dict[str, Any]] = [{"metadata": {"name": "x"}, "spec": variant} for variant in variants]
    for changed in ({"spec": good}, *changes):
        try:
            parse_pool({**document.value, **changed})
        except InvalidPool as error:
            yield findings.invalid(document, error)

"""Which base model a model name belongs to: from ConfigMaps, as the reference's body-based routing reads them. Pure.

Source: Gateway API Inference Extension, body-based routing: label `inference.networking.k8s.io/bbr-managed: "true"`,
key `baseModel` a name, key `adapters` a YAML list of names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import yaml

from headrace.gateway.snapshot import Objects, mapping

logger = logging.getLogger(__name__)

_MAX_ADAPTERS_BYTES = 1 << 18


def base_models(config_maps: Objects) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Model name to base model name, base models included; and what is wrong with the ConfigMaps.

    Where two name the same adapter, the first by namespace and name holds."""
    found: dict[str, str] = {}
    problems: list[str] = []
    for (namespace, name), config_map in sorted(config_maps.items()):
        where = f"ConfigMap {namespace}/{name}"
        data = mapping(config_map.get("data"))
        base = str(data.get("baseModel") or "").strip()
        if not base:
            problems.append(f"{where}: baseModel is empty: name the base model")
            continue
        try:
            adapters = list(_adapters(data.get("adapters")))
        except ValueError as error:
            problems.append(f"{where}: adapters: {error}")
            adapters = []
        for model in (base, *adapters):
            known = found.setdefault(model, base)
            if known != base:
                problems.append(f"{where}: {model!r} is of {known!r} already: name it in one ConfigMap")
    return found, tuple(problems)


class BaseModels:
    """The mapping as of now: read again when the ConfigMaps have changed, its problems logged once for each change."""

    def __init__(self, config_maps: Callable[[], Objects]) -> None:
        self._config_maps = config_maps
        self._read: Objects = {}
        self._found: Mapping[str, str] = {}

    def __call__(self) -> Mapping[str, str]:
        """Model name to base model name."""
        newest = self._config_maps()
        if newest is not self._read:
            if newest != self._read:
                self._found, problems = base_models(newest)
                for problem in problems:
                    logger.warning("%s", problem)
            self._read = newest
        return self._found


def _adapters(text: object) -> Iterator[str]:
    if text is None:
        return
    if not isinstance(text, str) or len(text) > _MAX_ADAPTERS_BYTES:
        raise ValueError("write a YAML list of names")
    try:
        listed = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise ValueError("this is not YAML: write a list of names, each line '- name'") from None
    if listed is None:
        return
    if not isinstance(listed, list) or not all(isinstance(entry, str | int | float) for entry in listed):
        raise ValueError(f"{str(listed)[:60]!r} is not a list of names: write each line as '- name'")
    yield from (str(entry).strip() for entry in listed if str(entry).strip())

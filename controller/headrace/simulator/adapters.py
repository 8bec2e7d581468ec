"""The models a simulated server answers for: its base model's names and its LoRA adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.simulator.openai import ApiError, bad_field, model_not_found


@dataclass(frozen=True)
class Served:
    """What a request's `model` stands for."""

    name: str
    adapter: str | None


class Models:
    """Base model and adapters. Adapters come and go at runtime."""

    def __init__(
        self, *, model: str, served_names: tuple[str, ...], adapters: Mapping[str, str], check_paths: bool = False
    ) -> None:
        """`adapters` maps names to paths. With `check_paths`, a loaded adapter's path must exist here."""
        self.root = model
        self.served_names = served_names or (model,)
        self._adapters = dict(adapters)
        self._check_paths = check_paths

    def find(self, model: str | None) -> Served:
        """The model of a request; None is the base model. Raises ApiError (404)."""
        if model is None:
            return Served(self.served_names[0], None)
        if model in self.served_names:
            return Served(model, None)
        if model in self._adapters:
            return Served(model, model)
        raise model_not_found(model)

    def load(self, body: Mapping[str, Any]) -> str:
        """Load an adapter; returns its name. Raises ApiError: 400 when it is there already, 404 for a bad path."""
        name, path = body.get("lora_name"), body.get("lora_path")
        if not isinstance(name, str) or not name:
            raise bad_field("lora_name", name, "give the adapter's name")
        if not isinstance(path, str) or not path:
            raise bad_field("lora_path", path, "give the adapter's path")
        if name in self.served_names or (name in self._adapters and not body.get("load_inplace")):
            raise ApiError(
                400,
                f"The lora adapter '{name}' has already been loaded. Give another lora_name, or unload it first.",
                kind="InvalidUserInput",
                field="lora_name",
            )
        if self._check_paths and not Path(path).exists():
            raise ApiError(404, f"No adapter found for '{path}'.", kind="NotFoundError", field="lora_path")
        self._adapters[name] = path
        return name

    def unload(self, body: Mapping[str, Any]) -> str:
        """Unload an adapter; returns its name. Raises ApiError: 404 when there is none of this name."""
        name = body.get("lora_name")
        if not isinstance(name, str) or not name:
            raise bad_field("lora_name", name, "give the adapter's name")
        if name not in self._adapters:
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.", kind="NotFoundError", field="lora_name")
        del self._adapters[name]
        return name

    def listing(self, created: int, max_model_len: int) -> dict[str, Any]:
        """The body of /v1/models."""
        base = self.served_names[0]
        entries = [(name, self.root, None, max_model_len) for name in self.served_names]
        adapters = [(name, path, base, None) for name, path in self._adapters.items()]
        return {
            "object": "list",
            "data": [
                {
                    "id": name,
                    "object": "model",
                    "created": created,
                    "owned_by": "headrace-simulator",
                    "root": root,
                    "parent": parent,
                    "max_model_len": length,
                }
                for name, root, parent, length in [*entries, *adapters]
            ],
        }

"""The models a simulated server answers for: its base model's names and its LoRA adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.simulator.openai import ApiError, model_not_found, wrong_type


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
        raise model_not_found(model, self.served_names)

    def load(self, body: Mapping[str, Any]) -> str:
        """Load an adapter; returns its name. Raises ApiError: 400 when it is there already, 404 for a bad path."""
        name, path = _text(body, "lora_name"), _text(body, "lora_path")
        if not name or not path:
            raise _bad_input("Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.served_names:
            raise _bad_input(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self._adapters and not body.get("load_inplace"):
            raise _bad_input(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True."
            )
        if self._check_paths and not Path(path).exists():
            raise ApiError(404, f"Loading lora {name} failed: No adapter found for {path}", kind="NotFoundError")
        self._adapters[name] = path
        return name

    def unload(self, body: Mapping[str, Any]) -> str:
        """Unload an adapter; returns its name. Raises ApiError: 404 when there is none of this name."""
        name = _text(body, "lora_name")
        if not name:
            raise _bad_input("'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self._adapters:
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.", kind="NotFoundError")
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
                    "permission": [{**_PERMISSION, "id": f"modelperm-{number:016x}", "created": created}],
                }
                for number, (name, root, parent, length) in enumerate([*entries, *adapters])
            ],
        }


_PERMISSION = {
    "object": "model_permission",
    "allow_create_engine": False,
    "allow_sampling": True,
    "allow_logprobs": True,
    "allow_search_indices": False,
    "allow_view": True,
    "allow_fine_tuning": False,
    "organization": "*",
    "group": None,
    "is_blocking": False,
}


def _text(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str):
        raise wrong_type(field, value, "give a text")
    return value


def _bad_input(message: str) -> ApiError:
    return ApiError(400, message, kind="InvalidUserInput")

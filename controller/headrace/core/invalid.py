"""What every error about a field of somebody's input has: the field, its value, and the fix."""

from __future__ import annotations

_MOST_SHOWN = 200


class InvalidField(ValueError):  # noqa: N818
    """Input that cannot be used. `field` is the path to it, as `spec.targetPorts[0].number`."""

    def __init__(self, field_path: str, value: object, fix: str) -> None:
        self.field = field_path
        self.value = value
        self.fix = fix
        shown = repr(value)
        if len(shown) > _MOST_SHOWN:
            shown = shown[: _MOST_SHOWN - 3] + "..."
        super().__init__(f"{field_path}: {shown}: {fix}")

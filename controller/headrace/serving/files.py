"""Files that a process reads again when they change."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False)
class Reloading(Generic[T]):
    """What is in some files; `current` is what could be used last. It may be used by several threads.

    `read` gives what is in the files and raises ValueError where that cannot be used, to the maker too; `what` names it
    in logs. Changes are seen by the files' contents: a mounted ConfigMap or Secret changes by swapping links, and times
    say little about that."""

    files: Sequence[Path]
    read: Callable[[], T]
    what: str
    _: KW_ONLY
    on_bad: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._seen = self._digests()
        self.current = self.read()

    def changed(self) -> T | None:
        """The new value, if the contents have changed. What cannot be used is logged once, and counted by `on_bad`."""
        digests = self._digests()
        if digests == self._seen:
            return None
        self._seen = digests
        try:
            self.current = self.read()
        except ValueError as error:
            self.on_bad()
            logger.error("%s stays as it was: %s", self.what, error)
            return None
        logger.info("%s has changed", self.what, extra={"files": [str(path) for path in self.files]})
        return self.current

    def _digests(self) -> list[bytes | None]:
        digests: list[bytes | None] = []
        for path in self.files:
            try:
                digests.append(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
            except OSError:
                digests.append(None)
        return digests

"""What the pool's InferenceObjectives and InferenceModelRewrites make of a request, before anything is decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from msgspec import structs

from headrace.core import ModelRewrite, Objective, Refusal, RefusalReason, Request, RewriteTable


@dataclass(eq=False)
class Policies:
    """The objectives and rewrites of one pool. `on_rewrite` is told of each: object, asked model, target model."""

    rng: Random
    on_rewrite: Callable[[str, str, str], None]

    def __post_init__(self) -> None:
        # By the name of their objective.
        self.priorities: dict[str, int] = {}
        self._rewrites = RewriteTable()

    def set_objectives(self, objectives: Iterable[Objective]) -> None:
        """These are the pool's objectives from now on."""
        self.priorities = {objective.name: objective.priority for objective in objectives}

    def set_rewrites(self, rewrites: Iterable[ModelRewrite]) -> None:
        """These are the pool's rewrites from now on."""
        self._rewrites = RewriteTable(rewrites)

    @property
    def rewritten_models(self) -> list[str]:
        """The models that a rule names, `*` for a rule for every model."""
        return self._rewrites.models

    def apply(self, request: Request) -> Request | Refusal:
        """The request with its priority, and with the model it goes to. An objective that is not known has priority 0.

        A rewrite object goes before the client's own rewrite header. What names no model is not rewritten; what may
        name one that is not known is refused where a rewrite could apply to it."""
        priority = self.priorities.get(request.objective, 0) if request.objective else 0
        target = request.model
        if request.unread and (request.wanted_model or self._rewrites):
            text = f"the request's body is not read, and its model may have to be rewritten: {request.unread}"
            return Refusal(413, RefusalReason.BODY_TOO_LARGE, text)
        if target and (request.wanted_model or self._rewrites):
            found = self._rewrites.choose(target, self.rng)
            if found is not None:
                self.on_rewrite(found.rewrite, target, found.model)
                target = found.model
            elif request.wanted_model:
                target = request.wanted_model
        if target != request.model:
            return structs.replace(request, priority=priority, model=target, asked_model=request.model)
        return structs.replace(request, priority=priority) if priority else request

"""Profile handlers: which of a configuration's scheduling profiles a request is picked by.

Source: Gateway API Inference Extension v1.5.0, single profile handler; llm-d-router, header profile handler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from msgspec import field

from headrace.config.decode import Parameters
from headrace.core import Request
from headrace.scheduling.profile import Profile


class ProfileHandler(Protocol):
    """Chooses one profile for a request."""

    type_name: ClassVar[str]

    def choose(self, request: Request, profiles: Mapping[str, Profile]) -> Profile | None:
        """The request's profile; None where it asks for one that there is not."""


class SingleProfileHandler(Parameters, frozen=True):
    """There is one profile, and it is used."""

    type_name: ClassVar[str] = "single-profile-handler"

    def choose(self, request: Request, profiles: Mapping[str, Profile]) -> Profile | None:
        return next(iter(profiles.values()))


class HeaderProfileHandler(Parameters, frozen=True):
    """A request header names the profile; without it `default_profile`. With one profile only, that one is used."""

    type_name: ClassVar[str] = "header-profile-handler"
    header: str = field(default="epp-profile", name="headerName")
    default_profile: str = "decode"

    def choose(self, request: Request, profiles: Mapping[str, Profile]) -> Profile | None:
        if len(profiles) == 1:
            return next(iter(profiles.values()))
        return profiles.get(request.headers.get(self.header, "").strip() or self.default_profile)

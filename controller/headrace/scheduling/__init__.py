"""Which endpoint a request should go to: pure functions of request, endpoint states, now and a random generator."""

from headrace.scheduling.config import PrefixSettings, SchedulingConfig, read_config
from headrace.scheduling.facts import EndpointState, Facts
from headrace.scheduling.parameters import InvalidConfig
from headrace.scheduling.profile import Outcome, Profile, default_profile, explain, run

__all__ = [
    "EndpointState",
    "Facts",
    "InvalidConfig",
    "Outcome",
    "PrefixSettings",
    "Profile",
    "SchedulingConfig",
    "default_profile",
    "explain",
    "read_config",
    "run",
]

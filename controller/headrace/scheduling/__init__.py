"""Which endpoint a request should go to: pure functions of request, endpoint states, now and a random generator."""

from headrace.scheduling.config import SchedulingConfig, read_config
from headrace.scheduling.facts import Binding, EndpointState, Facts
from headrace.scheduling.outcome import Outcome
from headrace.scheduling.prefix import PrefixSettings
from headrace.scheduling.profile import Profile, default_profile, explain, run
from headrace.scheduling.saturation import SaturationDetector

__all__ = [
    "Binding",
    "EndpointState",
    "Facts",
    "Outcome",
    "PrefixSettings",
    "Profile",
    "SaturationDetector",
    "SchedulingConfig",
    "default_profile",
    "explain",
    "read_config",
    "run",
]

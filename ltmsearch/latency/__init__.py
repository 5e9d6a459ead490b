"""Latency of subnets on a device: measurements, profiles, and predictions from them."""

from ltmsearch.latency.build import build_profile, profile_space, subnets_to_time
from ltmsearch.latency.command import profile_backbone, profile_recipe
from ltmsearch.latency.comparison import profile_in_every_runtime
from ltmsearch.latency.measurement import Measurement
from ltmsearch.latency.profile import LatencyProfile, TimedSubnet, find_profile, profile_path
from ltmsearch.latency.study import PROFILE, StudyLatency, measure, settings_target, study_latency
from ltmsearch.latency.target import LatencyTarget, hardware_name

__all__ = [
    "PROFILE",
    "LatencyProfile",
    "LatencyTarget",
    "Measurement",
    "StudyLatency",
    "TimedSubnet",
    "build_profile",
    "find_profile",
    "hardware_name",
    "measure",
    "profile_backbone",
    "profile_in_every_runtime",
    "profile_path",
    "profile_recipe",
    "profile_space",
    "settings_target",
    "study_latency",
    "subnets_to_time",
]

"""Optimisers and schedules."""

from .build import build_lr_scheduler, build_optimizer
from .schedule import WarmupPolySchedule

__all__ = ["WarmupPolySchedule", "build_lr_scheduler", "build_optimizer"]

"""Lightning callbacks of a training run, and their construction from ``cfg.callbacks``."""

from __future__ import annotations

from bouton.training.callbacks.build import build_callbacks
from bouton.training.callbacks.checkpoint import Checkpointing
from bouton.training.callbacks.curriculum import Curriculum
from bouton.training.callbacks.early_stop import EarlyStop
from bouton.training.callbacks.hopeless import HopelessStop
from bouton.training.callbacks.media import Media
from bouton.training.callbacks.metrics import MetricsLogging
from bouton.training.callbacks.nonfinite import NonFiniteGuard
from bouton.training.callbacks.progress import ProgressBar
from bouton.training.callbacks.stop import StopControl
from bouton.training.callbacks.throughput import Throughput

__all__ = [
    "Checkpointing",
    "Curriculum",
    "EarlyStop",
    "HopelessStop",
    "Media",
    "MetricsLogging",
    "NonFiniteGuard",
    "ProgressBar",
    "StopControl",
    "Throughput",
    "build_callbacks",
]

"""Training: one call runs a configuration in a run folder, with exact resume."""

from bouton.training.run import train

__all__ = ["train"]

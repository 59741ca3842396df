"""Configuration: composition of mechanisms, names of runs, one-line errors, several devices.

Hydra's plugin scanner imports this at every start, so nothing here may import torch while loading.
"""

from bouton.config.composer import compose, finish
from bouton.config.messages import explain
from bouton.config.naming import canonical_name, register_resolvers
from bouton.config.paths import conf_dir

register_resolvers()

__all__ = ["canonical_name", "compose", "conf_dir", "explain", "finish"]

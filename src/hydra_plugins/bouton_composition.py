"""Makes ``mechanism=a+b`` known to Hydra. The scanner imports this at every start: it must stay light."""

from bouton.config.composition import CompositionSearchPath, CompositionSource

__all__ = ["CompositionSearchPath", "CompositionSource"]

"""Mechanisms: one file each. ``bouton.mechanisms()`` is the registry, name -> class."""

from __future__ import annotations

import sys
from types import ModuleType

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, flag, integer, real
from bouton.mechanisms.pictures import Picture
from bouton.mechanisms.registry import get, mechanisms, register
from bouton.mechanisms.vitals import Vitals

__all__ = [
    "Mechanism",
    "Params",
    "Picture",
    "Vitals",
    "choice",
    "flag",
    "get",
    "integer",
    "mechanisms",
    "real",
    "register",
]


class _Registry(ModuleType):
    """Lets ``bouton.mechanisms()`` be the registry while ``bouton.mechanisms.presyn`` stays a module."""

    def __call__(self) -> dict[str, type[Mechanism]]:
        return mechanisms()


sys.modules[__name__].__class__ = _Registry

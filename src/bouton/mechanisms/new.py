"""A new mechanism from a template: ``python -m bouton.mechanisms.new NAME`` (``make mechanism NAME=...``).

It writes the mechanism, its YAML and a test, all three working: the new mechanism composes with the others and passes
the contract suite from the start. What remains is to replace its equation.
"""

from __future__ import annotations

import importlib.util
import keyword
import sys
from pathlib import Path
from string import Template

from bouton.errors import BoutonError, ConfigError
from bouton.mechanisms import registry
from bouton.mechanisms.yaml import render

_MECHANISM = Template('''\
"""$name: a gain per neuron that depends on its own activity.

    y_i = x_i (1 + strength tanh(gain_i x_i))

Say here what your mechanism models, and give its equation in place of this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, real
from bouton.mechanisms.registry import register

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.initialize import Draw


@dataclass(frozen=True)
class ${cls}Params(Params):
    """Parameters of :class:`$cls`."""

    strength: float = real(0.1, "largest relative change of the activity; 0 leaves it out", low=0)


class ${cls}Gate(nn.Module):
    """The part in one ``mixer_gate`` socket."""

    def __init__(self, hp: ${cls}Params, layer: int, width: int) -> None:
        super().__init__()
        self.hp, self.layer = hp, layer
        self.gain = nn.Parameter(torch.empty(width))

    def initialize_parameters(self, draw: Draw) -> None:
        draw.normal(self.gain, 1.0, "gain")

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """x (B, T, width) -> the same shape."""
        change = self.hp.strength * torch.tanh(self.gain * x)
        if ctx.vitals is not None:
            ctx.report($cls.name, "modulation", change.detach().abs().mean(), self.layer)
        return x * (1 + change)


@register
class $cls(Mechanism):
    """A gain per neuron on the hidden layer of every mixer."""

    name = "$name"
    summary = "a gain per neuron that depends on its own activity"
    source = "the paper with the equation"
    sockets = ("mixer_gate",)
    Params = ${cls}Params
    neutral: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {"modulation": "mean relative change of the activity"}

    def plug(self, body: Body) -> None:
        if self.hp.strength == 0:
            return
        for socket in body.sockets("mixer_gate"):
            socket.plug(self, ${cls}Gate(self.hp, socket.layer, socket.width))
''')

_TEST = Template('''\
"""$name: its equation. The contract suite covers the rest (tests/contract)."""

from __future__ import annotations

import torch

from bouton.mechanisms import Vitals
from bouton.mechanisms.$name import ${cls}Gate, ${cls}Params
from bouton.models import Context, initialize


def test_equals_its_equation_and_reports_its_vital() -> None:
    gate = initialize(${cls}Gate(${cls}Params(strength=0.5), layer=0, width=6), seed=0).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vitals = Vitals()
    y = gate(x, Context(torch.arange(5)[None], vitals=vitals))
    change = 0.5 * torch.tanh(gate.gain * x)
    assert torch.allclose(y, x + x * change, atol=1e-14, rtol=0)
    assert torch.isclose(vitals.mean()["$name/modulation"], change.abs().mean().float())
''')


def create(name: str, root: Path) -> list[Path]:
    """Write mechanism, YAML and test of a new mechanism into the source tree at ``root``, and register it.

    Args:
        name: a lower-case Python identifier that no mechanism has.
        root: the folder that holds ``src``, ``conf`` and ``tests``.

    Returns:
        The three files.

    Raises:
        ConfigError: the name cannot be used, a file exists, or ``root`` is no source tree.
    """
    if not name.isidentifier() or not name.islower() or keyword.iskeyword(name) or name.startswith("_"):
        raise ConfigError(f"NAME = {name!r} is not valid: use a lower-case Python identifier, e.g. my_mechanism")
    if name == "none" or name in registry.mechanisms() or importlib.util.find_spec(f"bouton.mechanisms.{name}"):
        taken = ", ".join(["none", *registry.mechanisms()])
        raise ConfigError(f"NAME = '{name}' is taken: mechanisms are {taken}; other modules keep their names as well")
    if not (root / "conf" / "mechanism").is_dir() or not (root / "src" / "bouton" / "mechanisms").is_dir():
        raise ConfigError(
            f"{root} is not the source tree: with an installed package put the mechanism into your own distribution "
            f"and offer it under the entry-point group '{registry.ENTRY_POINT_GROUP}'"
        )
    module = root / "src" / "bouton" / "mechanisms" / f"{name}.py"
    config = root / "conf" / "mechanism" / f"{name}.yaml"
    test = root / "tests" / "mechanisms" / f"test_{name}.py"
    for path in (module, config, test):
        if path.exists():
            raise ConfigError(f"{path} exists: remove it or choose another name")
    words = {"name": name, "cls": "".join(word.capitalize() for word in name.split("_"))}
    module.write_text(_MECHANISM.substitute(words))
    _register(name, module)
    config.write_text(render(registry.get(name)))
    test.parent.mkdir(parents=True, exist_ok=True)
    test.write_text(_TEST.substitute(words))
    return [module, config, test]


def _register(name: str, path: Path) -> None:
    """Import the module from its file: its ``@register`` makes the mechanism known in this process."""
    qualified = f"bouton.mechanisms.{name}"
    spec = importlib.util.spec_from_file_location(qualified, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module  # dataclasses look their module up
    spec.loader.exec_module(module)


def main(argv: list[str]) -> int:
    """Write the files of the one mechanism named in ``argv`` and say what to do next."""
    try:
        if len(argv) != 1 or not argv[0]:
            raise ConfigError("NAME is missing: make mechanism NAME=my_mechanism")
        root = Path(__file__).resolve().parents[3]
        for path in create(argv[0], root):
            print(path.relative_to(root))
    except BoutonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"It works already: python train.py mechanism={argv[0]}. Now replace its equation, and rewrite the YAML with")
    print(f"python -m bouton.mechanisms.yaml {argv[0]} whenever its parameters change.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

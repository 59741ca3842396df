"""Clauses about a mechanism's own parameters: its YAML, their effect, and the refusal of bad values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from bouton.config.paths import conf_dir
from bouton.errors import BoutonError, ConfigError
from bouton.mechanisms import registry
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Spec
from bouton.mechanisms.yaml import render
from bouton.models.body import Body
from bouton.testing.arms import Arm, leaves, sample_starts, sample_tokens, with_values
from bouton.testing.clauses import clause, loss_of


@clause("mechanism")
def composes_from_yaml(arm: Arm) -> None:
    """Its YAML lists exactly its parameters and defaults, and the configuration composed from it builds."""
    import bouton

    (name,) = [n for n in arm.names if arm.label.startswith(n)][:1] or arm.names[:1]
    cls = registry.get(name)
    path = conf_dir() / "mechanism" / f"{name}.yaml"
    if path.exists() and OmegaConf.load(path) != OmegaConf.create(render(cls)):
        raise AssertionError(
            f"{path.name} differs from the parameters of '{name}': run python -m bouton.mechanisms.yaml"
        )
    cfg = bouton.compose(f"mechanism={'+'.join(arm.names)}", "model=tiny", "model.vocab_size=31")
    if dict(cfg.mechanism[name]) != cls.Params.defaults():
        raise AssertionError(f"the composed parameters of '{name}' are not its defaults")
    if name not in bouton.build(cfg).mechanisms:
        raise AssertionError(f"'{name}' was composed and is not in the model")


@clause("mechanism")
def documents_itself(arm: Arm) -> None:
    """Summary, source, sequence state, and a meaning for every parameter and vital are stated."""
    for name in arm.names:
        cls = registry.get(name)
        for attribute in ("summary", "source", "state", "sockets"):
            if not getattr(cls, attribute, None):
                raise AssertionError(f"mechanism '{name}' does not state its {attribute}")
        for parameter, spec in cls.Params.specs().items():
            if len(spec.doc) < 3:
                raise AssertionError(f"parameter {name}.{parameter} has no documentation")
        if not cls.vital_names:
            raise AssertionError(f"mechanism '{name}' declares no vitals")


@clause("mechanism")
def bad_parameters_are_refused(arm: Arm) -> None:
    """A value outside its range is refused in one line that names the field, the value, and what would be valid."""
    for name in arm.names:
        params = registry.get(name).Params
        for parameter, spec in params.specs().items():
            for value in _bad_values(spec):
                try:
                    params.from_config({parameter: value}, f"mechanism.{name}")
                except ConfigError as error:
                    text = str(error)
                    if f"mechanism.{name}.{parameter}" not in text or "\n" in text or repr(value) not in text:
                        raise AssertionError(f"unclear refusal of {parameter} = {value!r}: {text}") from None
                else:
                    raise AssertionError(f"mechanism.{name}.{parameter} = {value!r} was accepted")


@clause("mechanism")
def every_parameter_has_an_effect(arm: Arm) -> None:
    """Each parameter changes the output, the state, the gradients, or what is trained, somewhere in its range."""
    (name,) = [n for n in arm.names if arm.label.startswith(n)][:1] or arm.names[:1]
    cls = registry.get(name)
    bases = [{}, *cls.variants.values()]
    silent = list(cls.Params.specs())
    # What refines another mechanism may show its effect only in a variant of that one.
    refined = [(other, values) for other in cls.refines for values in registry.get(other).variants.values()]
    wholes = [arm, *(Arm(arm.label, {**arm.mechanism, other: values}) for other, values in refined)]
    # What acts in the backward pass alone, as a surrogate gradient does, shows in the gradients.
    for gradients, whole, base in itertools.product((False, True), wholes, bases):
        if silent and (before := _observe(whole, name, dict(base), gradients)) is not None:
            silent = [p for p in silent if not _has_effect(whole, name, base, p, before, gradients)]
    if silent:
        raise AssertionError(f"parameter {name}.{silent[0]} changed nothing over its range")


def _has_effect(
    arm: Arm, name: str, base: Mapping[str, Any], parameter: str, before: dict[str, torch.Tensor], gradients: bool
) -> bool:
    """Whether another value of the parameter gives something else than ``before``."""
    params = registry.get(name).Params
    for value in _other_values(params.specs()[parameter], base.get(parameter, params.defaults()[parameter])):
        seen = _observe(arm, name, {**base, parameter: value}, gradients)
        if seen is not None and _differ(seen, before):
            return True
    return False


def _bad_values(spec: Spec) -> Iterator[Any]:
    yield "nonsense"
    if spec.kind in ("real", "integer"):
        yield math.nan
        if spec.low is not None:
            yield spec.low - 1
            if spec.low_open:
                yield spec.low
        if spec.high is not None:
            yield spec.high + 1
            if spec.high_open:
                yield spec.high
    if spec.kind == "integer":
        yield (spec.low or 0) + 1.5
    if not spec.optional:
        yield None


def _other_values(spec: Spec, value: Any) -> Iterator[Any]:
    """Valid values that differ from ``value``."""
    if spec.kind == "flag":
        yield not value
    elif spec.kind == "choice":
        yield from (option for option in spec.options if option != value)
    else:
        start = value if value is not None else (spec.low if spec.low is not None else 1)
        candidates = [start * 1.5, start * 0.5, start + 1, start - 1, start * 4, 0.3, 0.7, spec.low, spec.high]
        for candidate in candidates:
            if candidate is None or candidate == value:
                continue
            number = round(candidate) if spec.kind == "integer" else candidate
            try:
                spec.accept(number)
            except ValueError:
                continue
            if number != value:
                yield number


def _observe(arm: Arm, name: str, values: dict[str, Any], gradients: bool) -> dict[str, torch.Tensor] | None:
    """Everything that can be seen of the arm with these values; None if they are refused."""
    try:
        model = Arm(arm.label, with_values(arm.mechanism, name, values)).build()
    except BoutonError:
        return None
    # Long enough that slow time constants show, with a document boundary.
    tokens, starts = sample_tokens(length=40), sample_starts(length=40)
    logits, state = model(tokens, starts=starts)
    # The trained parameters by their shapes: what is learned at all is an effect, too.
    trained = {f"parameter {n}": torch.tensor(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    if gradients:
        objective, own = logits.square().sum(), model.auxiliary_loss()
        (objective if own is None else objective + own).backward()
        trained |= {f"gradient {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    mine = [m for m in model.mechanism_list() if m.name in (name, *registry.get(name).refines)]
    learned = _trained(model) if any(type(m).update_organism is not Mechanism.update_organism for m in mine) else {}
    return {"logits": logits.detach(), **leaves(state), **trained, **learned}


def _trained(model: Body, steps: int = 4) -> dict[str, torch.Tensor]:
    """Parameters and buffers after a few steps of training: where organism state shows its effect."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, sample_tokens(step), sample_starts(step)).backward()
        model.commit_observations(lambda sums: sums)
        optimizer.step()
        model.restructure(optimizer)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {f"after training {name}": tensor.detach().clone() for name, tensor in tensors}


def _differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) != set(b) or any(a[k].shape != b[k].shape or not torch.equal(a[k], b[k]) for k in a)

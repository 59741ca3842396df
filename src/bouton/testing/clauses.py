"""The clauses of the contract. Each takes an arm and raises AssertionError when the arm breaks it.

A clause either concerns a composition (run for every arm) or the mechanism itself (run once per mechanism).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bouton.mechanisms import registry
from bouton.mechanisms.drawing import png
from bouton.mechanisms.pictures import collect
from bouton.mechanisms.vitals import Vitals
from bouton.models.body import Body
from bouton.models.build import build
from bouton.models.initialize import initialize
from bouton.testing.arms import PLAIN, VOCAB, Arm, leaves, map_state, sample_starts, sample_tokens

TOLERANCE = 1e-9  # float64, relative to the largest value


@dataclass(frozen=True)
class Clause:
    """A named check; ``scope`` says whether it runs for every arm or once per mechanism."""

    name: str
    doc: str
    check: Callable[[Arm], None]
    scope: str = "arm"  # "arm" | "mechanism"


CLAUSES: dict[str, Clause] = {}


def clause(scope: str = "arm") -> Callable[[Callable[[Arm], None]], Callable[[Arm], None]]:
    """Register a check under its function's name."""

    def add(check: Callable[[Arm], None]) -> Callable[[Arm], None]:
        CLAUSES[check.__name__] = Clause(check.__name__, (check.__doc__ or "").strip().split("\n")[0], check, scope)
        return check

    return add


def close(actual: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise AssertionError unless the tensors agree relative to the largest value."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if actual.numel() == 0:
        return
    error = (actual.double() - expected.double()).abs().max().item()
    scale = max(1.0, expected.double().abs().max().item())
    if not error <= tolerance * scale:
        raise AssertionError(f"{what}: differs by {error:.3g} (largest value {scale:.3g}, tolerance {tolerance:g})")


def loss_of(model: Body, tokens: Tensor, starts: Tensor | None = None, samples: Tensor | None = None) -> Tensor:
    """Mean next-token cross entropy plus the mechanisms' own terms."""
    logits, _ = model(tokens, starts=starts, samples=samples)
    targets = tokens[:, 1:].reshape(-1)
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), targets)
    if model.training and torch.is_grad_enabled():
        model.observe_loss(loss.detach() * len(targets), torch.tensor(len(targets)))
    extra = model.auxiliary_loss()
    return loss if extra is None else loss + extra


def fingerprint(model: Body) -> str:
    """A hash of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        digest.update(name.encode())
        digest.update(tensor.detach().double().numpy().tobytes())
    return digest.hexdigest()


@clause()
def causal(arm: Arm) -> None:
    """No position sees a later one, and no row another row."""
    model = arm.build()
    tokens, starts = sample_tokens(), sample_starts()
    before = model(tokens, starts=starts)[0]
    for cut in (5, 12, 17):
        changed = tokens.clone()
        changed[:, cut:] = (changed[:, cut:] + 7) % VOCAB
        other_starts = starts.clone()
        other_starts[:, cut:] = ~other_starts[:, cut:]
        close(model(changed, starts=other_starts)[0][:, :cut], before[:, :cut], f"logits before {cut}", 1e-12)
    changed = tokens.clone()
    changed[0] = (changed[0] + 3) % VOCAB
    close(model(changed, starts=starts)[0][1:], before[1:], "logits of the other row", 1e-12)


@clause()
def any_split_is_equal(arm: Arm) -> None:
    """Token by token, in chunks, or at once: the same logits and the same final state (decode equals parallel)."""
    model = arm.build()
    tokens = sample_tokens()
    # One document alone is the case of each mechanism by itself; sums are checked with documents that begin anywhere.
    alone = "+" not in arm.label
    for starts in (None, sample_starts()) if alone else (sample_starts(),):
        whole, final = model(tokens, starts=starts)
        for sizes in ([1] * tokens.shape[1], [7, 1, 8, 3], [18, 1]):
            state, parts, at = None, [], 0
            for size in sizes:
                piece = slice(at, at + size)
                chunk_starts = None if starts is None else starts[:, piece]
                logits, state = model(tokens[:, piece], state, starts=chunk_starts)
                parts.append(logits)
                at += size
            close(torch.cat(parts, 1), whole, f"logits in chunks of {sizes[:4]}")
            ours, theirs = leaves(state), leaves(final)
            if set(ours) != set(theirs):
                raise AssertionError(f"state in chunks has other parts: {set(ours) ^ set(theirs)}")
            for path, leaf in ours.items():
                close(leaf, theirs[path], f"state {path} in chunks of {sizes[:4]}")


@clause()
def documents_are_isolated(arm: Arm) -> None:
    """After a document boundary everything is as in a fresh sequence, whatever came before."""
    model = arm.build()
    tokens = sample_tokens()
    border = 8
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, border] = True
    packed, state = model(tokens, starts=starts)
    alone, fresh = model(tokens[:, border:])
    close(packed[:, border:], alone, "logits after the boundary")
    more = sample_tokens(seed=1)[:, :4]
    close(model(more, state)[0], model(more, fresh)[0], "logits of a continuation after the boundary")
    # ... and at the border between two calls
    later, _ = model(tokens[:, border:], model(tokens[:, :border])[1], starts=starts[:, border:])
    close(later, alone, "logits of a new document begun in a later call")


@clause()
def state_is_plain(arm: Arm) -> None:
    """The state is a tree of tensors, batch first: a row can be taken out and continued on its own."""
    model = arm.build()
    tokens, more = sample_tokens(), sample_tokens(seed=1)[:, :3]
    _, state = model(tokens)
    for path, leaf in leaves(state).items():
        if leaf.shape[0] != tokens.shape[0]:
            raise AssertionError(f"state {path} has shape {tuple(leaf.shape)}: the batch must be its first dimension")
        if not torch.isfinite(leaf.double()).all():
            raise AssertionError(f"state {path} is not finite")
    row = map_state(state, lambda leaf: leaf[1:2].detach().clone())
    close(model(more[1:2], row)[0], model(more, state)[0][1:2], "logits of row 1 continued alone")


@clause("mechanism")
def zero_strength_is_plain(arm: Arm) -> None:
    """At zero strength the model equals the plain body bit for bit."""
    neutral = {name: registry.get(name).neutral for name in arm.names}
    if missing := [name for name, values in neutral.items() if values is None]:
        raise AssertionError(f"{missing[0]} declares neither `neutral` values nor a reason to skip this clause")
    off = Arm("off", {name: dict(values or {}) for name, values in neutral.items()})
    tokens, starts = sample_tokens(), sample_starts()
    for kwargs in ({}, {"starts": starts}):
        if not torch.equal(off.build()(tokens, **kwargs)[0], PLAIN.build()(tokens, **kwargs)[0]):
            raise AssertionError(f"{arm.label} at {off.mechanism} is not the plain body bit for bit")


@clause()
def gradients_are_exact(arm: Arm) -> None:
    """Directional derivatives of the loss by finite differences equal the gradients, for every parameter."""
    model = arm.build()
    tokens, starts = sample_tokens(), sample_starts()
    loss_of(model, tokens, starts).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise AssertionError(f"parameter {name} gets no gradient")
    generator = torch.Generator().manual_seed(0)
    for names, parameters in _directions(arm, model):
        _check_derivative(model, tokens, starts, names, parameters, generator)


def _directions(arm: Arm, model: Body) -> list[tuple[str, list[Tensor]]]:
    """What is moved together: every parameter by itself; in a sum of mechanisms, which were checked alone, all at once
    (a wrong gradient shows there too, it is only not told which)."""
    named = list(model.named_parameters())
    if "+" in arm.label or arm.label == "everything":
        return [("all parameters", [p for _, p in named])]
    return [(name, [p]) for name, p in named]


def _check_derivative(
    model: Body, tokens: Tensor, starts: Tensor, name: str, parameters: list[Tensor], generator: torch.Generator
) -> None:
    step = 1e-6
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    directions = [d / d.norm() for d in directions]
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            for p, direction in zip(parameters, directions, strict=True):
                p.add_(direction, alpha=sign * step)
            losses.append(loss_of(model, tokens, starts).item())
            for p, direction in zip(parameters, directions, strict=True):
                p.add_(direction, alpha=-sign * step)
    numeric = (losses[0] - losses[1]) / (2 * step)
    analytic = sum((p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True) if p.grad is not None)
    if abs(numeric - analytic) > 1e-6 + 1e-4 * abs(numeric):
        raise AssertionError(f"gradient of {name}: {analytic:.6g}, by finite differences {numeric:.6g}")


@clause()
def a_step_trains_every_parameter(arm: Arm) -> None:
    """One step of gradient descent moves every trainable parameter, nothing else, and lowers the loss."""
    model = arm.build()
    tokens = sample_tokens()
    before = {name: p.detach().clone() for name, p in [*model.named_parameters(), *model.named_buffers()]}
    first = loss_of(model, tokens)
    first.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in trainable.values():
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-3)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        moved = not torch.equal(tensor, before[name])
        if moved != (name in trainable):
            raise AssertionError(f"{name} {'moved' if moved else 'did not move'} in a training step")
    if loss_of(model, tokens) < first:
        return
    # A hard choice (an expert, a vesicle) may have flipped on the way: a hundredth of it must do then.
    with torch.no_grad():
        for p in trainable.values():
            if p.grad is not None:
                p.add_(p.grad, alpha=1e-3 - 1e-5)
    if not loss_of(model, tokens) < first:
        raise AssertionError("the loss did not fall along its own gradient")


@clause()
def resume_is_exact(arm: Arm) -> None:
    """Save, load into a new model, go on: bit for bit the same as not having stopped."""

    def steps(model: Body, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            loss_of(model, sample_tokens(step), sample_starts(step)).backward()
            model.commit_observations(lambda sums: sums)
            optimizer.step()
            model.restructure(optimizer)

    through = arm.build()
    adam = torch.optim.AdamW(through.parameters(), lr=1e-3)
    steps(through, adam, 0, 2)
    saved = copy.deepcopy((through.state_dict(), adam.state_dict()))
    steps(through, adam, 2, 4)
    resumed = arm.build(seed=1)
    adam = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    resumed.load_state_dict(saved[0])
    adam.load_state_dict(saved[1])
    steps(resumed, adam, 2, 4)
    if fingerprint(through) != fingerprint(resumed):
        raise AssertionError("the resumed model differs from the uninterrupted one")


@clause()
def vitals_are_complete(arm: Arm) -> None:
    """Every declared vital is reported, finite, and asking for vitals does not change the output."""
    model = arm.build()
    tokens = sample_tokens()
    vitals = Vitals()
    with_vitals = model(tokens, vitals=vitals)[0]
    if not torch.equal(with_vitals, model(tokens)[0]):
        raise AssertionError("collecting vitals changes the logits")
    values = vitals.mean()
    declared = {f"{name}/{vital}" for name in arm.names for vital in registry.get(name).vital_names}
    if declared != set(values):
        raise AssertionError(f"vitals declared and reported differ in {declared ^ set(values)}")
    if bad := [name for name, value in values.items() if not torch.isfinite(value)]:
        raise AssertionError(f"vital {bad[0]} is not finite")


@clause("mechanism")
def pictures_can_be_drawn(arm: Arm) -> None:
    """Every declared picture of a sequence has finite values, and drawing it leaves the model as it was."""
    model = arm.build().eval()
    before = fingerprint(model)
    for name, picture in collect(model, sample_tokens()[:1], sample_starts()[:1]).items():
        values = picture.values[~picture.values.isnan()]
        if not values.numel() or not values.isfinite().all():
            raise AssertionError(f"picture {name} has values that are not finite, or none")
        if not png(picture).startswith(b"\x89PNG"):
            raise AssertionError(f"picture {name} is not drawn")
    if fingerprint(model) != before:
        raise AssertionError("drawing changes the model")


@clause()
def evaluation_changes_nothing(arm: Arm) -> None:
    """Evaluating and generating leave every parameter and buffer as it was; the order of evaluation is irrelevant."""
    model = arm.build().eval()
    before = fingerprint(model)
    with torch.no_grad():
        first = [model(sample_tokens(i), vitals=Vitals())[0] for i in (0, 1)]
        state = None
        for t in range(6):
            _, state = model(sample_tokens()[:, t : t + 1], state)
        second = [model(sample_tokens(i))[0] for i in (1, 0)]
    model.commit_observations(lambda sums: sums)
    if fingerprint(model) != before:
        raise AssertionError("evaluation changed a parameter or buffer")
    if not (torch.equal(first[0], second[1]) and torch.equal(first[1], second[0])):
        raise AssertionError("results depend on the order of evaluation")


@clause()
def meta_construction_is_initialised(arm: Arm) -> None:
    """Built on the meta device, then initialised, it equals the direct construction: no tensor is left unset."""
    model = build(arm.config(), device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    initialize(model, 0)
    direct = dict(build(arm.config()).state_dict(keep_vars=False))
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, direct[name]):
            raise AssertionError(f"{name} is not initialised after construction on the meta device")


@clause()
def low_precision_runs(arm: Arm) -> None:
    """Under bfloat16 autocast and in float32 the model trains: finite loss and gradients, close to float64."""
    exact = arm.build()
    tokens = sample_tokens()
    expected = loss_of(exact, tokens).item()
    for autocast, tolerance in ((False, 1e-3), (True, 0.1)):
        model = build(arm.config())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, tokens)
        loss.backward()
        if not math.isclose(loss.item(), expected, rel_tol=tolerance):
            raise AssertionError(f"loss {loss.item():.5f} (autocast={autocast}), in float64 {expected:.5f}")
        for name, p in model.named_parameters():
            if p.grad is None or not torch.isfinite(p.grad).all():
                raise AssertionError(f"gradient of {name} is missing or not finite (autocast={autocast})")


@clause()
def backends_agree(arm: Arm) -> None:
    """Every available backend of every op in use gives the same output and gradients, in float32."""
    from bouton.ops import backends

    ops = sorted({op for name in arm.names for op in registry.get(name).ops})
    tokens, starts = sample_tokens(), sample_starts()
    results: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for op in ops:
        for backend in backends.backends_of(op):
            if backend in backends.refusals(op, "cpu"):
                continue
            model = build({**arm.config(), "kernels": {"backend": "auto", op: backend}})
            logits, _ = model(tokens, starts=starts)
            loss_of(model, tokens, starts).backward()
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            results[f"{op}:{backend}"] = (logits.detach(), grads)
    backends.configure()
    if not results:
        return
    reference, (logits, grads) = next(iter(results.items()))
    for label, (other_logits, other_grads) in results.items():
        close(other_logits, logits, f"logits with {label} against {reference}", 1e-4)
        for name, grad in grads.items():
            close(other_grads[name], grad, f"gradient of {name} with {label} against {reference}", 1e-3)

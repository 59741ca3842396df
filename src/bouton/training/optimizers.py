"""AdamW and Muon with parameter groups, and several optimizers under the interface of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from bouton.errors import ConfigError, suggest

ADAMW_FIELDS = ("lr", "weight_decay", "betas", "eps")
MUON_FIELDS = ("lr", "weight_decay", "momentum", "nesterov", "ns_steps", "adjust_lr", "adamw")


class CombinedOptimizer(Optimizer):
    """Steps several optimizers over disjoint parameters as one.

    ``param_groups`` and ``state`` are the children's own, shared and not copied: a scheduler that changes the rate of
    a group changes it in the child, and ``state_dict`` holds everything in the format of a single optimizer.
    """

    def __init__(self, children: Sequence[Optimizer]) -> None:
        if not children:
            raise ValueError("CombinedOptimizer needs at least one optimizer")
        self.children = list(children)
        super().__init__([group for child in self.children for group in child.param_groups], {})
        for child in self.children:
            self.state.update(child.state)
        self._share()

    def _share(self) -> None:
        first = 0
        for child in self.children:
            last = first + len(child.param_groups)
            child.param_groups = self.param_groups[first:last]
            child.state = self.state
            first = last

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each child; ``closure`` is evaluated once, before the first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for child in self.children:
            child.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all children from the ``state_dict`` of a combined optimizer with the same groups."""
        super().load_state_dict(state_dict)
        self._share()


class StackedMuon(Optimizer):
    """Muon (Jordan et al. 2024) for 3-D tensors, each matrix of the stack on its own, all at once.

    The same update as :class:`torch.optim.Muon` for every matrix: momentum, orthogonalised by Newton-Schulz iterations
    in bfloat16, and decoupled weight decay.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        flat = Muon([nn.Parameter(torch.empty(1, 1))], **options)  # its defaults, and its checks of the options
        super().__init__(params, flat.defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rows, columns = p.shape[-2:]
                if group["adjust_lr_fn"] == "match_rms_adamw":
                    ratio = 0.2 * math.sqrt(max(rows, columns))
                else:
                    ratio = math.sqrt(max(1, rows / columns))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * ratio)
        return loss


def orthogonalized(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Singular values of every matrix of (n, rows, columns) brought near 1, by Newton-Schulz iterations in bfloat16."""
    a, b, c = coefficients
    x = matrices.bfloat16()
    if wide := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if wide else x


def decays(parameter: Tensor) -> bool:
    """Weight decay is for matrices; a parameter marked ``_no_weight_decay = True`` is exempt."""
    return parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)


def hidden_matrices(model: nn.Module) -> list[str]:
    """Names of the parameters that Muon may orthogonalise: weights of linear maps between hidden spaces.

    Left to AdamW: embeddings, the output head (``model.head``; its size does not tell, a hidden layer may be as wide
    as the vocabulary), vectors, other 3-D tensors than those of :func:`hidden_stacks`, per-head tables of mechanisms,
    and parameters marked ``_no_muon = True``.
    """
    head = getattr(model, "head", None)
    return [
        f"{prefix}.weight" if prefix else "weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and module is not head
        and not getattr(module.weight, "_no_muon", False)
    ]


def hidden_stacks(model: nn.Module) -> list[str]:
    """Names of the 3-D parameters that hold one such matrix per expert: a module lists its own as ``matrix_stacks``."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "matrix_stacks", ())
        if getattr(module, name) is not None
    ]


def build_optimizer(config: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """The optimizer that ``config`` (``name`` and its own fields) describes, over all trainable parameters.

    Raises:
        ConfigError: an unknown optimizer or field, a value out of range, or a model without trainable parameters.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in ("adamw", "muon"):
        raise ConfigError(f"optimizer.name = '{name}' is unknown; {suggest(str(name), ('adamw', 'muon'))}")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ConfigError("the model has no trainable parameters")
    if name == "adamw":
        return _adamw(fields, list(parameters.values()), "optimizer")
    _check(fields, MUON_FIELDS, "optimizer")
    if fields["adjust_lr"] not in ("original", "match_rms_adamw"):
        options = ("original", "match_rms_adamw")
        raise ConfigError(
            f"optimizer.adjust_lr = '{fields['adjust_lr']}' is unknown; {suggest(str(fields['adjust_lr']), options)}"
        )
    muon = {
        "lr": _positive(fields["lr"], "optimizer.lr"),
        "momentum": _unit(fields["momentum"], "optimizer.momentum"),
        "nesterov": bool(fields["nesterov"]),
        "ns_steps": int(_positive(fields["ns_steps"], "optimizer.ns_steps")),
        "adjust_lr_fn": fields["adjust_lr"],
    }
    children: list[Optimizer] = []
    kinds: list[tuple[type[Optimizer], list[str]]] = [
        (Muon, hidden_matrices(model)),
        (StackedMuon, hidden_stacks(model)),
    ]
    for kind, names in kinds:
        if chosen := [parameters.pop(n) for n in list(parameters) if n in set(names)]:
            groups = [
                {"params": [p for p in chosen if decays(p)], "weight_decay": float(fields["weight_decay"])},
                {"params": [p for p in chosen if not decays(p)], "weight_decay": 0.0},
            ]
            children.append(kind([group for group in groups if group["params"]], **muon))
    rest = list(parameters.values())
    if rest:
        children.append(_adamw(dict(fields["adamw"]), rest, "optimizer.adamw"))
    return CombinedOptimizer(children)


def _adamw(fields: Mapping[str, Any], parameters: list[nn.Parameter], path: str) -> AdamW:
    _check(fields, ADAMW_FIELDS, path)
    betas = tuple(_unit(b, f"{path}.betas") for b in fields["betas"])
    if len(betas) != 2:
        raise ConfigError(f"{path}.betas = {list(fields['betas'])} is not valid: two numbers in [0, 1)")
    groups = [
        {"params": [p for p in parameters if decays(p)], "weight_decay": float(fields["weight_decay"])},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return AdamW(
        [group for group in groups if group["params"]],
        lr=_positive(fields["lr"], f"{path}.lr"),
        betas=(betas[0], betas[1]),
        eps=_positive(fields["eps"], f"{path}.eps"),
        fused=fused,
    )


def _check(fields: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    for field in fields:
        if field not in known:
            raise ConfigError(f"{path}.{field} is unknown; {suggest(str(field), known)}")
    for field in known:
        if field not in fields:
            raise ConfigError(f"{path}.{field} is missing")
    decay = fields["weight_decay"]
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < float("inf"):
        raise ConfigError(f"{path}.weight_decay = {decay!r} is not valid: a number >= 0")


def _positive(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"{path} = {value!r} is not valid: a number > 0")
    return float(value)


def _unit(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{path} = {value!r} is not valid: a number in [0, 1)")
    return float(value)

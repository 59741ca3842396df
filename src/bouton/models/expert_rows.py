"""Copying and merging experts that are stored in one tensor, with what the optimizer keeps for them.

An optimizer's state for a parameter follows where it has the parameter's shape (momenta, second moments); numbers for
the whole tensor (step counts) stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bouton.models.experts import Experts


def stored(parameter: nn.Parameter, optimizer: Optimizer | None) -> Iterator[Tensor]:
    """The parameter and every tensor of its shape that the optimizer keeps for it."""
    yield parameter.data
    if optimizer is not None and parameter in optimizer.state:
        for value in optimizer.state[parameter].values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield value


def copy_row(parameter: nn.Parameter, source: int, target: int, optimizer: Optimizer | None) -> None:
    """parameter[target] = parameter[source]."""
    for tensor in stored(parameter, optimizer):
        tensor[target] = tensor[source]


def blend_row(parameter: nn.Parameter, source: int, target: int, share: float, optimizer: Optimizer | None) -> None:
    """parameter[target] = share * parameter[source] + (1 - share) * parameter[target]."""
    for tensor in stored(parameter, optimizer):
        tensor[target] = torch.lerp(tensor[target], tensor[source], share)


def reset_row(parameter: nn.Parameter, row: int, value: Tensor, optimizer: Optimizer | None) -> None:
    """parameter[row] = value, as if it had never been trained."""
    tensors = stored(parameter, optimizer)
    next(tensors)[row] = value
    for tensor in tensors:
        tensor[row] = 0


def copy_expert(experts: Experts, source: int, target: int, optimizer: Optimizer | None) -> None:
    """An exact copy of expert ``source`` into the slot ``target``."""
    for parameter in experts.stacks():
        copy_row(parameter, source, target, optimizer)


def merge_expert(experts: Experts, source: int, target: int, share: float, optimizer: Optimizer | None) -> None:
    """Expert ``target`` becomes ``share`` of ``source`` and the rest of itself, after matching their hidden units."""
    units = match(experts, source, target)
    for parameter in experts.stacks():
        dim = experts.unit_dim(parameter)
        for tensor in stored(parameter, optimizer):
            other = tensor[source] if dim is None else tensor[source].index_select(dim, units)
            tensor[target] = torch.lerp(tensor[target], other, share)


def match(experts: Experts, source: int, target: int) -> Tensor:
    """(width,) the hidden unit of ``source`` that corresponds to each of ``target``.

    The assignment of least squared distance between the units' weights (Ainsworth et al. 2023). Where the units are
    not exchangeable, because something shared by the experts has a value per unit, each corresponds to itself.
    """
    device = experts.up.device
    if not experts.units_are_exchangeable():
        return torch.arange(experts.width, device=device)
    from scipy.optimize import linear_sum_assignment

    similarity = torch.zeros(experts.width, experts.width, dtype=torch.float64)
    for parameter in experts.stacks():
        if (dim := experts.unit_dim(parameter)) is not None:
            a, b = (parameter.detach()[e].double().cpu() for e in (source, target))
            a, b = (m.movedim(dim, 0).reshape(experts.width, -1) for m in (a, b))
            similarity += b @ a.T
    return torch.as_tensor(linear_sum_assignment(similarity.numpy(), maximize=True)[1], device=device)


def nearest(experts: Experts, expert: int, others: list[int]) -> int:
    """Which of the ``others`` is most like ``expert``: largest cosine between their linear parts down @ up.

    A permutation of the hidden units leaves that product as it is, so nothing needs matching to compare.
    """
    maps = (experts.down[[expert, *others]].detach().double() @ experts.up[[expert, *others]].detach().double()).cpu()
    flat = nn.functional.normalize(maps.flatten(1), dim=1)
    return others[int((flat[1:] @ flat[0]).argmax())]

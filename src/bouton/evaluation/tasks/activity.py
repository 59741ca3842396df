"""activity: sparsity and firing rate of the mixers' hidden units.

What is measured is what the mixer's last map reads: the hidden layer after activation and gates, at every layer and on
validation rows. A unit fires where its value is above 0; a silent one is within 1 % of the layer's root mean square of
0; a dead one never fires. Hoyer's sparsity of a token's hidden vector is 0 if all units are equal, 1 if one is active.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bouton.errors import EvaluationError
from bouton.evaluation.base import Result, Row, Task
from bouton.evaluation.intervals import share
from bouton.evaluation.options import Params, integer
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject
from bouton.models.sockets import BranchedLinear, ExclusiveSocket

_SILENT = 0.01  # of the root mean square
_COLUMNS = ("zero", "silent", "hoyer", "firing_rate")


@dataclass(frozen=True)
class ActivityOptions(Params):
    tokens: int = integer(32768, "validation tokens that are read, at most", unit="tokens", low=1)


@register
class Activity(Task):
    name = "activity"
    summary = "exact zeros, silent units, Hoyer sparsity, firing rate and dead units of the mixers' hidden layers"
    source = "Hoyer 2004, JMLR 5:1457 (sparsity measure)"
    Options = ActivityOptions
    headline: ClassVar = ("zero_fraction", "silent_fraction", "hoyer", "firing_rate", "dead_fraction")

    def check(self, subject: Subject) -> None:
        if not _places(subject):
            raise EvaluationError("task activity: this body has no mixer whose hidden layer can be seen")

    def measure(self, subject: Subject, options: ActivityOptions) -> Result:
        rows = subject.validation_rows
        count = min(len(rows), max(2, options.tokens // subject.seq_len))
        chosen = rows[np.arange(count) * len(rows) // count]
        places = _places(subject)
        probes = {label: _Probe() for label in places}
        with ExitStack() as stack:
            for label, (module, before) in places.items():
                probe = probes[label]
                handle: Any
                if before:
                    handle = module.register_forward_pre_hook(lambda _, args, p=probe: p.see(args[0]))
                else:
                    handle = module.register_forward_hook(lambda _, __, out, p=probe: p.see(out))
                stack.callback(handle.remove)
            for batch in subject.batches(chosen, "activity"):
                with subject.computing():
                    subject.model(batch["tokens"], starts=batch["starts"])
        return _summary(probes, count * subject.seq_len)


class _Probe:
    """Sums over the units of one layer: (rows, 4) columns for each row, and how often each unit fired."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.fired: Tensor | None = None
        self.width = 0

    def see(self, hidden: Tensor) -> None:
        """hidden (B, T, width)."""
        x = hidden.detach().float()
        size, self.width = x.abs(), x.shape[-1]
        rms = x.square().mean((1, 2), keepdim=True).sqrt()
        l1, l2 = size.sum(-1), x.square().sum(-1).sqrt()
        root = math.sqrt(self.width)
        # A vector of zeros is as sparse as one can be.
        hoyer = torch.where(l2 > 0, (root - l1 / l2.clamp_min(1e-30)) / (root - 1), 1.0) if self.width > 1 else l1 * 0
        columns = ((x == 0).float().mean(-1), (size < _SILENT * rms).float().mean(-1), hoyer, (x > 0).float().mean(-1))
        self.rows.append(torch.stack([column.double().sum(1) for column in columns], 1).cpu())
        self.tokens.append(torch.full((len(x),), float(x.shape[1]), dtype=torch.float64))
        fired = (x > 0).sum((0, 1)).double().cpu()
        self.fired = fired if self.fired is None else self.fired + fired


def _places(subject: Subject) -> dict[str, tuple[torch.nn.Module, bool]]:
    """Label -> module to watch, and whether its input (True) or its output is the hidden layer.

    A body without maps of the site ``mixer_down`` is watched at its activation sockets.
    """
    modules = subject.model.named_modules()
    found: list[tuple[int, str, torch.nn.Module, bool]] = [
        (m.branch.layer, name, m, True)
        for name, m in modules
        if isinstance(m, BranchedLinear) and m.branch.shape.get("site") == "mixer_down"
    ]
    if not found:
        found = [
            (m.layer, name, m, False)
            for name, m in subject.model.named_modules()
            if isinstance(m, ExclusiveSocket) and m.kind == "activation"
        ]
    return {f"layer {layer}: {name}": (module, before) for layer, name, module, before in found}


def _summary(probes: dict[str, _Probe], tokens: int) -> Result:
    result = Result()
    table: list[Row] = []
    seen = {label: probe for label, probe in probes.items() if probe.fired is not None}
    total: Any = 0.0
    for label, probe in seen.items():
        sums, count = torch.cat(probe.rows).numpy(), torch.cat(probe.tokens).numpy()
        assert probe.fired is not None
        rates = (probe.fired / count.sum()).numpy()
        table.append(
            {"place": label, "width": probe.width, "dead_fraction": float((rates == 0).mean()),
             **{name: float(sums[:, i].sum() / count.sum()) for i, name in enumerate(_COLUMNS)},
             "firing_rate_quartiles": np.quantile(rates, [0.25, 0.5, 0.75]).tolist()}
        )  # fmt: skip
        total = total + sums / len(seen)  # layers weigh the same
    names = {"zero": "zero_fraction", "silent": "silent_fraction"}
    for i, name in enumerate(_COLUMNS):
        result.put(names.get(name, name), share(total[:, i], count))
    result.numbers["dead_fraction"] = float(np.mean([row["dead_fraction"] for row in table]))
    result.numbers["tokens"] = tokens
    result.tables["layers"] = table
    result.figures["layers"] = _draw(table)
    return result


def _draw(table: list[Row]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes: Any = figure.subplots()
    for name, label in (("zero", "exact zeros"), ("silent", "below 1 % of rms"), ("hoyer", "Hoyer sparsity"),
                        ("firing_rate", "firing rate"), ("dead_fraction", "dead units")):  # fmt: skip
        axes.plot(range(len(table)), [row[name] for row in table], marker="o", markersize=4, label=label)
    axes.set_xticks(range(len(table)), [str(row["place"]).partition(":")[0] for row in table])
    axes.set(ylabel="share", ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, frameon=False)
    return figure

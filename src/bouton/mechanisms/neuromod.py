"""neuromod: three global signals from how surprising the tokens are.

    delta_t          = -log p(x_t)                                     surprise; an external reward can replace it
    dopamine_t       = 1 + g_da tanh(delta_t - mean_{t-1})             better or worse than of late
    acetylcholine_t  = 1 + g_ach (entropy_{t-1} / ln V - 1/2)          expected uncertainty
    noradrenaline_t  = 1 + g_na tanh|delta_t - delta_{t-1}|            sudden change

p is a small model of its own: it predicts a token from the one before and from a trace of all earlier ones, with a
table of vectors and a loss of its own. It reads tokens, not the body's vectors, so that its loss trains only itself.
entropy_{t-1} is that of its prediction of x_t, made after x_{t-1}; mean_{t-1} is the exponentially weighted mean of the
earlier delta of the document. Where there is none (the first token) the difference is 0, and the prediction is the
learned prior.

Dopamine multiplies the learning rate of hebb, noradrenaline the vectors of the tokens; acetylcholine is for mechanisms
that draw random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, integer, real
from bouton.mechanisms.pictures import Picture, find
from bouton.mechanisms.registry import register
from bouton.models.layers import Embedding, Linear
from bouton.models.sockets import State
from bouton.ops.scan import affine_scan

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.initialize import Draw

SIGNALS = ("dopamine", "acetylcholine", "noradrenaline")


@dataclass(frozen=True)
class NeuromodParams(Params):
    """Parameters of :class:`Neuromod`."""

    g_da: float = real(0.5, "gain of dopamine; 0: it is 1", low=0, high=1)
    g_ach: float = real(0.5, "gain of acetylcholine; 0: it is 1", low=0, high=1)
    g_na: float = real(0.2, "gain of noradrenaline; 0: it is 1", low=0, high=1)
    rank: int = integer(16, "width of the surprise head's vectors", low=1)
    tau_trace: float = real(8.0, "time constant of its trace", unit="tokens", low=0, low_open=True, scale="log")
    tau_mean: float = real(50.0, "time constant of the mean of delta", unit="tokens", low=0, low_open=True, scale="log")


class SurpriseHead(nn.Module):
    """log p(token | earlier ones) by a bilinear model: a table, a trace of its rows, one map, and a prior."""

    def __init__(self, vocab_size: int, rank: int, tau: float) -> None:
        super().__init__()
        self.rho = math.exp(-1.0 / tau)
        self.table = Embedding(vocab_size, rank, std=1.0)
        self.map = Linear(2 * rank, rank, bias=False, std=0.1 / math.sqrt(2 * rank))
        self.prior = nn.Parameter(torch.empty(vocab_size))

    def initialize_parameters(self, draw: Draw) -> None:
        draw.constant(self.prior, 0.0)

    def forward(self, tokens: Tensor, starts: Tensor | None, state: State | None) -> tuple[Tensor, Tensor, State]:
        """tokens (B, T) -> surprise of each token in nats, entropy of the prediction of each, (B, T), and the state.

        State: ``token`` and ``trace``, (B, rank): what the prediction of the next token is made from.
        """
        vectors = self.table(tokens)
        if state is None:
            state = {name: torch.zeros_like(vectors[:, 0]) for name in ("token", "trace")}
        trace, after = affine_scan(self.rho, (1 - self.rho) * vectors, state["trace"], starts)
        known = torch.cat(
            [
                torch.cat((state[name].unsqueeze(1).to(values.dtype), values[:, :-1]), dim=1)
                for name, values in (("token", vectors), ("trace", trace))
            ],
            dim=-1,
        )
        if starts is not None:
            known = known.masked_fill(starts.unsqueeze(-1), 0.0)
        logits = F.linear(self.map(known), self.table.weight, self.prior)
        log_p = logits.log_softmax(-1)
        surprise = -log_p.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return surprise, entropy, {"token": vectors[:, -1], "trace": after}

    def flops_per_token(self, seq_len: int) -> float:
        return 2.0 * self.table.weight.numel()


class Modulation(nn.Module):
    """The part in the ``signals`` socket: publishes the signals and scales the vectors of the tokens."""

    def __init__(self, owner: Neuromod, vocab_size: int) -> None:
        super().__init__()
        self.owner = (owner,)  # in a tuple: no child of its part
        self.hp = owner.hp
        self.uniform = math.log(max(vocab_size, 2))  # entropy of the uniform distribution
        self.rho = math.exp(-1.0 / owner.hp.tau_mean)
        self.head = SurpriseHead(vocab_size, owner.hp.rank, owner.hp.tau_trace)

    def forward(self, x: Tensor, tokens: Tensor, ctx: Context, state: State | None) -> tuple[Tensor, State]:
        """x (B, T, hidden), scaled by noradrenaline; publishes the signals, (B, T) each."""
        (owner,) = self.owner
        with torch.autocast(x.device.type, enabled=False):
            surprise, entropy, predicting = self.head(tokens, ctx.starts, None if state is None else state["head"])
            if self.training:
                owner.collect(surprise.mean())
            delta = owner.rewarded(surprise)
            signals, after = self._signals(delta, entropy, ctx.starts, state)
        ctx.signals.update(signals)
        if self.hp.g_na:
            x = x * signals["noradrenaline"].unsqueeze(-1).to(x.dtype)
        if ctx.vitals is not None:
            for name, value in {"surprise": surprise, "entropy": entropy / self.uniform, **signals}.items():
                ctx.report(Neuromod.name, name, value.detach().mean(), -1)
            ctx.report(Neuromod.name, "dopamine_spread", signals["dopamine"].detach().std(correction=0), -1)
        return x, {**after, **{name: signal[:, -1] for name, signal in signals.items()}, "head": predicting}

    def _signals(
        self, delta: Tensor, entropy: Tensor, starts: Tensor | None, state: State | None
    ) -> tuple[dict[str, Tensor], State]:
        """The three signals, (B, T), and ``sums`` (B, 3): weighted delta, weight, and last delta of the document."""
        sums = delta.new_zeros(delta.shape[0], 3) if state is None else state["sums"].to(delta.dtype)
        weighted, _ = affine_scan(self.rho, torch.stack((delta, torch.ones_like(delta)), -1), sums[:, :2], starts)
        known = torch.cat((weighted, delta.unsqueeze(-1)), dim=-1)
        earlier = torch.cat((sums.unsqueeze(1), known[:, :-1]), dim=1)
        if starts is not None:
            earlier = earlier.masked_fill(starts.unsqueeze(-1), 0.0)
        total, weight, last = earlier.unbind(-1)
        exists = weight > 0
        usual = total / torch.where(exists, weight, 1.0)
        better = torch.where(exists, delta - usual, 0.0)
        change = torch.where(exists, (delta - last).abs(), 0.0)
        signals = {
            "dopamine": 1 + self.hp.g_da * torch.tanh(better),
            "acetylcholine": 1 + self.hp.g_ach * (entropy / self.uniform - 0.5),
            "noradrenaline": 1 + self.hp.g_na * torch.tanh(change),
        }
        return signals, {"sums": known[:, -1]}


@register
class Neuromod(Mechanism):
    """Dopamine, acetylcholine and noradrenaline from the surprise of the tokens."""

    name = "neuromod"
    summary = "global signals (dopamine, acetylcholine, noradrenaline) from surprise, uncertainty and change"
    source = "Schultz, Dayan and Montague 1997 (dopamine); Yu and Dayan 2005 (acetylcholine, noradrenaline)"
    sockets = ("signals",)
    publishes = SIGNALS
    Params = NeuromodParams
    ops = ("scan",)
    state = "token and trace (B, rank), sums (B, 3), and the last value of each signal (B,), float32"
    neutral: ClassVar[Mapping[str, Any] | None] = {"g_da": 0.0, "g_ach": 0.0, "g_na": 0.0}
    vital_names: ClassVar[Mapping[str, str]] = {
        "surprise": "mean surprise of the tokens in nats",
        "entropy": "mean entropy of the predictions / ln V",
        "dopamine": "mean dopamine",
        "dopamine_spread": "its standard deviation over tokens",
        "acetylcholine": "mean acetylcholine",
        "noradrenaline": "mean noradrenaline",
    }

    def __init__(self, params: NeuromodParams | None = None) -> None:
        super().__init__(params)
        self._loss: Tensor | None = None
        self._reward: Tensor | None = None

    def plug(self, body: Body) -> None:
        if not (self.hp.g_da or self.hp.g_ach or self.hp.g_na):
            return  # a head that nobody hears would still count in the norm to which gradients are clipped
        for socket in body.sockets("signals"):
            socket.plug(self, Modulation(self, socket.vocab_size))

    def collect(self, loss: Tensor) -> None:
        """Keep the head's loss of the last forward pass of training until it is asked for."""
        self._loss = loss

    def auxiliary_loss(self) -> Tensor | None:
        loss, self._loss = self._loss, None
        return loss

    @contextmanager
    def reward(self, values: Tensor) -> Iterator[None]:
        """Forward passes inside this context take ``values`` in place of the surprise.

        Args:
            values: (B, T) like the tokens of those passes; NaN where there is no reward and the surprise stays.
        """
        self._reward = values
        try:
            yield
        finally:
            self._reward = None

    def rewarded(self, surprise: Tensor) -> Tensor:
        """``surprise`` (B, T), with the reward in its place where one was given.

        Raises:
            ConfigError: the reward does not have the shape of the tokens.
        """
        if (values := self._reward) is None:
            return surprise
        if values.shape != surprise.shape:
            raise ConfigError(
                f"reward {tuple(values.shape)} must have the shape of the tokens, (B, T) = {tuple(surprise.shape)}"
            )
        values = values.to(surprise)
        return torch.where(values.isnan(), surprise, values)

    def pictures(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
        """The three signals (rows: dopamine, acetylcholine, noradrenaline) after every token (columns)."""
        shown: dict[str, Picture] = {}
        for _, held in find(states, *SIGNALS):
            values = torch.stack([torch.stack([s[name] for name in SIGNALS]) for s in held], dim=1)
            shown["signals"] = Picture(values, ", ".join(SIGNALS), "token", unit="signal")
        return shown

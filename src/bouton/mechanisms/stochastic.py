"""stochastic: synapses that release whole vesicles, so that what is read is a count and not its mean.

At a share of the query positions (1/N) Binomial(N, W) is read in place of the mean release W;
:mod:`bouton.ops.synapse.release` has the modes. The numbers depend on the seed, the optimizer step, the sample, the
layer, the head and the two positions in the document, and on nothing else: the whole sequence at once and token by
token, one rank and many draw the same. :func:`predictive` reads a text many times and says how far the readings agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bouton.errors import ConfigError
from bouton.mechanisms.base import Mechanism
from bouton.mechanisms.parameters import Params, choice, integer, real
from bouton.mechanisms.presyn import synapses
from bouton.mechanisms.registry import register
from bouton.models.attention import visible_keys
from bouton.ops.synapse import MAX_VESICLES, MODES, Binomial, drawn, stream

if TYPE_CHECKING:
    from bouton.models.body import Body
    from bouton.models.context import Context
    from bouton.models.initialize import Draw
    from bouton.models.sockets import State
    from bouton.ops.synapse.reference import Release

WHEN = ("training", "inference", "always")
ELEMENTWISE_FLOPS = 30.0  # arithmetic per visible query-key pair whose release is drawn
# The m-th reading of sample n is sample n + m 2^40: one number names both.
READING = 1 << 40


@dataclass(frozen=True)
class StochasticParams(Params):
    """Parameters of :class:`Stochastic`."""

    mode: str = choice("normal_reparam", MODES, "how a release is drawn and what its gradient is")
    vesicles: int = integer(8, "number N of release sites, each of which releases or fails", low=1, high=MAX_VESICLES)
    count_cap: int | None = integer(None, "most vesicles that leave at once (biased); null: all", low=1)
    train_frac: float = real(0.12, "share of the query positions whose releases are drawn; 0: none", low=0, high=1)
    tau: float = real(1.0, "temperature of mode gumbel_sigmoid_ste", low=0, low_open=True, scale="log")
    when: str = choice("training", WHEN, "whether releases are drawn in training, at inference, or always")

    def check(self) -> None:
        if self.count_cap is not None and self.count_cap > self.vesicles:
            raise ConfigError(
                f"count_cap = {self.count_cap} has no effect on {self.vesicles} vesicles: it must be at most that, or "
                f"null"
            )
        if self.tau != (usual := self.defaults()["tau"]) and self.mode != "gumbel_sigmoid_ste":
            raise ConfigError(
                f"tau = {self.tau:g} has no effect with mode = {self.mode}: leave it at {usual:g}, or set "
                f"mode = gumbel_sigmoid_ste"
            )


class Vesicles(nn.Module):
    """The part in the ``synapse`` socket of one layer. State ``sample``: (B,) int64, the sample that each row is."""

    def __init__(self, mechanism: Stochastic, layer: int, num_heads: int, window: int | None) -> None:
        super().__init__()
        # In a tuple, so that the mechanism, which holds seed and step for all layers, is no child of each of them.
        self._mechanism = (mechanism,)
        self.hp, self.layer, self.num_heads, self.window = mechanism.hp, layer, num_heads, window

    def forward(self, q: Tensor, ctx: Context, state: State | None) -> tuple[Binomial | None, State]:
        """How to draw for queries q (B, H, T, D); None where the mean is read."""
        (mechanism,) = self._mechanism
        if ctx.samples is not None:
            samples = ctx.samples
        elif state is not None:
            samples = state["sample"]
        else:
            samples = torch.arange(q.shape[0], device=q.device)
        after = {"sample": samples}
        if not mechanism.draws(self.training):
            return None, after
        hp = self.hp
        noise = Binomial(
            mode=hp.mode,
            vesicles=hp.vesicles,
            cap=hp.vesicles if hp.count_cap is None else hp.count_cap,
            tau=hp.tau,
            fraction=mechanism.fraction * self._gain(ctx),
            stream=stream(mechanism.seed, mechanism.step, self.layer, samples),
            positions=ctx.positions,
        )
        if self.training or ctx.vitals is not None:
            share = drawn(noise, 0, q.shape[2]).double()
            if self.training and self.layer == mechanism.first_layer:
                mechanism.observe("drawn", share.sum(), share.numel())
            ctx.report(Stochastic.name, "drawn", share.mean(), self.layer)
        return noise, after

    @staticmethod
    def _gain(ctx: Context) -> Tensor | float:
        """What multiplies the share of drawn positions: the signal ``acetylcholine`` (B, T), where there is one."""
        signal = ctx.signals.get("acetylcholine")
        return 1.0 if signal is None else signal.detach().double()

    def report(self, ctx: Context, state: State, after: State, released: Release, seen: Tensor) -> None:
        """Vitals over the visible keys (``seen``) of the last query, whether or not its releases are drawn."""
        (mechanism,) = self._mechanism
        if not mechanism.draws(self.training):
            ctx.report(Stochastic.name, "drawn", 0.0, self.layer)
        mean = released.released.clamp(0, 1)
        live = seen.sum()
        variance = (mean * (1 - mean) / self.hp.vesicles * seen).sum() / live
        ctx.report(Stochastic.name, "variance", variance, self.layer)
        failures = ((1 - mean) ** self.hp.vesicles * seen).sum() / live
        ctx.report(Stochastic.name, "failures", failures, self.layer)

    def flops_per_token(self, seq_len: int) -> float:
        share = self.hp.train_frac if self.hp.when != "inference" else 0.0
        return share * ELEMENTWISE_FLOPS * self.num_heads * visible_keys(seq_len, self.window)


@register
class Stochastic(Mechanism):
    """Binomial release in every synapse of presyn.

    Attributes:
        seed: () int64, drawn from the seed of the run when the model is initialised.
        step: () int64, optimizer steps made: organism state.
    """

    name = "stochastic"
    summary = "synapses release whole vesicles at random, on a share of the positions"
    source = "del Castillo and Katz, J. Physiol. 124 (1954) 560; Maddison, Mnih and Teh, ICLR 2017"
    sockets = ("synapse",)
    refines = ("presyn",)
    Params = StochasticParams
    ops = ("scan", "synapse")
    state = "number of the sample that each row is, (B,) int64 per layer"
    neutral: ClassVar[Mapping[str, Any] | None] = {"train_frac": 0.0}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "all": {"train_frac": 1.0, "vesicles": 3, "count_cap": 2},
        "gumbel": {"mode": "gumbel_sigmoid_ste", "train_frac": 0.5, "tau": 0.7},
        "straight": {"mode": "straight_through", "train_frac": 0.5, "vesicles": 4, "when": "always"},
    }
    skips: ClassVar[Mapping[str, str]] = {
        "gradients_are_exact[gumbel]": "what is read is a count, a step function; its gradient is another's by design",
        "gradients_are_exact[straight]": "what is read is a count, a step function; its gradient is that of the mean",
    }
    vital_names: ClassVar[Mapping[str, str]] = {
        "drawn": "share of the query positions whose releases are drawn",
        "variance": "mean variance of a drawn release, W (1 - W) / N, over the visible keys of the last query",
        "failures": "mean probability that a visible key of the last query releases no vesicle when it is drawn",
    }
    seed: Tensor
    step: Tensor

    def __init__(self, params: StochasticParams | None = None) -> None:
        super().__init__(params)
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.fraction = self.hp.train_frac
        self.reading = False
        self.first_layer = -1

    def initialize_parameters(self, draw: Draw) -> None:
        super().initialize_parameters(draw)
        draw.constant(self.seed, torch.randint(2**62, (), generator=draw.generator("seed")))
        draw.constant(self.step, 0)

    def draws(self, training: bool) -> bool:
        """Whether releases are drawn now."""
        return self.reading or self.hp.when in ("always", "training" if training else "inference")

    def update_organism(self, means: Mapping[str, Tensor]) -> None:
        self.step += 1

    def plug(self, body: Body) -> None:
        hp: StochasticParams = self.hp
        if hp.train_frac == 0:
            return
        cores = synapses(body)
        for core in cores:
            if core.hp.r_max > 1:
                raise ConfigError(
                    f"mechanism.presyn.r_max = {core.hp.r_max:g} lets more be released than a probability can "
                    f"say: with stochastic it must be at most 1"
                )
            core.synapse.plug(self, Vesicles(self, core.layer, core.num_heads, core.window))
        self.first_layer = min((core.layer for core in cores), default=-1)


class Predictive(NamedTuple):
    """What many readings of a text predict."""

    mean: Tensor  # (B, T, V), mean of the probabilities
    entropy: Tensor  # (B, T), nats, of that mean: total uncertainty
    mutual_information: Tensor  # (B, T), nats: the part of it in which the readings disagree


@contextmanager
def readings(model: Body, fraction: float | None = None) -> Iterator[Stochastic]:
    """Within this context releases are drawn at inference too, at a ``fraction`` of the positions (None: as trained).

    Raises:
        ConfigError: the model draws no releases.
    """
    found = [m for m in model.mechanism_list() if isinstance(m, Stochastic)]
    if not found or found[0].first_layer < 0:
        raise ConfigError("the model has no mechanism 'stochastic' that draws releases, so all its readings are equal")
    (mechanism,) = found
    before = mechanism.reading, mechanism.fraction
    mechanism.reading = True
    mechanism.fraction = before[1] if fraction is None else fraction
    try:
        yield mechanism
    finally:
        mechanism.reading, mechanism.fraction = before


@torch.no_grad()
def predictive(
    model: Body,
    tokens: Tensor,
    *,
    samples: int = 16,
    starts: Tensor | None = None,
    numbers: Tensor | None = None,
    fraction: float | None = None,
) -> Predictive:
    """The predictive distribution of a Monte-Carlo ensemble of readings, and its uncertainty (Houlsby et al. 2011).

    Args:
        model: a body with the mechanism ``stochastic``; it is read in evaluation mode and left as it was.
        tokens: (B, T) int64.
        samples: number S of readings.
        starts: (B, T) bool, True where a document begins.
        numbers: (B,) int64 in [0, 2^40), the sample that each row is; None: 0, 1, ... B - 1.
        fraction: of the positions whose releases are drawn; None: ``train_frac``, as the model was trained.

    Returns:
        Reading m draws the same numbers however many there are. Entropies in float32 or better.

    Raises:
        ConfigError: the model draws no releases, or ``samples`` or ``fraction`` is out of range.
    """
    if samples < 1:
        raise ConfigError(f"samples = {samples} is not valid: it must be at least 1")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError(f"fraction = {fraction:g} is not valid: it must be > 0 and <= 1, or None")
    rows = torch.arange(tokens.shape[0], device=tokens.device) if numbers is None else numbers
    mode = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with readings(model, fraction):
            means: list[Tensor] = []
            entropies: list[Tensor] = []
            for reading in range(samples):
                logits, _ = model(tokens, starts=starts, samples=rows + reading * READING)
                log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
                p = log_p.exp()
                means.append(p if not means else means.pop() + p)  # one (B, T, V) at a time
                entropies.append(-(p * log_p).sum(-1))
    finally:
        for module, training in mode:
            module.training = training
    mean = means[0] / samples
    whole = -torch.xlogy(mean, mean).sum(-1)
    return Predictive(mean, whole, (whole - torch.stack(entropies).mean(0)).clamp_min(0))

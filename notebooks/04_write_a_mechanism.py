# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write a mechanism
#
# A mechanism is one file: its parameters, a part that goes into a socket of the body, and a class that plugs it in.
# This one adapts: the output of a unit that has been active lately is turned down.
#
# $$a_t = \rho\, a_{t-1} + (1-\rho)\,|y_t|, \qquad \Delta_t = -\,\lambda\, a_{t-1} \odot \tanh(y_t)$$
#
# `python -m bouton.mechanisms.new NAME` starts such a file inside the source tree; a notebook works as well, because
# `@register` is all that it takes.

# %%
import math
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from torch import nn

import bouton
from bouton.mechanisms import Mechanism, Params, Picture, Vitals, real, register
from bouton.mechanisms.pictures import find

# %% [markdown]
# ## 1. Parameters
#
# Each says what it means, in which unit, and what is valid. The command line, the YAML, the error messages and the
# search space of a sweep come from here.


# %%
@dataclass(frozen=True)
class AdaptParams(Params):
    strength: float = real(0.3, "how much of a unit's recent activity is held against it; 0 leaves it out", low=0)
    tau: float = real(10.0, "time constant of the recent activity", unit="tokens", low=0.1, scale="log")


# %% [markdown]
# ## 2. The part
#
# It goes beside a linear map $y = xW$ (the socket `branch`) and returns what is added to $y$, and its state. The state
# after the last token is all that the next call needs: training, decoding and chat are the same code. A new document
# (`ctx.starts`) begins calm.


# %%
class Adaptation(nn.Module):
    """State: the recent activity of each output unit, (B, width)."""

    def __init__(self, hp: AdaptParams, layer: int) -> None:
        super().__init__()
        self.hp, self.layer = hp, layer

    def forward(self, x, y, ctx, state):
        rho = math.exp(-1 / self.hp.tau)
        recent = torch.zeros_like(y[:, 0]) if state is None else state["recent"]
        held = []
        for t in range(y.shape[1]):  # plain and slow; `bouton.ops.scan` has the fast form
            if ctx.starts is not None:
                recent = recent.masked_fill(ctx.starts[:, t, None], 0.0)
            held.append(recent)
            recent = rho * recent + (1 - rho) * y[:, t].abs()
        delta = -self.hp.strength * torch.stack(held, dim=1) * torch.tanh(y)
        if ctx.vitals is not None:
            ctx.report("adapt", "suppression", delta.norm() / y.norm(), self.layer)
        return delta, {"recent": recent}


# %% [markdown]
# ## 3. The mechanism
#
# `plug` puts a part into each socket that it wants. `vital_names` and `pictures` declare what there is to see: vitals
# go to the logs and the dashboard, pictures to the callback `media`, without a change anywhere else.


# %%
@register
class Adapt(Mechanism):
    name = "adapt"
    summary = "units turn their output down with their own recent activity"
    source = "spike-frequency adaptation: Benda and Herz, Neural Computation 15 (2003) 2523"
    sockets = ("branch",)
    state = "recent: (B, width) per layer"
    Params = AdaptParams
    neutral = {"strength": 0.0}  # here it equals the plain body bit for bit
    vital_names = {"suppression": "norm of what is taken away / norm of the output"}

    def plug(self, body) -> None:
        if self.hp.strength == 0:
            return
        for socket in body.sockets("branch"):
            if socket.site == "mixer_up":
                socket.plug(self, Adaptation(self.hp, socket.layer))

    def pictures(self, states):
        """Per layer the recent activity of the first 32 units (rows) after every token (columns)."""
        return {
            f"recent_{layer}": Picture(torch.stack([s["recent"][:32] for s in held], dim=1), "unit", "token")
            for layer, held in find(states, "recent")
        }


# %% [markdown]
# ## 4. It composes
#
# With the others, in any order; a bad value is refused with one line.

# %%
words = ("model=tiny", "model.vocab_size=64", "kernels=torch")
model = bouton.build(bouton.compose("mechanism=adapt+presyn", *words)).eval()
tokens = torch.randint(64, (1, 48), generator=torch.Generator().manual_seed(0))
vitals = Vitals()
with torch.no_grad():
    logits, _ = model(tokens, vitals=vitals)
{name: round(value.item(), 4) for name, value in vitals.mean().items()}

# %%
from bouton.errors import ConfigError

try:
    bouton.build(bouton.compose("mechanism=adapt", "mechanism.adapt.tau=-3", *words))
except ConfigError as error:
    print(error)

# %% [markdown]
# ## 5. It is what it says
#
# Read in two pieces it gives the same logits, and no position sees a later one.

# %%
with torch.no_grad():
    first, state = model(tokens[:, :20])
    rest, _ = model(tokens[:, 20:], state)
    changed = tokens.clone()
    changed[:, 30:] = 0
    other, _ = model(changed)
print("split:", (torch.cat((first, rest), dim=1) - logits).abs().max().item())
print("causal:", (other[:, :30] - logits[:, :30]).abs().max().item())

# %% [markdown]
# These are clauses of the contract suite, which covers a mechanism without another line; here are three of its checks.
# With the class in a file of its own, `bouton.testing.check("adapt")` runs all of them, alone and with every other
# mechanism.

# %%
from bouton.testing.arms import arms
from bouton.testing.clauses import CLAUSES

(arm,) = [arm for arm in arms(["adapt"])[0] if arm.label == "adapt"]
for name in list(CLAUSES)[:3]:
    CLAUSES[name].check(arm)
    print("holds:", CLAUSES[name].doc)

# %% [markdown]
# ## 6. It can be looked at
#
# The recent activity of 32 units while 48 tokens are read, as the callback `media` would draw it:

# %%
from bouton.mechanisms.pictures import collect

pictures = collect(model, tokens)
pictures["adapt/recent_layer0"]

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for tau in (2.0, 10.0, 50.0):
    body = bouton.build(bouton.compose("mechanism=adapt", f"mechanism.adapt.tau={tau}", *words)).eval()
    seen = collect(body, tokens)["adapt/recent_layer0"].values
    axes.plot(seen.mean(dim=0), label=f"tau = {tau:g} tokens")
axes.set_xlabel("token")
axes.set_ylabel("mean recent activity")
axes.legend(frameon=False)
axes.grid(alpha=0.25)
plt.show()

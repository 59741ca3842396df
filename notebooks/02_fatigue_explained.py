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
# # Fatigue, explained: the life of one key
#
# In plain attention a key that matches keeps its weight for ever. In `mechanism=presyn` a key is a synapse. Each query
# that matches it raises its **calcium**; calcium raises the **release** probability; release drains its **pool** of
# vesicles; an empty pool counts for less in the softmax until it has recovered.
#
# We follow one key through 60 queries with the code that defines the op, `bouton.ops.fatigue_attention.reference`.

# %%
import matplotlib.pyplot as plt
import torch

import bouton
from bouton.mechanisms.presyn import PresynParams
from bouton.ops.fatigue_attention import Kinetics, reference

params = PresynParams()
constants = params.kinetics()
kinetics = Kinetics(*(torch.tensor([constants[name]]) for name in Kinetics._fields)).per_head()
print(
    f"calcium decays in {params.tau_c:g} tokens, the pool recovers in {params.tau_rrp:g} tokens; "
    f"the sensor is half saturated at a calcium of {params.k_d:g}"
)

# %% [markdown]
# ## 1. What the key is told: logits
#
# The key is asked for in a burst, then left alone, then asked for again. Its rival is what every causal query sees: the
# key of its own token, newly born and therefore always rested, here with a moderate match.

# %%
steps = 60
silence, match, moderate = -6.0, 2.0, 0.5
logits = torch.full((steps, 2), silence)
logits[5:20, 0] = match  # the burst
logits[45:50, 0] = match  # the key is asked for again
logits[:, 1] = moderate

# %% [markdown]
# ## 2. Step by step
#
# `reference.step` is one query. With $E = e^{L}$ it computes
#
# $$C \leftarrow \rho_c C + \alpha \log(1+E), \qquad P = \sigma(s\,\tfrac{C}{C+K} + b)\,\tfrac{E}{E+\kappa},$$
# $$W = \min(P, R), \qquad R \leftarrow \rho_r \max(R-P, 0) + (1-\rho_r) R_{\max},$$
#
# and the key's weight before normalisation is $n = E\,(\varepsilon + W)^{\lambda}$.

# %%
seen = torch.ones(1, 1, 2, dtype=torch.bool)
calm, rested = torch.zeros(1, 1, 2), kinetics.r_max.expand(1, 1, 2)  # (batch, head, key)
first = torch.tensor([True, False])

calcium, pool = calm, rested
life: dict[str, list[float]] = {name: [] for name in ("calcium", "demand", "release", "pool", "plain", "tired")}
for row in logits[:, None, None]:
    calcium, pool = calcium.where(first, calm), pool.where(first, rested)  # the rival is a new key every time
    before = pool
    n, calcium, pool = reference.step(row, seen, calcium, pool, kinetics, params.rule, params.release)
    demand = reference.release_probability(row.exp(), seen, calcium, kinetics, params.release)
    now = {
        "calcium": calcium,
        "demand": demand,
        "release": torch.minimum(demand, before),
        "pool": pool,
        "plain": row.softmax(-1),
        "tired": n / n.sum(-1, keepdim=True),
    }
    for name, value in now.items():
        life[name].append(value[0, 0, 0].item())

for t in (4, 5, 6, 8, 19, 20, 44, 45, 49):
    print(
        f"t {t:2d}  logit {logits[t, 0]:+.1f}  calcium {life['calcium'][t]:.2f}  demand {life['demand'][t]:.2f}  "
        f"release {life['release'][t]:.2f}  pool {life['pool'][t]:.2f}  "
        f"weight {life['plain'][t]:.2f} -> {life['tired'][t]:.2f}"
    )

# %% [markdown]
# ## 3. Its picture
#
# The pool pays the first queries of the burst and is then empty: release falls to what recovers between two tokens.
# Calcium fades within a few tokens of silence, the pool comes back more slowly. The attention weight (last panel)
# begins a little above the plain softmax, because the newborn rival has less calcium and releases less, and is given up
# to that rival two queries later. After 25 tokens of rest not quite half of the pool is back: the key is heard once
# more, and then no longer.

# %%
figure, axes = plt.subplots(5, 1, figsize=(8, 9), sharex=True, layout="constrained")
axes[0].step(range(steps), logits[:, 0], where="mid", color="#3A3A3A", label="the key")
axes[0].step(range(steps), logits[:, 1], where="mid", color="#9A9A9A", linestyle="--", label="its rival, always new")
axes[1].plot(life["calcium"], color="#D55E00")
axes[2].plot(life["demand"], color="#9A9A9A", linestyle="--", label="demand P")
axes[2].plot(life["release"], color="#0072B2", label="release W")
axes[3].plot(life["pool"], color="#009E73")
axes[4].plot(life["plain"], color="#9A9A9A", linestyle="--", label="plain softmax")
axes[4].plot(life["tired"], color="#CC79A7", label="with fatigue")
for axis, name in zip(axes, ("logit L", "calcium C", "release", "pool R", "attention weight"), strict=True):
    axis.set_ylabel(name)
    axis.axvspan(5, 20, color="#F0E442", alpha=0.2)
    axis.axvspan(45, 50, color="#F0E442", alpha=0.2)
    axis.grid(alpha=0.25)
for axis in (axes[0], axes[2], axes[4]):
    axis.legend(frameon=False, fontsize=9)
axes[-1].set_xlabel("query")
plt.show()

# %% [markdown]
# ## 4. What the pool decides, and what calcium decides
#
# A slower recovery leaves the key weak when it is asked for again; a stronger calcium sensor (`s`) empties it sooner.


# %%
def weight_of_the_key(**changes: float) -> list[float]:
    """The key's attention weight over the same 60 queries with other parameters."""
    hp = PresynParams(**changes)
    values = hp.kinetics()
    kin = Kinetics(*(torch.tensor([values[name]]) for name in Kinetics._fields)).per_head()
    calcium, pool = calm, kin.r_max.expand(1, 1, 2)
    weights = []
    for row in logits[:, None, None]:
        calcium, pool = calcium.where(first, calm), pool.where(first, kin.r_max)
        n, calcium, pool = reference.step(row, seen, calcium, pool, kin, hp.rule, hp.release)
        weights.append((n / n.sum(-1, keepdim=True))[0, 0, 0].item())
    return weights


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
for tau in (10.0, 40.0, 160.0):
    left.plot(weight_of_the_key(tau_rrp=tau), label=f"tau_rrp = {tau:g} tokens")
for gain in (0.0, 2.0, 4.0):
    right.plot(weight_of_the_key(s=gain), label=f"s = {gain:g}")
for axis in (left, right):
    axis.plot(life["plain"], color="#9A9A9A", linestyle="--", label="plain softmax")
    axis.legend(frameon=False, fontsize=9, ncols=2, loc="upper center")
    axis.set_ylim(-0.05, 1.25)
    axis.grid(alpha=0.25)
    axis.set_xlabel("query")
left.set_ylabel("attention weight")
plt.show()

# %% [markdown]
# ## 5. The same in a model
#
# A model carries calcium and pool of every key in its explicit state. The mechanism says which pictures of it there are
# (`Mechanism.pictures`); the callback `media` draws the same ones during training. Here is an untrained model reading a
# text of which the second half repeats the first: the calcium, then the vesicle pool, of every key after every query.
# Down each column runs the life of one key.

# %%
from bouton.mechanisms.pictures import collect

cfg = bouton.compose("mechanism=presyn", "model=tiny", "model.vocab_size=64", "kernels=torch")
model = bouton.build(cfg).eval()
half = torch.randint(64, (1, 24), generator=torch.Generator().manual_seed(0))
pictures = collect(model, torch.cat((half, half), dim=1))
sorted(pictures)

# %%
pictures["presyn/calcium_layer0"]

# %%
pictures["presyn/pool_layer0"]

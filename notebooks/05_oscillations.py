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
# # Oscillations: of parameters and of activity
#
# `mechanism=oscillate` gives every hidden unit the activation $f(x) = \sin(\omega x + \varphi)\tanh(x) + b$. Two things
# are easily taken for each other:
#
# - **$\omega$ is a parameter.** It says how fast the wave turns with the unit's *input*. It has no unit of time, and a
#   histogram of it is no spectrum of anything that happens.
# - **Activity** is what a unit puts out along the positions of a text. Whether it oscillates, its Fourier transform
#   tells.
#
# This page shows both for a small model that it trains itself, beside what was there before training, beside a GELU
# model that was trained alike, and beside the same activity in shuffled order.

# %%
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import torch

import bouton
from bouton.evaluation import oscillations
from bouton.training import train

# %% [markdown]
# ## 1. Two runs
#
# `experiment=wiggle/v3_tiny` and its twin of equal shape with GELU, a few seconds each, on the Python standard library.
# With a run of your own, set `folders["oscillate"]` to its run folder (and `folders["gelu"]` to that of its twin).

# %%
home = Path(mkdtemp())
words = (
    "data.max_bytes=400000", "data.seq_len=128", "data.batch_size=4", "data.val_tokens=8192",
    "data.tokenizer.kind=bpe", "data.tokenizer.vocab_size=512", "trainer=cpu", "trainer.max_steps=100",
    "trainer.val_every=50", "trainer.log_every=1", "callbacks.progress.refresh_every=null",
    "callbacks.throughput.mfu=false",
)  # fmt: skip
experiments = {"oscillate": "experiment=wiggle/v3_tiny", "gelu": "experiment=wiggle/v3_tiny_gelu"}
folders = {name: home / name for name in experiments}
losses = {}
for name, experiment in experiments.items():
    losses[name] = train(bouton.compose(experiment, *words, f"run_dir={folders[name]}"))
losses

# %%
runs = {name: bouton.load(folder) for name, folder in folders.items()}
settings = runs["oscillate"].config.copy()
settings.model.vocab_size = runs["oscillate"].tokenizer.vocab_size
untrained = bouton.build(settings).eval()  # the same seed: the weights that training began with

# %% [markdown]
# The difference of these two losses is one draw of one seed: it says nothing about which activation is better. That
# question has five seeds and an interval in `experiments/wiggle`.
#
# ## 2. Frequencies and phases, beside their initialisation
#
# Waves that differ by a sign are the same to the next layer, so $\omega$ is shown as $|\omega|$ and $\varphi$ folded
# to half a turn: "negative frequencies" and "the whole range of phases" would be artefacts.

# %%
learned, drawn = oscillations.units(runs["oscillate"].model), oscillations.units(untrained)
figure, axes = plt.subplots(2, len(learned), figsize=(9, 5), squeeze=False, layout="constrained")
for column, (name, units) in enumerate(learned.items()):
    trained = oscillations.canonical(units.omega, units.phi)
    initial = oscillations.canonical(drawn[name].omega, drawn[name].phi)
    labels = r"$|\omega|$", r"$\varphi$"
    for row, (after, before, label) in enumerate(zip(trained, initial, labels, strict=True)):
        bins = np.histogram_bin_edges(torch.cat((after, before)).numpy(), 40)
        axes[row, column].hist(before.numpy(), bins, color="#9A9A9A", alpha=0.6, label="initialisation")
        axes[row, column].hist(after.numpy(), bins, histtype="step", color="#D55E00", linewidth=1.6, label="trained")
        axes[row, column].set(xlabel=label, ylabel="units" if column == 0 else None)
    axes[0, column].set_title(f"layer {units.layer}")
axes[0, 0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## 3. How far could they have moved at all?
#
# An Adam step moves a parameter by about the learning rate at most (vectors are not decayed). The learning rates of
# this run add up to a bound: a statement that "no frequency moved by more than that" would be empty.

# %%
bound = runs["oscillate"].metrics["train/lr"].dropna().sum()
for name, units in learned.items():
    moved = (units.omega - drawn[name].omega).abs()
    print(
        f"layer {units.layer}: |change of omega| mean {moved.mean():.3f}, largest {moved.max():.3f}; "
        f"the learning rates add up to {bound:.3f}"
    )

# %% [markdown]
# ## 4. Bands
#
# The names come from electroencephalography, the borders from the published analysis of such a model; here they are
# nothing but bins of $|\omega|$. Beside the shares after training stand those of the distribution that the
# frequencies were drawn from. With $\omega \sim N(1, 0.1)$, 95 % of the units are "alpha" before the first step.

# %%
params = runs["oscillate"].model.mechanisms["oscillate"].hp
expected = oscillations.normal_band_shares(params.omega_mean, params.omega_std)
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
place, width = np.arange(len(expected)), 0.8 / (len(learned) + 1)
axis.bar(place, list(expected.values()), width, color="#9A9A9A", label="initialisation (exact)")
for number, units in enumerate(learned.values(), 1):
    shares = oscillations.band_shares(units.omega)
    axis.bar(place + number * width, list(shares.values()), width, label=f"layer {units.layer}, trained")
    print(
        f"layer {units.layer}:",
        "  ".join(f"{band} {share:.1%} (was {expected[band]:.1%})" for band, share in shares.items()),
    )
axis.set_xticks(place + width, [f"{name}\n[{low:g}, {high:g})" for name, (low, high) in oscillations.BANDS.items()])
axis.set_ylabel("share of units")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 5. Dead units
#
# With $\omega \approx 0$ and $\sin\varphi \approx 0$ the wave stands still and the unit says $b$ whatever it hears.
# It is not "linearised": it is dead. With $\sin\varphi \approx \pm 1$ it is a $\tanh$ and lives.

# %%
for units in learned.values():
    flat = (units.omega.abs() < 0.1) & ~units.dead
    print(f"layer {units.layer}: {int(units.dead.sum())} dead of {len(units.dead)}, {int(flat.sum())} nearly tanh")

# %% [markdown]
# ## 6. A spectrum of activity
#
# Held-out text is read, the output of every hidden unit is written down at every position, brought to mean 0 and
# variance 1, and Fourier transformed along the positions. The unit of frequency is now cycles per *token*. White
# noise is flat at 1.
#
# Controls:
#
# - the **same activity in shuffled order**: the same values, no order. The grey band is where 95 % of such spectra stay
#   as a whole (all frequencies at once, so that none stands out by being one of many);
# - **GELU**, trained alike on the same text;
# - the oscillating model **before training**, with the same text: what the text alone brings along.

# %%
from bouton.evaluation.subject import Subject

subject = Subject(runs["oscillate"])
chosen = subject.validation_rows[:32]
batch = subject.rows.gather(chosen)
models = {"oscillate": runs["oscillate"].model, "GELU": runs["gelu"].model, "before training": untrained}
activity = {
    name: list(oscillations.hidden_activity(model, batch["tokens"], batch["starts"]).values())
    for name, model in models.items()
}
generator = torch.Generator().manual_seed(0)
colours = {"oscillate": "#D55E00", "GELU": "#0072B2", "before training": "#009E73"}

# %%
layers = len(activity["oscillate"])
figure, axes = plt.subplots(1, layers, figsize=(10, 3.8), sharey=True, squeeze=False, layout="constrained")
for layer, axis in enumerate(axes[0]):
    low, high = oscillations.shuffled_band(activity["oscillate"][layer], generator, shuffles=40)
    axis.axhspan(low, high, color="#9A9A9A", alpha=0.35, label="oscillate, shuffled positions")
    for name, found in activity.items():
        s = oscillations.spectrum(found[layer])
        axis.plot(s.frequency, s.power, color=colours[name], linewidth=1.4, label=name)
        axis.fill_between(s.frequency, s.power - 2 * s.error, s.power + 2 * s.error, color=colours[name], alpha=0.15)
    axis.set(xlabel="cycles per token", title=f"layer {layer}", yscale="log", xscale="log")
    axis.grid(alpha=0.25, which="both")
axes[0, 0].set_ylabel("power")
axes[0, 0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# One number for it: the share of the power in rhythms of 8 tokens and more, with its standard error over rows of
# text. Noise has the share of the frequencies that are so slow.

# %%
noise = float((torch.fft.rfftfreq(batch["tokens"].shape[1])[1:] <= 1 / 8).float().mean())
for layer in range(layers):
    found = {name: oscillations.slow_share(values[layer]) for name, values in activity.items()}
    mixed = oscillations.shuffled(activity["oscillate"][layer], generator)
    found["oscillate, shuffled"] = oscillations.slow_share(mixed)
    print(f"layer {layer} (noise {noise:.3f}):", "  ".join(f"{n} {m:.3f} +- {e:.3f}" for n, (m, e) in found.items()))

# %% [markdown]
# Is one frequency preferred? A rhythm would be a *peak*: a frequency with more power than its neighbours on both
# sides, by more than the noise of the rows.

# %%
for name, found in activity.items():
    for layer, values in enumerate(found):
        s = oscillations.spectrum(values)
        beside = torch.maximum(s.power[:-2], s.power[2:])
        clear = (s.power[1:-1] - beside > 3 * s.error[1:-1]).nonzero().flatten() + 1
        told = ", ".join(f"{s.frequency[k]:.3f} ({s.power[k] / beside[k - 1]:.2f} of its neighbours)" for k in clear)
        print(f"{name}, layer {layer}: {told or 'no peak'}")

# %% [markdown]
# ## 7. What can be concluded, and what cannot
#
# **Can.** Where the curves leave the grey band, the order of the positions matters to the hidden units: neighbouring
# tokens are treated alike or unalike more often than chance does it. What the model before training shows too comes
# from the text (its tokens repeat and alternate; attention and residual stream carry them on), and what GELU shows
# too does not come from the activation. Only what is left is worth a hypothesis about oscillating units.
#
# **Cannot.**
#
# - The bands of section 4 are not rhythms. They are bins of a parameter, and most of what they hold was drawn there.
# - A curve that is high at low frequencies and falls is slow change, not oscillation. Oscillation would be a peak.
# - Time here is the number of tokens. There are no seconds and no hertz, so nothing here compares to a brain's rhythms.
# - One run with one seed after seconds of training: a difference between two curves of this page need not be there in
#   the next seed. The error bands are over rows of text, for *this* model. How training varies, only several seeds
#   tell: `python train.py -m experiment=wiggle/study`.
# - Spectra average over units. Single units may do what the mean does not show, and looking through hundreds of them
#   for one that does finds one by chance.

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
# # Read a sweep
#
# A sweep is a folder of runs, and everything about it is computed from the run folders. Here a small one is made first:
# three arms, two seeds. On the command line that is
#
#     python train.py -m mechanism=none,hebb,presyn seed=0,1 model=tiny trainer.max_steps=20
#     bouton report runs/<the sweep>
#
# Twenty steps and two seeds are far too few for a claim, and the verdicts below say so. That is the point: the same few
# lines read a sweep that is large enough.

# %%
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
from IPython.display import Image, Markdown, display

import bouton
from bouton.training import train

sweep = Path(mkdtemp()) / "sweep"
for mechanism in ("none", "hebb", "presyn"):
    for seed in (0, 1):
        cfg = bouton.compose(
            f"mechanism={mechanism}",
            f"seed={seed}",
            "model=tiny",
            "optimizer=muon",
            "callbacks.progress.refresh_every=null",
            "callbacks.throughput.mfu=false",
            "data=stdlib",
            "data.max_bytes=300000",
            "data.seq_len=64",
            "data.batch_size=4",
            "data.val_tokens=4096",
            "data.tokenizer.vocab_size=512",
            "trainer=cpu",
            "trainer.max_steps=20",
            "trainer.val_every=5",
            f"run_dir={sweep / f'{mechanism}_seed{seed}'}",
        )
        with redirect_stdout(StringIO()):  # each run would print its own results
            loss = train(cfg)
        print(f"{mechanism}, seed {seed}: {loss:.4f} nats per token")

# %% [markdown]
# ## 1. One row per run

# %%
frame = bouton.evidence.load(sweep)
frame[["arm", "seed", "status", "final_val_loss", "parameters", "training_flops", "tokens_per_second", "wall_seconds"]]

# %% [markdown]
# It is a pandas table, so anything can be asked of it:

# %%
frame.groupby("arm", sort=False)[["final_val_loss", "tokens_per_second"]].agg(["mean", "std"])

# %% [markdown]
# ## 2. Learning curves

# %%
lines = bouton.evidence.curves(frame)
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (arm, seed), part in lines.groupby(["arm", "seed"], sort=False):
    colour = {"none": "#3A3A3A", "hebb": "#0072B2", "presyn": "#D55E00"}[arm]
    label = arm if seed == 0 else None
    axes.plot(part["tokens"], part["val/loss"], color=colour, marker="o", markersize=3, label=label)
axes.set_xlabel("training tokens")
axes.set_ylabel("held-out loss (nats per token)")
axes.legend(frameon=False)
axes.grid(alpha=0.25)
plt.show()

# %% [markdown]
# ## 3. Statistics
#
# Arms are compared in pairs with the baseline of the same seed: the same data order, the same initial weights where the
# shapes agree. `analyse` corrects for the number of comparisons and says in words what the numbers allow to say.

# %%
study = bouton.evidence.analyse(frame)
for one in study.comparisons:
    print(f"{one.arm}: {one.difference:+.4f} nats, 95 % interval [{one.low:+.4f}, {one.high:+.4f}], {one.verdict}")

# %% [markdown]
# ## 4. The report
#
# The same as `bouton report`: Markdown, a self-contained HTML page, figures, and the numbers as CSV and JSON.

# %%
page = bouton.evidence.report(sweep)
text = page.with_suffix(".md").read_text()
display(Markdown(text.partition("## Arms")[0].partition("![")[0]))

# %%
display(Image(filename=str(sweep / "figures" / "forest.png"), width=800))

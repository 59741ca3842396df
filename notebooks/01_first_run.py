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
# # A first run
#
# Compose two mechanisms into a small model, train it for a few seconds on the Python standard library of this machine,
# and look at what the run folder holds. On the command line the same is
#
#     python train.py mechanism=presyn+hebb model=tiny callbacks=media trainer.max_steps=60

# %%
import json
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import Image, display

import bouton
from bouton.training import train

bouton.mechanisms().keys()

# %% [markdown]
# ## 1. Say what to train
#
# `bouton.compose` takes the words of the command line. `callbacks=media` draws pictures of the mechanisms' state while
# the run trains. The numbers are kept small so that this page takes seconds; nothing worth knowing about language is
# learned in 60 steps.

# %%
folder = Path(mkdtemp()) / "first_run"
cfg = bouton.compose(
    "mechanism=presyn+hebb",
    "model=tiny",
    "optimizer=muon",
    "callbacks=media",
    "callbacks.media.sample_tokens=60",
    "callbacks.progress.refresh_every=null",
    "data=stdlib",
    "data.max_bytes=400000",
    "data.seq_len=128",
    "data.batch_size=4",
    "data.val_tokens=4096",
    "data.tokenizer.vocab_size=512",
    "trainer=cpu",
    "trainer.max_steps=60",
    "trainer.val_every=20",
    f"run_dir={folder}",
)
print(json.dumps({name: dict(values) for name, values in cfg.mechanism.items()}, indent=1)[:600])

# %% [markdown]
# ## 2. Train
#
# `train` returns the number that a sweep would minimise: the held-out loss in nats per token.

# %%
loss = train(cfg)
loss

# %% [markdown]
# ## 3. Look at the run folder
#
# Everything about a run is in its folder; `bouton.load` opens it.

# %%
run = bouton.load(folder)
sorted(path.name for path in folder.iterdir())

# %%
run.metrics.dropna(subset=["val/loss"])[["step", "val/loss", "val/bits_per_byte", "val/accuracy"]]

# %%
run.vitals

# %%
run.summary["costs"]

# %% [markdown]
# Losses and vitals over time, drawn at the end of every run:

# %%
display(Image(filename=str(folder / "curves.png"), width=800))

# %% [markdown]
# What `callbacks=media` saw at the last validation: the vesicle pool of every key (columns) after every query (rows),
# and the norms of the fast weights while the text is read.

# %%
for name in ("presyn/pool_layer0", "hebb/fast_norm_layer0"):
    last = sorted((folder / "media" / name).glob("*.png"))[-1]
    display(Image(filename=str(last)))

# %% [markdown]
# ## 4. Use the model
#
# Decoding carries the explicit state token by token and computes exactly what one pass over the text computes.

# %%
print(run.generate("def ", max_new_tokens=40, temperature=0.7, seed=1))

# %% [markdown]
# ## 5. Everything on one page
#
# `bouton dashboard run=<folder>` writes a page that needs no network: losses, costs, vitals, samples and pictures.

# %%
from bouton import dashboard

page = dashboard.write(folder)
print(page, f"{page.stat().st_size / 1e6:.1f} MB")

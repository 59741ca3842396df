"""Which panels a dashboard has: one definition for the local page and for W&B.

The names of metrics are those that runs log: ``train/*``, ``val/*``, ``cost/*``, and ``vitals/<mechanism>/<vital>``.
The panels of vitals come from the names that are there and from what the mechanisms say about them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bouton.mechanisms import registry

MEDIA, SAMPLES = "media", "samples/text"


@dataclass(frozen=True)
class Panel:
    """A chart of ``metrics`` over optimizer steps. ``doc`` says what they measure."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    doc: str = ""


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


FIXED = (
    Section(
        "Losses",
        (
            Panel("Loss", "nats per token", ("train/loss", "val/loss"), "training batches, and held-out text"),
            Panel("Held-out bits per byte", "bits", ("val/bits_per_byte",), "comparable across tokenizers"),
            Panel("Held-out accuracy", "share of tokens", ("val/accuracy",), "the next token is the likeliest one"),
            Panel("Auxiliary loss", "nats per token", ("train/auxiliary_loss",), "what the mechanisms add to the loss"),
        ),
    ),
    Section(
        "Optimization",
        (
            Panel("Learning rate", "", ("train/lr",), "of the first parameter group"),
            Panel("Gradient norm", "", ("train/grad_norm",), "of all gradients together, before clipping"),
        ),
    ),
    Section(
        "Costs",
        (
            Panel("Speed", "tokens per second", ("cost/tokens_per_second",), "training steps alone"),
            Panel("Training time", "s", ("cost/train_seconds",), "without validations and checkpoints"),
            Panel("Model FLOPs utilisation", "share of the peak", ("cost/mfu",)),
            Panel("Peak memory", "bytes", ("cost/peak_memory_bytes",)),
        ),
    ),
)
_VITALS = "vitals/"
_DERIVED = frozenset({"val/perplexity"})  # the exponential of val/loss says nothing new


def layout(names: Iterable[str]) -> list[Section]:
    """The sections for the metrics ``names``, with only the panels and metrics that are among them.

    Every mechanism with vitals gets a section of its own; whatever else was logged comes last.
    """
    present = set(names)
    shown: list[Section] = []
    for section in FIXED:
        panels = [
            Panel(panel.title, panel.unit, found, panel.doc)
            for panel in section.panels
            if (found := tuple(name for name in panel.metrics if name in present))
        ]
        if panels:
            shown.append(Section(section.title, tuple(panels)))
    known = {name for section in FIXED for panel in section.panels for name in panel.metrics} | _DERIVED
    vitals = sorted(name for name in present if name.startswith(_VITALS))
    for mechanism in sorted({name.split("/")[1] for name in vitals}):
        cls = registry.mechanisms().get(mechanism)
        docs = cls.vital_names if cls is not None else {}
        prefix = f"{_VITALS}{mechanism}/"
        short = [name.removeprefix(prefix) for name in vitals if name.startswith(prefix)]
        panels = [Panel(name.replace("_", " "), "", (prefix + name,), docs.get(name, "")) for name in short]
        shown.append(Section(f"Vitals of {mechanism}", tuple(panels)))
    if others := sorted(present - known - set(vitals)):
        shown.append(Section("Others", tuple(Panel(name, "", (name,)) for name in others)))
    return shown

"""What a finished run says: ``summary.json``, and a panel with results, costs, sample and run folder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import lightning
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bouton.ops import backends
from bouton.training.callbacks import Checkpointing, Curriculum, EarlyStop, HopelessStop, StopControl, Throughput
from bouton.training.callbacks.access import find
from bouton.training.costs import EnergyMeter, peak_memory
from bouton.training.module import TrainingModule


def summarize(
    trainer: lightning.Trainer, module: TrainingModule, *, device: Any, energy: EnergyMeter, resumed_from: int | None
) -> dict[str, Any]:
    """The content of ``summary.json``: final and best metrics, costs, backends.

    Seconds and tokens count over the whole run with its resumes, memory and energy since the last resume. Peak memory
    and a GPU's energy are those of rank 0.
    """
    checkpointing, throughput = find(trainer, Checkpointing), find(trainer, Throughput)
    stop, early = find(trainer, StopControl), find(trainer, EarlyStop)
    assert checkpointing is not None and throughput is not None and stop is not None
    rate = throughput.mean_tokens_per_second()
    tokens = trainer.global_step * throughput.tokens_per_step
    flops = throughput.flops_per_token
    hopeless, curriculum = find(trainer, HopelessStop), find(trainer, Curriculum)
    status = "finished"
    if hopeless is not None and hopeless.stopped:
        status = "stopped as hopeless"
    elif early is not None and early.stopped:
        status = "stopped early"
    elif curriculum is not None and curriculum.stopped:
        status = "curriculum completed"
    elif stop.timed_out:
        status = "time limit reached"
    final = {f"val_{name}": value for name, value in module.validation.items()}
    if module.record is not None:
        final["train_loss"] = module.record.loss
    return {
        "status": status,
        "step": trainer.global_step,
        "resumed_from_step": resumed_from,
        **({"prediction": hopeless.verdict} if hopeless is not None and hopeless.stopped else {}),
        **({"curriculum": curriculum.facts(trainer.global_step)} if curriculum is not None else {}),
        "final": final,
        "best": {"step": checkpointing.best_step, **{f"val_{k}": v for k, v in checkpointing.best_metrics.items()}},
        "vitals": dict(module.vitals),
        "costs": {
            "parameters": _parameters(module.body),
            "training_flops_per_token": flops,
            "training_flops": flops * tokens if flops is not None else None,
            "tokens": tokens,
            "tokens_per_second": rate,
            "mfu": throughput.utilisation(rate),
            "peak_flops_per_second": throughput.peak,
            "peak_flops_source": throughput.peak_source,
            "wall_seconds": stop.seconds(),
            "train_seconds": throughput.seconds,
            "peak_memory_bytes": peak_memory(device),
            "energy_joules": energy.joules(),
            "devices": trainer.world_size,
            "device": str(device.type),
        },
        "backends": {f"{c.op} on {c.device}": dataclasses.asdict(c) for c in backends.report()},
    }


def _parameters(body: Any) -> int:
    """What the body says that it learns, else its trainable parameters."""
    count = getattr(body, "num_parameters", None)
    return int(count()) if callable(count) else sum(p.numel() for p in body.parameters() if p.requires_grad)


def print_results(summary: dict[str, Any], sample: str | None, folder: Path, name: str) -> None:
    """Print the results of a run for a person."""
    final, best, costs = summary["final"], summary["best"], summary["costs"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    bits = final.get("val_bits_per_byte", math.nan)
    held_out = f"{bits:.4f} bits per byte" if not math.isnan(bits) else f"accuracy {final['val_accuracy']:.1%}"
    if "val_f1" in final:
        held_out = f"F1 of entities {final['val_f1']:.3f}"
    table.add_row(
        "held out",
        f"[bold]{held_out}[/]  (loss {final['val_loss']:.4f} nats per token, "
        f"best {best.get('val_loss', math.nan):.4f} at step {best['step']})",
    )
    table.add_row("steps", f"{summary['step']:,}, {summary['status']}; {costs['tokens']:,} tokens")
    table.add_row("cost", "; ".join(_costs(costs)))
    for choice in summary["backends"].values():
        refused = "; ".join(f"{n}: {why}" for n, why in choice["refused"].items())
        table.add_row("kernel", f"{choice['op']}: {choice['backend']}" + (f"  [dim]({refused})[/]" if refused else ""))
    table.add_row("run folder", str(folder))
    parts: list[Any] = [table]
    if sample:
        parts += [Text(), Text("sample", style="dim"), Text(sample.strip())]
    Console(highlight=False).print(Panel(Group(*parts), title=name, title_align="left"))


def _costs(costs: dict[str, Any]) -> list[str]:
    parts = [f"{costs['parameters'] / 1e6:.2f} M parameters"]
    if costs["training_flops"] is not None:
        parts.append(f"{costs['training_flops']:.2e} FLOPs")
    if costs["tokens_per_second"] is not None:
        parts.append(f"{costs['tokens_per_second']:,.0f} tokens/s")
    if costs["mfu"] is not None:
        parts.append(f"MFU {costs['mfu']:.1%}")
    parts.append(f"{costs['wall_seconds']:.0f} s")
    if costs["peak_memory_bytes"] is not None:
        parts.append(f"peak {costs['peak_memory_bytes'] / 2**30:.2f} GiB")
    if costs["energy_joules"] is not None:
        parts.append(f"{costs['energy_joules'] / 1e3:.1f} kJ")
    return parts

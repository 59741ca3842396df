"""speed: time of a training step, of reading a prompt and of a decoded token; peak memory and energy.

Medians over repetitions, with a bootstrap interval of the median; the machine stands in the result. Training works on a
copy of the model with the run's optimizer and batches. A decoded token is timed by going on from one state again and
again, so the context stays as long as it is said to be.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bouton.evaluation.base import Result, Row, Task, spread
from bouton.evaluation.intervals import Estimate, median
from bouton.evaluation.options import Params, integers, real
from bouton.evaluation.registry import register
from bouton.evaluation.subject import AUTOCAST, Subject
from bouton.training.costs import EnergyMeter, peak_memory, reset_peak_memory

if TYPE_CHECKING:
    from bouton.models.body import Body

Batch = Mapping[str, Tensor]
_WARM_UP, _FEWEST = 2, 5  # repetitions


@dataclass(frozen=True)
class SpeedOptions(Params):
    seconds: float = real(
        2.0, "time spent on each figure, at least 5 repetitions", unit="seconds", low=0, low_open=True
    )
    contexts: tuple[int, ...] | None = integers(
        None, "lengths of prompt and context; null: 1/2, 1, 2 and 4 rows of training", low=1
    )


@register
class Speed(Task):
    name = "speed"
    summary = "training tokens/s, prompt and decode latency by context length, peak memory, joules where readable"
    Options = SpeedOptions
    headline: ClassVar = (
        "training_tokens_per_second", "peak_memory_bytes", "training_joules_per_token", "prompt_seconds",
        "decode_seconds", "decode_joules_per_token",
    )  # fmt: skip
    machine_bound = True

    def measure(self, subject: Subject, options: SpeedOptions) -> Result:
        result = Result()
        _training(subject, options.seconds, result)
        lengths = options.contexts or [max(1, subject.seq_len * f // 2) for f in (1, 2, 4, 8)]
        limit = subject.position_limit
        table: list[Row] = []
        for length in subject.track(sorted(set(lengths)), "speed, decoding"):
            # A token follows the context.
            if limit is not None and length >= limit:
                result.notes.append(f"a context of {length} tokens was not timed: learned positions end at {limit}")
                continue
            table.append(_latency(subject, options.seconds, length, result))
        result.tables["contexts"] = table
        if not any("joules" in name for name in result.numbers):
            result.notes.append(
                "energy cannot be read on this machine: no NVML counter of the GPU"
                if subject.device.type == "cuda"
                else "energy cannot be read on this machine: no readable RAPL counter in /sys/class/powercap"
            )
        if table:
            result.figures["latency"] = _draw(table)
        return result


def _by_gradients(subject: Subject, model: Body) -> Callable[[Batch], None]:
    """A step of the run's optimizer."""
    from bouton.training.module import summed_nll
    from bouton.training.optimizers import build_optimizer

    optimizer = build_optimizer(dict(subject.run.config.optimizer), model)
    kind = AUTOCAST.get(subject.precision_name)

    def step(batch: Batch) -> None:
        with torch.autocast(subject.device.type, dtype=kind, enabled=kind is not None):
            logits, _ = model(batch["tokens"], starts=batch["starts"])
            loss = summed_nll(logits, batch["targets"]) / batch["tokens"].numel()
        extra = model.auxiliary_loss()
        (loss if extra is None else loss + extra).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        model.commit_observations(lambda sums: sums)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _locally(subject: Subject, model: Any) -> Callable[[Batch], None]:
    """A step of the body's own rule."""
    rate = float(subject.run.config.optimizer.lr)
    return lambda batch: model.learn(batch["tokens"], batch["targets"], batch["starts"], rate)


def _training(subject: Subject, seconds: float, result: Result) -> None:
    batches = [{name: t.to(subject.device) for name, t in subject.data.train_batch(step).items()} for step in range(4)]
    model = copy.deepcopy(subject.model).train()
    learn = _locally(subject, model) if model.learns_locally else _by_gradients(subject, model)
    tokens, done = batches[0]["tokens"].numel(), 0

    def step() -> None:
        nonlocal done
        learn(batches[done % len(batches)])
        done += 1

    reset_peak_memory()
    times, joules = timed(step, seconds, subject.device)
    rate = median([tokens / t for t in times])
    result.put("training_tokens_per_second", rate)
    memory = peak_memory(subject.device)
    if memory is not None:
        result.numbers["peak_memory_bytes"] = memory
        if subject.device.type == "cpu":
            result.notes.append("peak memory is the resident set of the whole process, libraries included")
    if joules is not None:
        result.numbers["training_joules_per_token"] = joules / (tokens * len(times))


def _latency(subject: Subject, seconds: float, length: int, result: Result) -> Row:
    """Prompt and decode latency at one length; the plain names are those of a training row."""
    vocabulary = subject.tokenizer.vocab_size
    tokens = torch.randint(vocabulary, (1, length + 1), generator=torch.Generator().manual_seed(0)).to(subject.device)
    state: Any = None

    def prompt() -> None:
        nonlocal state
        _, state = subject.model(tokens[:, :length])

    def decode() -> None:
        subject.model(tokens[:, length:], state)

    row: dict[str, Any] = {"tokens": length}
    with subject.computing():
        for name, call in (("prompt_seconds", prompt), ("decode_seconds", decode)):
            times, joules = timed(call, seconds, subject.device)
            latency = median(times)
            row |= spread(name, latency) | {f"{name}_repetitions": len(times)}
            _record(result, name, latency, length, subject.seq_len)
            if joules is not None:
                per_token = joules / len(times) / (length if name == "prompt_seconds" else 1)
                label = name.replace("seconds", "joules_per_token")
                row[label] = per_token
                result.numbers[f"{label}_{length}_tokens"] = per_token
                if length == subject.seq_len:
                    result.numbers[label] = per_token
    return row


def _record(result: Result, name: str, estimate: Estimate, length: int, row: int) -> None:
    result.put(f"{name}_{length}_tokens", estimate)
    if length == row:
        result.put(name, estimate)


def timed(call: Callable[[], None], seconds: float, device: torch.device) -> tuple[list[float], float | None]:
    """Seconds of repeated calls after a warm-up, and the joules of all of them (None: cannot be read)."""
    for _ in range(_WARM_UP):
        call()
    _wait(device)
    energy = EnergyMeter(device)
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < _FEWEST or time.perf_counter() < stop:
        begin = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return times, energy.joules()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _draw(table: list[Row]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = (("prompt_seconds", "reading the prompt"), ("decode_seconds", "one decoded token"))
    for axes, (name, title) in zip(figure.subplots(1, 2), panels, strict=True):
        plot: Any = axes
        values = [row[name] * 1e3 for row in table]
        low = [(row[name] - row[f"{name}_low"]) * 1e3 for row in table]
        high = [(row[f"{name}_high"] - row[name]) * 1e3 for row in table]
        plot.errorbar([row["tokens"] for row in table], values, [low, high], fmt="o-", markersize=4)
        plot.set_xscale("log", base=2)
        plot.set(xlabel="context (tokens)", ylabel="milliseconds", ylim=(0, None))
        plot.set_title(title, fontsize=10)
    return figure

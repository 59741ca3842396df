"""Random calls of the ops and of the compiled functions, half of them wrong: a right answer or an exception, no crash.

The calls are made in a child process with little memory: one that crashes or hangs is seen, told, and gone past.

    python benchmarks/fuzz.py [--calls 100000] [--seed 0]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from bouton.testing.fuzz import WrongAnswerError, attempt, make_call

# A call takes milliseconds; a first one compiles nothing.
PATIENCE_S = 60.0
MEMORY = 16 << 30  # addresses, of which torch's libraries take several gigabytes
BATCH = 200
TOLD = 10_000  # where no bar can be drawn, a line each time so many calls were made


def work(first: int, last: int, at: Any, out: Connection) -> None:
    """Make the calls of the seeds ``first <= seed < last``; ``at`` holds the present one."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    for seed in range(first, last):
        at.value = seed
        call = make_call(Random(seed))
        try:
            counts[call.name, attempt(call)] += 1
        except WrongAnswerError as error:
            counts[call.name, "FAILED"] += 1
            failures.append(f"seed {seed}: {error}")
        if seed % BATCH == BATCH - 1 or seed == last - 1:
            out.send((seed + 1, counts, failures))
            counts, failures = Counter(), []


def main() -> int:
    """Exit code 1 if a call failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the first call's; each next call has the next one")
    options = parser.parse_args()
    console = Console()
    context = multiprocessing.get_context("spawn")
    begin, end = options.seed, options.seed + options.calls
    counts: Counter[tuple[str, str]] = Counter()
    with Progress(console=console) as progress:
        task = progress.add_task("calls", total=options.calls)
        while begin < end:
            at = context.Value("q", begin)
            inlet, outlet = context.Pipe(duplex=False)
            child = context.Process(target=work, args=(begin, end, at, outlet))
            child.start()
            outlet.close()
            seen, since = begin, time.monotonic()
            while begin < end:
                try:
                    if inlet.poll(1.0):
                        begin, more, failures = inlet.recv()
                        counts += more
                        done = begin - options.seed
                        progress.update(task, completed=done)
                        if not console.is_terminal and done // TOLD != (done - more.total()) // TOLD:
                            print(f"{done} of {options.calls} calls", flush=True)
                        for failure in failures:
                            console.print(failure, markup=False, highlight=False, soft_wrap=True)
                except EOFError:
                    break
                if at.value != seen:
                    seen, since = at.value, time.monotonic()
                elif time.monotonic() - since > PATIENCE_S:
                    child.kill()
            child.join()
            if begin < end:
                # What was counted since the last report is lost; the calls themselves are known.
                name = f"ended with code {child.exitcode}" if time.monotonic() - since < PATIENCE_S else "hung"
                call = make_call(Random(at.value))
                console.print(f"seed {at.value}: {call}\n  {name}", markup=False, highlight=False, soft_wrap=True)
                counts[call.name, "CRASHED"] += 1
                begin = at.value + 1
    for line in lines(counts):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    bad = sum(n for (_, outcome), n in counts.items() if outcome.isupper())
    console.print(f"{counts.total()} calls, {bad} of them failed")
    return int(bad > 0)


def lines(counts: Counter[tuple[str, str]]) -> list[str]:
    """For each function, and for all, how often each outcome came."""
    told = []
    for name in [*sorted({name for name, _ in counts}), "all"]:
        outcomes: Counter[str] = Counter()
        for (function, outcome), n in counts.items():
            if name in (function, "all"):
                outcomes[outcome] += n
        told.append(f"{name}: " + ", ".join(f"{outcome} {n}" for outcome, n in outcomes.most_common()))
    return told


if __name__ == "__main__":
    sys.exit(main())

"""Run as a script: prepares a copy of OpenWebText in processes of their own that are killed at unlucky moments.

Arguments: "kills" or "memory", and JSON with the files. They are forked: the libraries are imported once.
Prints JSON: what became of each process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets  # noqa: F401
import huggingface_hub
import torch  # noqa: F401  (datasets imports it at first use)

from bouton.data import prepare
from bouton.data.hub import HubDataset
from bouton.data.sources import HubSource, Source, local_source
from bouton.data.tokenizers import ByteTokenizer, load_tokenizer

VAL_FRACTION = 0.05


def source_of(form: str, files: str, cache: Path) -> Source:
    """``hub``: parquet files through the streaming reader of the hub's own library; else local files."""
    if form != "hub":
        return local_source(
            "openwebtext", files, cache, separator="<|endoftext|>", max_bytes=None, val_fraction=VAL_FRACTION
        )
    huggingface_hub.HfApi.repo_info = lambda *args, **options: None  # type: ignore[method-assign, assignment]
    dataset = HubDataset("parquet", None, None, {"train": files}, "text", {"train": "train"})
    return HubSource("openwebtext", dataset, max_bytes=None, val_fraction=VAL_FRACTION)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def trap(moment: str, number: int, source: Any) -> None:
    """Arrange for the death of this process at the ``number``-th of these moments."""
    seen = iter(range(1, 1 << 30))

    def due() -> bool:
        return next(seen) == number

    if moment == "reading":  # in the middle of a batch
        pieces = source.pieces

        def interrupted() -> Iterator[Any]:
            for piece in pieces():
                if due():
                    die()
                yield piece

        source.pieces = interrupted
    elif moment == "writing":  # half of a batch is in the files, and half of a token
        write = prepare.Writer._write

        def torn(self: Any, batch: Any) -> int:
            if not due():
                return write(self, batch)
            write(self, batch[: len(batch) // 2])
            tokens = self._open("train")[0]
            tokens.write(b"\1")
            self._sync()
            die()
            return 0

        prepare.Writer._write = torn  # type: ignore[method-assign]
    elif moment == "journal":  # the files are on the disk, the journal still says less
        replace = prepare.write_text
        prepare.write_text = lambda *args: die() if due() else replace(*args)  # type: ignore[assignment, func-returns-value]
    elif moment == "finishing":  # one split has its metadata, the other not
        facts = prepare.file_facts
        prepare.file_facts = lambda path: facts(path) if not due() else die()  # type: ignore[assignment, func-returns-value, return-value]


def job(form: str, files: str, cache: str, tokenizer: str | None, moment: str, number: int, answer: Any) -> None:
    if tokenizer is not None:
        prepare.BATCH_CHARS, prepare.JOURNAL_CHARS = 4000, 9000
    source = source_of(form, files, Path(cache))
    trap(moment, number, source)
    chosen = ByteTokenizer() if tokenizer is None else load_tokenizer(Path(tokenizer))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = prepare.prepare_store(source, chosen, Path(cache))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    answer.send({"folder": str(folder), "grown": grown})


def run(target: Callable[..., None], *args: Any) -> dict[str, Any]:
    """What a process of its own says, and how it ended."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, writer))
    process.start()
    writer.close()
    try:
        found = reader.recv()
    except EOFError:
        found = {}
    process.join()
    return {**found, "exit": process.exitcode}


def kills(given: dict[str, Any]) -> list[dict[str, Any]]:
    whole = run(job, given["form"], given["files"], given["caches"][0], given["tokenizer"], "never", 0)
    told = [whole]
    for moment, number in [*given["kills"], ("never", 0)]:
        told.append(run(job, given["form"], given["files"], given["caches"][1], given["tokenizer"], moment, number))
        partial = next(Path(given["caches"][1]).glob("*.partial"), None)
        journal = None if partial is None else partial / "journal.json"
        told[-1]["journaled"] = json.loads(journal.read_text())["pieces"] if journal and journal.exists() else None
    return told


def memory(given: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        run(job, given["form"], files, f"{given['caches'][0]}/{number}", None, "never", 0)
        for number, files in enumerate(given["files"])
    ]


if __name__ == "__main__":
    print(json.dumps({"kills": kills, "memory": memory}[sys.argv[1]](json.loads(sys.argv[2]))))

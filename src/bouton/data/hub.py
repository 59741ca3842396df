"""Streams and files of the Hugging Face hub, with one clear line where there is no network."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bouton.errors import DataError

_TIMEOUT = 10.0  # seconds for the first contact; the hub's own client would retry for half a minute


@dataclass(frozen=True)
class HubDataset:
    """A text data set of the hub.

    Attributes:
        repository: "owner/name".
        subset: configuration name, or None.
        revision: branch, tag or commit, or None for the main branch.
        files: split -> pattern of the files in the repository, where its own split names are not to be used.
        text_field: column with the text of a document; empty for rows that are no text.
        splits: our split ("train", "val") -> its split.
        node: where the configuration names it, for error messages.
    """

    repository: str
    subset: str | None
    revision: str | None
    files: dict[str, str] | None
    text_field: str
    splits: dict[str, str]
    node: str = "data"

    def facts(self) -> dict[str, Any]:
        """What identifies it, wherever the configuration names it."""
        return {name: value for name, value in vars(self).items() if name != "node"}

    def documents(self, split: str) -> Iterator[str]:
        """The documents of our ``split``, streamed; never more than a few rows in memory."""
        for row in self.rows(split):
            text = row.get(self.text_field)
            if not isinstance(text, str):
                raise DataError(
                    f"{self.node}.hub.text_field={self.text_field}: {self.repository} has the columns {', '.join(row)}"
                )
            yield text

    def rows(self, split: str) -> Iterator[dict[str, Any]]:
        """The rows of our ``split`` with all their columns, streamed."""
        with _quiet(), _clear(f"the data set {self.repository}", f"{self.node}.path=<file or folder>"):
            _reach(self.repository, self.revision, "dataset")
            from datasets import load_dataset

            options: dict[str, Any] = {"name": self.subset, "revision": self.revision, "streaming": True}
            if self.files is not None:
                options["data_files"] = self.files
            yield from load_dataset(self.repository, split=self.splits[split], **options)


def fetch_file(repository: str, name: str, instead: str) -> Path:
    """A file of a model repository: from the local cache if it is there, else downloaded.

    Args:
        instead: the override that gives a local copy, for the error message.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    with _quiet(), _clear(f"{name} of {repository}", instead):
        _reach(repository, None, "model")
        return Path(hf_hub_download(repository, name))


def _reach(repository: str, revision: str | None, kind: str) -> None:
    """Fail fast where the hub cannot be reached."""
    from huggingface_hub import HfApi

    HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=_TIMEOUT)


@contextmanager
def _clear(what: str, instead: str) -> Iterator[None]:
    """Any failure of the hub's client (it has dozens of kinds) as one line that says how to do without it."""
    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{what} cannot be fetched ({reason}); {instead} gives a local copy") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's log of every retry: the one line of :func:`_clear` says it."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

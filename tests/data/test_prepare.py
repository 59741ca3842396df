from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bouton.data import ByteTokenizer, open_store, prepare, train_bpe
from bouton.data.prepare import prepare_store, prepare_trained
from bouton.data.sources import LocalSource, local_source
from bouton.errors import DataError

from .conftest import story


def source(path: Path, tmp_path: Path, **options: object) -> LocalSource:
    defaults: dict[str, object] = {"separator": "<|endoftext|>", "max_bytes": None, "val_fraction": 0.2}
    return local_source("text", str(path), tmp_path / "cache", **(defaults | options))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


# A process that prepares a file with a journal entry after every few documents; arguments: corpus, cache, mode, number.
SCRIPT = """
import os, resource, signal, sys, time
from pathlib import Path
from bouton.data import prepare, ByteTokenizer
from bouton.data.sources import LocalSource, local_source
from bouton.errors import DataError

corpus, cache, mode, number = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
prepare.BATCH_CHARS, prepare.JOURNAL_CHARS = 400, 1200
source = local_source("text", corpus, cache, separator="<|endoftext|>", max_bytes=None, val_fraction=0.2)
pieces = source.pieces
def interrupted():
    for n, piece in enumerate(pieces()):
        if mode == "kill" and n == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "slow":
            time.sleep(number / 1e6)
        yield piece
source.pieces = interrupted
if mode == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
try:
    print(prepare.prepare_store(source, ByteTokenizer(), cache))
except DataError as error:
    print(f"error: {error}")
    sys.exit(1)
"""


def command(corpus: Path, cache: Path, mode: str, number: int) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(corpus), str(cache), mode, str(number)]


def run(corpus: Path, cache: Path, mode: str = "plain", number: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(corpus, cache, mode, number), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_store_holds_the_text(kind: str, corpus: Path, tmp_path: Path) -> None:
    tokenizer = ByteTokenizer() if kind == "bytes" else train_bpe((story(n) for n in range(50)), 400)
    folder = prepare_store(source(corpus, tmp_path), tokenizer, tmp_path / "cache")
    found = []
    for split in ("train", "val"):
        store = open_store(folder / split)
        texts = [tokenizer.decode(store.document(i)[1:].tolist()) for i in range(len(store.documents))]
        assert np.array_equal(store.documents, np.flatnonzero(store.tokens == tokenizer.eot_id))
        assert tokenizer.token_bytes[store.tokens].sum() == store.num_bytes == sum(len(t.encode()) for t in texts)
        assert store.tokens.dtype == np.uint16
        assert store.meta["tokenizer"]["fingerprint"] == tokenizer.fingerprint
        found += texts
    assert sorted(found) == sorted(story(n) for n in range(120))
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_large_vocabulary_is_four_bytes_wide(corpus: Path, tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        eot_id = 70_000
        fingerprint = "wide"

        def __init__(self) -> None:
            super().__init__()
            self._strings += [b""] * (70_001 - 257)

    store = open_store(prepare_store(source(corpus, tmp_path), Wide(), tmp_path / "cache") / "train")
    assert store.tokens.dtype == np.uint32
    assert store.tokens[0] == 70_000


def test_second_call_and_other_settings(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = prepare_store(source(corpus, tmp_path), ByteTokenizer(), cache)
    stamp = (first / "train" / "tokens.bin").stat().st_mtime_ns
    assert prepare_store(source(corpus, tmp_path), ByteTokenizer(), cache) == first
    assert (first / "train" / "tokens.bin").stat().st_mtime_ns == stamp
    assert prepare_store(source(corpus, tmp_path, val_fraction=0.5), ByteTokenizer(), cache) != first


@pytest.mark.slow
def test_killed_writer_resumes_to_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    whole = Path(run(corpus, tmp_path / "a").stdout.strip())
    cache = tmp_path / "b"
    for number in (50, 57, 110):  # 57: killed again before the next journal entry
        assert run(corpus, cache, "kill", number).returncode == -signal.SIGKILL
        partial = next(cache.glob("*.partial"))
        assert (partial / "journal.json").is_file()
        assert not (cache / partial.stem).exists()
    resumed = Path(run(corpus, cache).stdout.strip())
    assert contents(resumed) == contents(whole)
    assert len(contents(whole)) >= 7


def test_resume_skips_what_is_journaled(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "BATCH_CHARS", 400)
    monkeypatch.setattr(prepare, "JOURNAL_CHARS", 1200)

    class Stopping(ByteTokenizer):
        left = 60

        def encode_batch(self, texts):  # type: ignore[no-untyped-def]
            self.left -= len(texts)
            if self.left < 0:
                raise KeyboardInterrupt
            return super().encode_batch(texts)

    with pytest.raises(KeyboardInterrupt):
        prepare_store(source(corpus, tmp_path), Stopping(), tmp_path / "cache")
    counting = Stopping()
    counting.left = 1000
    prepare_store(source(corpus, tmp_path), counting, tmp_path / "cache")
    assert 60 <= 1000 - counting.left < 80  # not all 120 again


@pytest.mark.parametrize("damaged", ["train/tokens.bin", "journal.json"])
def test_partial_files_that_lost_bytes_are_not_trusted(corpus: Path, tmp_path: Path, damaged: str) -> None:
    whole = Path(run(corpus, tmp_path / "a").stdout.strip())
    cache = tmp_path / "b"
    run(corpus, cache, "kill", 80)
    os.truncate(next(cache.glob("*.partial")) / damaged, 10)
    assert contents(Path(run(corpus, cache).stdout.strip())) == contents(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the file size")
def test_full_disk_is_one_line_and_continues(corpus: Path, tmp_path: Path) -> None:
    whole = Path(run(corpus, tmp_path / "a").stdout.strip())
    cache = tmp_path / "b"
    failed = run(corpus, cache, "full", 9000)
    assert failed.returncode == 1
    assert failed.stdout.startswith("error: no space left while writing the token files")
    assert failed.stdout.count("\n") == 1
    assert "Traceback" not in failed.stderr
    assert not (cache / whole.name).exists()
    assert contents(Path(run(corpus, cache).stdout.strip())) == contents(whole)


@pytest.mark.slow
def test_two_preparers_at_once(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "b"
    jobs = [subprocess.Popen(command(corpus, cache, "slow", 8000), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [job.communicate(timeout=60)[0].strip() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert folders[0] == folders[1]
    whole = Path(run(corpus, tmp_path / "a").stdout.strip())
    assert contents(Path(folders[0])) == contents(whole)


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
from bouton.data import ByteTokenizer, prepare
from bouton.data.sources import local_source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ByteTokenizer().encode_batch(["x" * prepare.BATCH_CHARS])
before = peak()
source = local_source("text", sys.argv[1], Path(sys.argv[2]), separator=None, max_bytes=None, val_fraction=0.1)
prepare.prepare_store(source, ByteTokenizer(), Path(sys.argv[2]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in kilobytes on Linux")
def test_one_huge_document_needs_no_more_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("w") as file:
        for n in range(40):
            file.write(f"line {n} of a long document\n" * 40_000)
    assert path.stat().st_size > 40e6  # as int64 tokens at once: over 300 MB
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(path), str(tmp_path / "cache")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    assert int(grown) < 40_000


def test_cache_that_is_no_folder(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=r"cannot be written to .*set data\.cache_dir"):
            prepare_store(source(corpus, tmp_path), ByteTokenizer(), cache)


def test_corrupt_files_are_refused(corpus: Path, tmp_path: Path) -> None:
    folder = prepare_store(source(corpus, tmp_path), ByteTokenizer(), tmp_path / "cache") / "train"
    assert len(open_store(folder)) > 0  # leaves the mark that the checksums were compared
    tokens = folder / "tokens.bin"
    data = tokens.read_bytes()

    tokens.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(DataError, match=r"corrupt \(the checksum of tokens\.bin differs\): delete"):
        open_store(folder)
    tokens.write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"tokens\.bin has \d+ bytes, not \d+"):
        open_store(folder)
    tokens.write_bytes(data)
    open_store(folder)
    documents = folder / "documents.bin"
    index = documents.read_bytes()
    documents.unlink()
    with pytest.raises(DataError, match=r"documents\.bin is missing"):
        open_store(folder)
    documents.write_bytes(index)
    meta = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(meta[:-20])
    with pytest.raises(DataError, match=r"meta\.json cannot be read"):
        open_store(folder)
    (folder / "meta.json").write_text(meta.replace('"version": 1', '"version": 99'))
    with pytest.raises(DataError, match="format version 99"):
        open_store(folder)
    with pytest.raises(DataError, match="no token files"):
        open_store(tmp_path / "nowhere")


def test_unchanged_files_are_hashed_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bouton.data import store

    folder = prepare_store(source(corpus, tmp_path), ByteTokenizer(), tmp_path / "cache") / "train"
    open_store(folder)
    monkeypatch.setattr(store, "file_facts", lambda path: pytest.fail("hashed again"))
    open_store(folder)


def test_empty_split_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text("x")
    with pytest.raises(DataError, match=r"split '\w+' got no document; use more text"):
        prepare_store(source(path, tmp_path), ByteTokenizer(), tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith("text-") and p.is_dir()]


def test_bpe_is_trained_once_and_on_training_text_only(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = source(corpus, tmp_path)
    first = prepare_trained("bpe", found, 400, 10**6, tmp_path / "cache")
    expected = train_bpe([text for split, (text, _) in found.pieces() if split == "train"], 400)
    assert first.fingerprint == expected.fingerprint
    monkeypatch.setattr(prepare, "train_bpe", lambda *args: pytest.fail("trained again"))
    assert prepare_trained("bpe", found, 400, 10**6, tmp_path / "cache").fingerprint == first.fingerprint

"""The domain of MNIST on generated images in the same files; on MNIST itself where BOUTON_MNIST names its folder."""

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from bouton import substrate
from bouton.cli.train import main
from bouton.domains.images.idx import read_idx
from bouton.domains.images.mnist import Encoder
from bouton.errors import DataError
from bouton.substrate.arrays import NONE

pytest.importorskip("bouton_kernels")
pytest.importorskip("sklearn")


def _write(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bars at ten heights, moved by a pixel at random, in noise."""
    random = np.random.default_rng(0)
    for part, count, ending in (("train", 400, ".gz"), ("t10k", 100, "")):
        labels = random.integers(0, 10, count)
        images = random.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            top, left = 2 + 2 * label + random.integers(0, 2), random.integers(2, 8)
            image[top : top + 4, left : left + 18] = random.integers(180, 256)
        _write(tmp_path / f"{part}-images-idx3-ubyte{ending}", images)
        _write(tmp_path / f"{part}-labels-idx1-ubyte{ending}", labels)
    return tmp_path


@pytest.mark.parametrize("code", ["cells", "patches"])
def test_a_run_learns_and_leaves_pictures(folder: Path, code: str) -> None:
    out = folder / "run"
    words = ["experiment=substrate/mnist", f"domain.path={folder}", "domain.validation=100", f"domain.code={code}"]
    assert main([*words, "domain.epochs=4", f"run_dir={out}"]) == 0
    rows = {row["method"]: row for row in csv.DictReader((out / "results.csv").open())}
    assert float(rows["graph"]["test"]) > 0.9 > 0.3 > float(rows["majority class"]["test"])
    facts = json.loads((out / "summary.json").read_text())["facts"]
    assert facts["training examples"] == 400 and 50 < facts["distinct codes in training"] <= 400
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("weights", "confusion"))
    graph = substrate.open(out / "graph.bouton")
    active = substrate.spread(graph, ["r8c8=1" if code == "cells" else "r8c8=0011"], steps=1, record=True)
    assert "r8c8" in str(substrate.explain(graph, active, "7"))


def test_levels_are_means_of_areas() -> None:
    images = np.zeros((1, 28, 28), np.uint8)
    images[0, :14, :14] = 255  # 8 x 8 cells exactly
    images[0, 14:, 14:] = 130
    levels = Encoder((28, 28), "cells").levels(images)[0]
    assert (levels[:8, :8] == 3).all() and (levels[8:, 8:] == 2).all()
    assert not levels[:8, 8:].any() and not levels[8:, :8].any()
    patches = Encoder((28, 28), "patches")
    assert (patches.levels(images)[0] == (levels >= 2)).all()
    active = patches(images)[0]
    assert (active != NONE).sum() == 8 * 8 + 8 * 8 - 1  # each square touches 8 x 8 patches, the middle one both


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    images = folder / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(images.read_bytes())
    images.write_bytes(gzip.compress(whole[:-1]))
    with pytest.raises(DataError, match=r"313,599 bytes of data, but its shape \(400, 28, 28\) 313,600"):
        read_idx(folder, "train-images-idx3-ubyte", 3)
    images.write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(folder, "train-images-idx3-ubyte", 3)
    images.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(folder, "train-images-idx3-ubyte", 3)
    with pytest.raises(DataError, match="no IDX file of bytes with 3 axes"):
        read_idx(folder, "t10k-labels-idx1-ubyte", 3)
    with pytest.raises(DataError, match=r"holds neither train-labels nor train-labels\.gz"):
        read_idx(folder, "train-labels", 1)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("domain.path=null", "domain.path = null is not valid"),
        ("domain.path=3", "domain.path = 3 is not valid"),
        ("domain.validation=400", "domain.validation = 400 is not valid"),
        ("domain.code=pixels", "domain.code = 'pixels' is not valid"),
        ("domain.slower=0", "domain.slower = 0 is not valid"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, word: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=substrate/mnist", f"domain.path={folder}", f"run_dir={folder / 'run'}", word]
    assert main(words) == 1
    told = capsys.readouterr().err.strip()
    assert says in told and len(told.splitlines()) == 1
    assert not (folder / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif("BOUTON_MNIST" not in os.environ, reason="BOUTON_MNIST names no folder with MNIST")
def test_mnist_itself(tmp_path: Path) -> None:
    words = ["experiment=substrate/mnist", f"domain.path={os.environ['BOUTON_MNIST']}", f"run_dir={tmp_path / 'run'}"]
    assert main(words) == 0
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "run" / "results.csv").open())}
    assert float(rows["graph"]["test"]) > 0.96

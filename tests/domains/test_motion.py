"""Moving pictures as grids; shapes, clips and the watch, on generated data."""

import csv
from pathlib import Path

import numpy as np
import pytest

from bouton.cli.train import main
from bouton.domains.motion import eye
from bouton.domains.motion.clips import LENGTH, PARTS, at_rate, windows
from bouton.domains.motion.shapes import CLASSES, SIDE, STILL, clip
from bouton.domains.motion.wrist import BANDS, CUTS, levels

pytest.importorskip("bouton_kernels")
pytest.importorskip("sklearn")


def _moved(dy: int, dx: int, count: int = 10) -> np.ndarray:
    picture = np.random.default_rng(0).standard_normal((32, 32))
    return np.stack([np.roll(picture, (dy * t, dx * t), (0, 1)) for t in range(count)]).astype(np.float32)


@pytest.mark.parametrize(("dy", "dx"), [(0, 1), (1, 0), (-1, -1), (1, -1)])
def test_detectors_of_what_moved_are_highest(dy: int, dx: int) -> None:
    found = eye.moving(_moved(dy, dx))
    for delay, grid in zip(eye.DELAYS, found, strict=True):
        assert grid[eye.REACH + delay * dy, eye.REACH + delay * dx] == len(eye.STRENGTH)
    np.testing.assert_array_equal(found, eye.moving(_moved(dy, dx) * 0.1 + 5))  # contrast and light do not count


def test_detectors_by_a_plain_loop() -> None:
    frames = np.random.default_rng(1).standard_normal((6, 12, 11)).astype(np.float32)
    from scipy.ndimage import gaussian_filter

    unusual = gaussian_filter(frames, (0, 1, 1))
    unusual = unusual - unusual.mean(axis=0)
    unusual = unusual - unusual.mean(axis=(1, 2), keepdims=True)
    expected = []
    for delay in eye.DELAYS:
        grid = np.zeros((7, 7))
        for dy, dx in np.ndindex(7, 7):
            for t in range(6 - delay):
                for y in range(3, 9):
                    for x in range(3, 8):
                        grid[dy, dx] += unusual[t, y, x] * unusual[t + delay, y + dy - 3, x + dx - 3] / (6 - delay)
        expected.append((grid - grid.mean()) / grid.std())
    off = np.abs(np.array(expected)[..., None] - np.array(eye.STRENGTH)).min(axis=-1) > 1e-3  # not on a cut
    reached = (np.array(expected)[..., None] >= np.array(eye.STRENGTH)).sum(axis=-1)
    np.testing.assert_array_equal(eye.moving(frames)[off], reached[off])


def test_frames_tell_where_and_when() -> None:
    frames = np.zeros((8, 32, 32), np.float32)
    frames[4:6, 8:12, 20:24] = 1
    grid = eye.seen(frames)
    assert grid.shape == (4, 8, 8) and np.argwhere(grid == grid.max()).tolist() == [[2, 2, 5]]


def test_shapes_stay_in_the_picture_and_move_as_they_should() -> None:
    random = np.random.default_rng(2)
    y, x = np.mgrid[:SIDE, :SIDE]
    for label in range(len(CLASSES)):
        for _ in range(10):
            frames = np.abs(clip(random, label, 0.0))
            edge = max(frames[:, 0].max(), frames[:, -1].max(), frames[:, :, 0].max(), frames[:, :, -1].max())
            assert edge <= 0.5 + 1e-6 and frames.max() > 0.1
            mass = frames.sum(axis=(1, 2))
            middle = np.stack([(frames * a).sum(axis=(1, 2)) / mass for a in (y, x)], axis=1)
            way = middle[-1] - middle[0]
            if label == STILL:
                assert np.abs(way).max() < 1e-3
            else:
                turned = np.angle(np.exp(1j * (np.arctan2(*way) - label * np.pi / 4)))
                assert np.hypot(*way) > 4 and abs(turned) < np.pi / 8
    noise = clip(np.random.default_rng(3), 0, 1.0) - clip(np.random.default_rng(3), 0, 0.0)
    assert noise.std() == pytest.approx(np.abs(clip(np.random.default_rng(3), 0, 0.0)).max(), rel=0.1)


def test_directions_are_told_by_motion_and_not_by_frames(tmp_path: Path) -> None:
    shares = {}
    for code in eye.CODES:
        out = tmp_path / code
        sizes = ["domain.examples=400", "domain.tests=30", "domain.eta=0.01", "domain.noise=0.5"]
        assert main(["experiment=substrate/shapes", *sizes, f"domain.code={code}", f"run_dir={out}"]) == 0
        shares[code] = float(next(csv.DictReader((out / "results.csv").open()))["noise 0.25"])
    assert shares["motion"] > 0.75 > 0.5 > shares["frames"]


def test_windows_of_the_parts_do_not_overlap() -> None:
    frames = np.repeat(np.arange(300, dtype=np.float32), 4).reshape(300, 2, 2)
    slow = at_rate(frames, 30.0) * 255
    assert slow.shape == (100, 32, 32)
    np.testing.assert_allclose(slow[:, 0, 0], 3 * np.arange(100), atol=1e-3)
    seen: dict[str, set[int]] = {}
    for part, (begin, end) in PARTS.items():
        found = windows(slow[round(begin * 100) : round(end * 100)], 7)
        assert len(found) == 7 and all(len(window) == LENGTH for window in found)
        seen[part] = {round(float(v)) for window in found for v in window[:, 0, 0]}
    assert not seen["fit"] & seen["validation"] and not (seen["fit"] | seen["validation"]) & seen["test"]
    assert len(windows(slow[:12], 50)) == 3


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two scenes, in which something drifts to the right or downwards."""
    random = np.random.default_rng(4)
    arrays = {}
    for name, step, fps, side in (("right", (0, 1), 10.0, 32), ("down", (1, 0), 20.0, 48)):
        picture = random.integers(0, 255, (side, side))
        every = int(fps / 10)
        frames = [np.roll(picture, [t // every * s for s in step], (0, 1)) for t in range(80 * every)]
        arrays |= {name: np.stack(frames).astype(np.uint8), f"{name}_fps": np.float32(fps)}
    np.savez(tmp_path / "clips.npz", **arrays)
    return tmp_path / "clips.npz"


def test_clips_are_told_by_what_moves(clips: Path) -> None:
    out = clips.parent / "run"
    assert main(["experiment=substrate/clips", f"domain.path={clips}", f"run_dir={out}"]) == 0
    assert float(next(csv.DictReader((out / "results.csv").open()))["test"]) == 1.0


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": np.zeros((99, 9, 9)), "a_fps": np.array(10.0)}, "has 1 clips"),
        ({"a": np.zeros((99, 9)), "a_fps": np.array(10.0)}, "'a' has shape (99, 9)"),
        ({"a": np.zeros((20, 9, 9)), "a_fps": np.array(10.0)}, "'a' lasts 20 frames"),
    ],
)
def test_files_that_are_not_clips(
    tmp_path: Path, arrays: dict[str, np.ndarray], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "clips.npz", **arrays)
    assert (
        main(["experiment=substrate/clips", f"domain.path={tmp_path / 'clips.npz'}", f"run_dir={tmp_path / 'r'}"]) == 1
    )
    told = capsys.readouterr().err.strip()
    assert says in told and len(told.splitlines()) == 1


def test_the_watch_measures_power_in_bands() -> None:
    t = np.arange(100) / 10
    series = np.stack([3 * np.sin(2 * np.pi * hz * t) for hz in (0.45, 0.9, 1.8, 3.6)])[None] + 7.0
    grid = levels(series, 10.0)
    power = 10 * np.log10(4.5)  # of a sine of amplitude 3
    assert grid.shape == (1, 4, len(BANDS) - 1)
    for channel in range(4):
        assert grid[0, channel].argmax() == channel
        assert grid[0, channel, channel] == (power >= np.array(CUTS)).sum()


def test_activities_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random, t = np.random.default_rng(5), np.arange(100) / 10
    arrays = {}
    for part in ("train", "test"):
        y = np.repeat(np.arange(4), 10)
        phase, loud = random.uniform(0, 6, (40, 6, 1)), random.uniform(0.8, 1.3, (40, 1, 1))
        x = loud * np.sin(2 * np.pi * (0.5 * 1.9 ** y[:, None, None]) * t + phase) + 0.1 * random.standard_normal(
            (40, 6, 100)
        )
        arrays |= {f"x_{part}": x.astype(np.float32), f"y_{part}": y.astype(np.uint8)}
    names = {"classes": np.array(list("abcd")), "channels": np.array([f"c{i}" for i in range(6)])}
    np.savez(tmp_path / "motions.npz", **arrays, **names, rate_hz=np.int32(10))
    words = [
        "experiment=substrate/basic_motions",
        f"domain.path={tmp_path / 'motions.npz'}",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert main(words) == 0
    assert float(next(csv.DictReader((tmp_path / "run" / "results.csv").open()))["test"]) > 0.9
    capsys.readouterr()
    assert main([*words[:2], f"run_dir={tmp_path / 'other'}", "domain.validation=40"]) == 1
    assert "domain.validation = 40 is not valid: below the 40 series" in capsys.readouterr().err

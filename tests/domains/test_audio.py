"""Sounds as grids, tones and spoken digits, on generated sounds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bouton.cli.train import main
from bouton.domains.audio.mel import Ear, band_edges, mel_filters
from bouton.domains.audio.tones import RATES, TONES, tone

pytest.importorskip("bouton_kernels")
pytest.importorskip("sklearn")
EAR = Ear(bands=24, low=100.0, high=3800.0, slots=8, cuts=(-8.0, 2.0, 8.0))


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
@pytest.mark.parametrize("hz", [250.0, 1000.0, 3000.0])
def test_a_tone_is_heard_at_its_frequency_whatever_the_rate(hz: float, rate: int) -> None:
    t = np.arange(int(0.6 * rate)) / rate
    loud = EAR.loudness(np.sin(2 * np.pi * hz * t), rate)
    peaks = band_edges(24, 100.0, 3800.0)[1:-1]
    assert (np.abs(peaks - peaks[loud.argmax(axis=0)][:, None]).min() == 0) and loud.shape == EAR.shape
    assert (loud.argmax(axis=0) == np.abs(peaks - hz).argmin()).all()


def test_volume_duration_and_rate_change_little() -> None:
    def grid(rate: int, seconds: float, volume: float) -> np.ndarray:
        t = np.arange(int(seconds * rate)) / rate
        return EAR.levels(volume * np.where(t < seconds / 2, np.sin(2e3 * np.pi * t), np.sin(4e3 * np.pi * t)), rate)

    first = grid(16000, 1.0, 1.0)
    np.testing.assert_array_equal(first, grid(16000, 1.0, 0.01))
    for other in (grid(16000, 0.6, 1.0), grid(16000, 1.7, 0.3), grid(11025, 1.0, 1.0)):
        assert (first != other).mean() < 0.12
    assert (first[:, :3] != first[:, -3:]).any()  # when something sounds does count


def test_what_a_low_rate_cannot_carry_is_silent() -> None:
    grid = EAR.levels(np.random.default_rng(0).standard_normal(2000), 4000)
    beyond = band_edges(24, 100.0, 3800.0)[2:] > 2000
    assert beyond.any() and not grid[beyond].any() and grid[~beyond].any(axis=1).all()
    assert np.isfinite(EAR.loudness(np.zeros(10), 8000)).all()  # shorter than a window


def test_filters_are_triangles_that_add_up_to_one() -> None:
    filters, edges = mel_filters(10, 100.0, 3800.0, 4097, 8000), band_edges(10, 100.0, 3800.0)
    np.testing.assert_allclose(filters.sum(axis=1), 1)
    f = np.linspace(0, 4000, 4097)
    for row, low, high in zip(filters, edges, edges[2:], strict=False):
        assert not row[(f < low) | (f > high)].any()
    assert edges[0] == pytest.approx(100) and edges[-1] == pytest.approx(3800)
    assert 2595 * np.log10(1 + edges[5] / 700) == pytest.approx(2595 * np.log10(1 + edges[4:7:2] / 700).mean())


def test_tones_differ_in_all_but_their_class() -> None:
    sounds = [tone(np.random.default_rng(seed), TONES[1], 0.0) for seed in range(200)]
    rates, lengths = [rate for _, rate in sounds], [len(sound) / rate for sound, rate in sounds]
    begins = [np.flatnonzero(sound)[0] / len(sound) for sound, _ in sounds]
    volumes = [np.abs(sound).max() for sound, _ in sounds]
    assert set(rates) == set(RATES) and np.ptp(lengths) > 1 and np.ptp(begins) > 0.4
    assert min(volumes) < 0.15 and max(volumes) > 0.9
    for sound, rate in sounds[:50]:
        spectrum = np.abs(np.fft.rfft(sound, 1 << 16))
        assert abs(np.fft.rfftfreq(1 << 16, 1 / rate)[spectrum.argmax()] / TONES[1] - 1) < 0.06
    noisy, _ = tone(np.random.default_rng(0), TONES[1], 2.0)
    clean, _ = tone(np.random.default_rng(0), TONES[1], 0.0)
    assert noisy.std() > 1.5 * np.abs(clean).max()


def test_tones_are_told_apart_and_runs_repeat(tmp_path: Path) -> None:
    words = ["experiment=substrate/tones", "domain.examples=150", "domain.tests=20", "domain.batch=8"]
    for name in "ab":
        assert main([*words, f"run_dir={tmp_path / name}"]) == 0
    assert (tmp_path / "a" / "results.csv").read_bytes() == (tmp_path / "b" / "results.csv").read_bytes()
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "a" / "results.csv").open())}
    assert float(rows["graph"]["noise 1"]) > 0.8 > 0.6 > float(rows["majority class"]["noise 1"])
    assert (tmp_path / "a" / "by_noise.png").is_file()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Three speakers say ten digits, each two tones one after the other; the third speaker has another voice."""
    random = np.random.default_rng(0)
    sounds, columns = [], []
    for speaker, voice in enumerate((1.0, 1.05, 1.8)):
        for digit in range(10):
            for recording in (0, 1, 10, 20, 30, 46):
                t = np.arange(random.integers(2000, 4000)) / 8000
                hz = voice * np.where(t < t[-1] / 2, 300 + 90 * digit, 1400 - 90 * digit)
                sounds.append(3000 * np.sin(2 * np.pi * hz * t) + 300 * random.standard_normal(len(t)))
                columns.append((digit, speaker, recording, recording < 2))
    label, speaker, recording, is_test = (np.array(c) for c in zip(*columns, strict=True))
    np.savez(
        tmp_path / "fsdd.npz",
        audio=np.concatenate(sounds).astype(np.int16),
        offsets=np.cumsum([0, *map(len, sounds)]),
        label=label.astype(np.uint8),
        speaker=speaker.astype(np.uint8),
        speaker_names=np.array(["ann", "bob", "cat"]),
        recording=recording.astype(np.uint8),
        is_test=is_test,
        sample_rate=np.int32(8000),
    )
    return tmp_path / "fsdd.npz"


def test_digits_of_known_and_of_new_speakers(recordings: Path) -> None:
    out = recordings.parent / "run"
    words = ["experiment=substrate/digits", f"domain.path={recordings}", "domain.batch=8", f"run_dir={out}"]
    assert main(words) == 0
    rows = {row["method"]: row for row in csv.DictReader((out / "results.csv").open())}
    graph = rows["graph"]
    assert float(graph["test"]) > 0.85 > 0.8 > float(graph["new speaker"]) > float(graph["worst speaker"])
    facts = json.loads((out / "summary.json").read_text())["facts"]
    each = [facts[f"{name} as a new speaker"] for name in ("ann", "bob", "cat")]
    assert np.mean(each) == pytest.approx(float(graph["new speaker"])) and min(each) == each[2]
    assert facts["training examples"] == 120 and facts["test: examples"] == 60
    assert float(rows["majority class"]["test"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, "there is no such file"),
        ({"label": None}, "has no array 'label'"),
        ({"offsets": np.arange(3)}, "'offsets' has shape (3,), not (181,)"),
        ("text", "is no .npz file"),
    ],
)
def test_files_that_are_not_recordings(
    recordings: Path, change: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if change is None:
        recordings.unlink()
    elif isinstance(change, str):
        recordings.write_text(change)
    else:
        assert isinstance(change, dict)
        arrays = {**np.load(recordings), **change}
        np.savez(recordings, **{k: v for k, v in arrays.items() if v is not None})
    assert main(["experiment=substrate/digits", f"domain.path={recordings}", f"run_dir={recordings.parent / 'r'}"]) == 1
    told = capsys.readouterr().err.strip()
    assert says in told and len(told.splitlines()) == 1

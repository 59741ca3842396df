from __future__ import annotations

import pytest

from bouton.errors import KernelError
from bouton.ops import backends


@pytest.fixture(autouse=True)
def two_ops(monkeypatch):
    monkeypatch.setattr(backends, "_backends", {})
    backends.register_backend("scan", "torch")
    backends.register_backend("scan", "rust", devices=("cpu",))
    backends.register_backend("scan", "triton", devices=("cuda",), why_not=lambda: "no GPU here")
    backends.register_backend("wiggle", "torch")
    backends.configure()  # forget what earlier tests of the process chose
    yield
    backends.configure()


def test_auto_takes_the_fastest_that_can_run():
    assert backends.select("scan", "cpu") == "rust"
    assert backends.select("wiggle", "cpu") == "torch"
    assert backends.select("scan", "cpu", refused={"rust": "float64"}) == "torch"
    assert backends.select("scan", "cuda") == "torch"
    (cpu, cuda, wiggle) = backends.report()
    assert (cpu.backend, cpu.refused["rust"]) == ("torch", "float64")
    assert cuda.refused == {"rust": "does not run on cuda", "triton": "no GPU here"}
    assert wiggle.refused["triton"] == "not written for this op"


def test_explicit_choice_is_met_or_refused():
    assert backends.select("scan", "cpu", "torch") == "torch"
    with pytest.raises(KernelError, match="'triton': does not run on cpu"):
        backends.select("scan", "cpu", "triton")
    with pytest.raises(KernelError, match="backend = 'rusty' is unknown; did you mean 'rust'"):
        backends.select("scan", "cpu", "rusty")
    backends.configure("auto", scan="rust")
    with pytest.raises(KernelError, match="float64"):
        backends.select("scan", "cpu", refused={"rust": "float64"})


def test_what_runs_by_name_alone_is_passed_over_with_its_reason():
    backends.register_backend("scan", "triton", devices=("cuda",), by_name=lambda device: f"untimed on {device}")
    assert backends.select("scan", "cuda") == "torch"
    (choice,) = backends.report()
    assert choice.refused["triton"] == "untimed on cuda"
    assert backends.select("scan", "cuda", "triton") == "triton"
    backends.configure("auto", scan="triton")
    assert backends.select("scan", "cuda") == "triton"
    with pytest.raises(KernelError, match="'triton': float64"):
        backends.select("scan", "cuda", refused={"triton": "float64"})


def test_global_choice_binds_the_ops_that_have_it():
    backends.configure("rust")
    assert backends.select("scan", "cpu") == "rust"
    assert backends.select("wiggle", "cpu") == "torch"  # no Rust execution was ever written for it
    with pytest.raises(KernelError, match="does not run on cuda"):
        backends.select("scan", "cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"backend": "tritn"}, "did you mean 'triton'"), ({"scna": "torch"}, "did you mean 'scan'")],
)
def test_unknown_names_get_the_nearest(options, message):
    with pytest.raises(KernelError, match=message):
        backends.configure(**options)

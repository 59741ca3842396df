"""The gate lets nothing wrong pass, the clock is fair, the figures are what they are called."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bouton.errors import KernelError
from bouton.ops import backends
from bouton.ops.benchmarks import Settings, cases, gate, measure_all, memory, ops, report
from bouton.ops.benchmarks.case import BOTH, FORWARD, Case, Execution, Inputs, Work, peer
from bouton.ops.benchmarks.machine import Limit, limit
from bouton.ops.benchmarks.timing import Sample, prepare, ratio, time_interleaved

QUICK = Settings(rounds=2, shapes="small", memory=False)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_inputs(dtype: torch.dtype) -> Inputs:
    return {"x": torch.linspace(-2, 3, 40).to(dtype), "a": torch.tensor([1.5])}


class Wrong(torch.autograd.Function):
    """A square whose gradient is off by the factor that it is given."""

    @staticmethod
    def forward(ctx, x, factor):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x.square()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 2 * x * grad * ctx.factor, None


def square(factor: float = 1.0, shift: float = 0.0, when_recorded: bool = True) -> Execution:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        late = shift if torch.is_grad_enabled() == when_recorded else 0.0
        return (x["a"] * Wrong.apply(x["x"], factor) + late,)

    return Execution("mine", lambda device, dtype: run, ours=True)


def toy(*executions: Execution) -> Case:
    return Case(
        op="toy",
        name="a square",
        dims={"T": 40},
        inputs=make_inputs,
        trained=("x",),
        executions=(*executions, peer("other", lambda x: x["x"] + 1)),
        outputs=("y",),
        exact=lambda x: (x["a"] * x["x"].square(),),
        problems=(make_inputs,),
        out_like="x",
        limits={"*": 1e-5},
        gate="",
        work={FORWARD: Work(flops=80.0)},
    )


@pytest.mark.parametrize(
    ("mine", "quantity"),
    [
        (square(shift=1e-3), "y"),
        (square(shift=1e-3, when_recorded=False), "y"),
        (square(shift=math.nan), "y"),
        (square(factor=1.001), "dx"),
    ],
    ids=["output", "output without gradients", "NaN", "gradient"],
)
def test_a_wrong_kernel_is_reported_and_not_timed(mine: Execution, quantity: str) -> None:
    (result,) = measure_all([toy(mine)], QUICK)
    assert list(result["wrong"]["mine"]) == [quantity]
    assert all(list(figures) == ["other"] for figures in result["passes"].values())
    assert "mine is WRONG, not timed" in report.table([result])


def test_what_has_no_gradients_is_checked_by_its_outputs() -> None:
    def rounded(shift: float) -> Execution:
        run = lambda x: (x["a"] * x["x"].detach().square() + shift,)  # noqa: E731
        return Execution("mine", lambda device, dtype: run, ours=True)

    for shift, quantities in ((0.0, []), (1e-3, ["y"]), (math.nan, ["y"])):
        case = dataclasses.replace(toy(rounded(shift)), trained=(), passes=(FORWARD,))
        (result,) = measure_all([case], QUICK)
        assert list(result["wrong"].get("mine", {})) == quantities
        assert ("mine" in result["passes"][FORWARD]) == (not quantities)


def test_a_kernel_that_raises_in_the_gate_is_wrong_and_one_that_cannot_be_made_is_left_out() -> None:
    def crash(x: Inputs) -> tuple[Tensor, ...]:
        raise RuntimeError("no such thing\nmore lines")

    def refuse(device: str, dtype: torch.dtype) -> None:
        raise RuntimeError("needs another machine")

    broken = Execution("broken", lambda device, dtype: crash, ours=True)
    absent = Execution("absent", refuse, ours=True)  # type: ignore[arg-type]
    (result,) = measure_all([toy(broken, absent, square())], QUICK)
    assert list(result["wrong"]) == ["broken"] and "no such thing" in next(iter(result["wrong"]["broken"]))
    assert result["skipped"] == {"absent": "needs another machine"}
    assert set(result["passes"][BOTH]) == {"mine", "other"}


def test_a_right_kernel_has_figures_against_its_peer() -> None:
    (result,) = measure_all([toy(square())], QUICK)
    assert not result["wrong"] and max(result["errors"]["mine"].values()) < 1e-5
    assert set(result["errors"]["mine"]) == {"y", "dx", "da"}
    figure = result["passes"][FORWARD]["mine"]
    assert figure["flops_per_second"] == pytest.approx(80.0 / (1e-3 * figure["wall_ms"]))
    other = result["passes"][FORWARD]["other"]["wall_ms"]
    assert figure["ratios"]["other"]["wall"]["ratio"] == pytest.approx(figure["wall_ms"] / other)
    assert report.baseline(result) == "other"


def test_a_case_without_passes_is_checked_alone() -> None:
    (right, wrong) = measure_all(
        [dataclasses.replace(toy(square(factor)), passes=(), gate=str(factor)) for factor in (1.0, 1.001)], QUICK
    )
    assert right["passes"] == {} and "mine is right: largest relative error" in report.table([right])
    text = report.table([wrong])
    assert "mine is WRONG" in text and "is right" not in text


def test_inputs_of_bools_have_no_gradient_and_a_gradient_of_zero_must_be_one() -> None:
    def masked(leak: float) -> Execution:
        def run(x: Inputs) -> tuple[Tensor, ...]:
            return (torch.where(x["mask"], x["x"].square(), 1.0) + leak * x["idle"],)

        return Execution("mine", lambda device, dtype: run, ours=True)

    def inputs(dtype: torch.dtype) -> Inputs:
        x = torch.linspace(-2, 3, 40)
        return {"x": x.to(dtype), "mask": x > 0, "idle": torch.zeros(40)}

    for leak in (0.0, 1e-9):
        mine = masked(leak)
        case = dataclasses.replace(
            toy(mine), inputs=inputs, problems=(inputs,), exact=masked(0.0).make("cpu", torch.float64), gate=str(leak)
        )
        found = gate.errors(case, mine.make("cpu", torch.float32), "cpu", torch.float32)
        assert set(found) == {"y", "dx", "didle"}
        assert list(gate.wrong(case, found, torch.float32)) == (["didle"] if leak else [])


def test_traffic_is_less_in_a_smaller_dtype() -> None:
    work = Work(flops=3.0, bytes=8.0)
    assert work.of(torch.float32) == work and work.of(torch.bfloat16) == Work(flops=3.0, bytes=4.0)


def test_the_passes_asked_for_are_measured() -> None:
    (result,) = measure_all([toy(square())], dataclasses.replace(QUICK, passes=(FORWARD,)))
    assert list(result["passes"]) == [FORWARD]


def test_a_backward_pass_that_a_peer_lacks_leaves_its_forward_pass() -> None:
    half = dataclasses.replace(square(), name="half", ours=False)

    def run(x: Inputs) -> tuple[Tensor, ...]:
        if x["x"].requires_grad:
            raise NotImplementedError("no backward")
        return (x["x"],)

    half = dataclasses.replace(half, make=lambda device, dtype: run)
    (result,) = measure_all([toy(half)], QUICK)
    assert "half" in result["passes"][FORWARD] and "half" not in result["passes"][BOTH]
    assert "no backward" in result["skipped"][f"half {BOTH}"]


def test_ratios_are_of_medians_with_quartiles_of_the_pairs() -> None:
    ours = Sample([2.0, 4.0, 6.0, math.nan], [1.0, 1.0, 1.0, math.nan])
    theirs = Sample([1.0, 4.0, 2.0, 9.0], [2.0, 2.0, 2.0, 2.0])
    found = ratio(ours, theirs)
    assert found["wall"]["ratio"] == 2.0 and found["wall"]["pairs"] == 3 and found["wall"]["paired_median"] == 2.0
    low, _, high = statistics.quantiles([2.0, 1.0, 3.0], n=4)
    assert found["wall"]["quartiles"] == [low, high]
    assert found["cpu"]["ratio"] == 0.5
    assert ratio(Sample([1.0], [math.nan]), Sample([1.0], [math.nan])).keys() == {"wall"}


def test_executions_run_in_turn_and_slow_ones_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    cost = {"quick": 0.01, "slow": 1.0}
    monkeypatch.setattr(
        "bouton.ops.benchmarks.timing._cpu_clock", lambda call, repeats: (call(), (cost[order[-1]],) * 2)[1]
    )
    calls = {name: (lambda name=name: order.append(name)) for name in cost}
    samples = time_interleaved(calls, 20, "cpu")
    ran = {name: sum(x == x for x in sample.wall) for name, sample in samples.items()}
    assert ran == {"quick": 20, "slow": 5}
    measured = order[4:]  # each one is called twice before
    assert measured[:5] == ["quick", "slow", "quick", "quick", "quick"]
    assert samples["slow"].median("wall") == 1.0


def test_an_execution_cannot_change_the_inputs_of_another() -> None:
    def carry(x: Inputs) -> tuple[Tensor, ...]:
        x["x"] = x["x"] + 1
        return (x["x"],)

    inputs = make_inputs(torch.float32)
    prepare(toy(square()), carry, inputs, FORWARD)()
    assert torch.equal(inputs["x"], make_inputs(torch.float32)["x"])


def test_the_limit_is_the_slower_of_arithmetic_and_traffic() -> None:
    machine = Limit(flops=10.0, bandwidth=2.0)
    assert machine.seconds(Work(flops=100.0, bytes=2.0)) == 10.0
    assert machine.seconds(Work(flops=10.0, bytes=20.0)) == 10.0


def test_every_registered_op_of_the_platform_has_cases() -> None:
    assert set(ops()) >= {"fatigue_attention", "fast_weights", "oscillate", "lateral_inhibition", "scan"}
    for device in ("cpu", "cuda"):
        for shapes in ("issue", "sweep", "all", "small"):
            found = [(case.op, case.name) for case in cases(None, device, shapes)]
            assert len(found) == len(set(found)), "memory is measured in a process that finds the case by its name"
    assert set(ops()) - {"substrate"} <= set(backends.ops()), "the graph is an engine, not an op with backends"


def test_the_issue_names_these_cases() -> None:
    dims = [tuple(case.dims.values()) for case in cases("fatigue_attention", "cpu", "issue")]
    assert dims[:3] == [(4, 4, 512, 64), (1, 8, 2048, 64), (1, 4, 2048, 128)]
    assert any("cached" in case.dims for case in cases("fatigue_attention", "cpu", "issue"))
    lengths = [case.dims["T"] for case in cases("fatigue_attention", "cpu", "sweep")]
    assert lengths == sorted(lengths) and lengths[0] == 128 and lengths[-1] == 8192


def test_unknown_words_are_refused() -> None:
    with pytest.raises(KernelError, match="op = 'fatigue' has no benchmark: did you mean 'fatigue_attention'"):
        cases("fatigue")
    with pytest.raises(KernelError, match="shapes = 'big' is unknown"):
        cases(None, "cpu", "big")


@pytest.mark.parametrize("op", ops())
def test_all_executions_here_are_right_at_the_issues_sizes(op: str) -> None:
    """The gate of the real cases, without timing: bfloat16 too."""
    checked = set()
    for case in cases(op, "cpu", "all"):
        for execution in case.executions:
            key = (case.gate, execution.name)
            if not execution.ours or key in checked or execution.name == "naive":
                continue
            checked.add(key)
            try:
                run = execution.make("cpu", torch.float32)
            except RuntimeError:
                continue  # not on this machine
            assert not gate.wrong(case, gate.errors(case, run, "cpu", torch.float32), torch.float32)
    assert checked


def test_bfloat16_passes_its_wider_gate() -> None:
    (case, *_) = cases("fatigue_attention", "cpu", "small")
    run = next(e for e in case.executions if e.name == "torch").make("cpu", torch.bfloat16)
    found = gate.errors(case, run, "cpu", torch.bfloat16)
    assert not gate.wrong(case, found, torch.bfloat16) and found["out"] > 1e-6


def test_peers_of_recurrent_neurons_run_in_bfloat16() -> None:
    case = next(c for c in cases("lif", "cpu", "small") if "w_rec" in c.trained)
    (result,) = measure_all([case], dataclasses.replace(QUICK, dtype=torch.bfloat16))
    assert all({"torch loop unbind", "torch loop x[t]"} <= set(result["passes"][step]) for step in (FORWARD, BOTH))


@pytest.mark.slow
def test_memory_of_one_pass_is_its_own() -> None:
    """GELU of x needs one more x; its backward pass one more again."""
    case = next(c for c in cases("oscillate", "cpu", "issue"))
    size = 4 * case.dims["rows"] * case.dims["width"]
    if not os.access("/proc/self/clear_refs", os.W_OK):
        with pytest.raises(RuntimeError, match="no high-water mark"):
            memory.on_cpu(case, "issue", "gelu", FORWARD, torch.float32, 1)
        return
    forward = memory.on_cpu(case, "issue", "gelu", FORWARD, torch.float32, 1)
    assert 0.9 * size < forward < 1.5 * size


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no high-water mark on this system")
def test_memory_that_cannot_be_told_says_why() -> None:
    (case, *_) = cases("fatigue_attention", "cpu", "issue")
    with pytest.raises(RuntimeError, match="compiler works in the same process"):
        memory.on_cpu(case, "issue", "flex", FORWARD, torch.float32, 1)


@pytest.mark.parametrize(("units", "source"), [(1e18, "multiply-adds in registers"), (1.0, "matrix product (float32)")])
def test_the_limit_is_the_better_of_the_vector_units_and_the_matrix_product(monkeypatch, units, source) -> None:
    kernels = SimpleNamespace(fma_peak=lambda threads: units, instruction_set=lambda: "some")
    monkeypatch.setitem(sys.modules, "bouton_kernels", kernels)
    found = limit("cpu", torch.float32)
    assert source in found.source and found.flops >= units and found.bandwidth > 0


def test_the_limit_does_not_need_the_rust_kernels(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bouton_kernels", SimpleNamespace())  # a wheel from before fma_peak
    assert limit("cpu", torch.float32).source == "torch's matrix product (float32)"


def test_the_vector_units_are_measured() -> None:
    kernels = pytest.importorskip("bouton_kernels")
    if not hasattr(kernels, "fma_peak"):
        pytest.skip("a wheel from before fma_peak")
    assert kernels.fma_peak(1) > 1e9

import json
import runpy
from pathlib import Path

import pytest

from bouton.apps import bench, bench_plot
from bouton.cli.main import main
from bouton.errors import BoutonError
from bouton.ops.benchmarks import Case, Execution

QUICK = ["shapes=small", "rounds=2", "threads=1", "memory=no"]


def test_one_op_with_figures_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "ratios.png"
    assert main(["bench", "fatigue_attention", *QUICK, f"json={figures}", f"plot={plot}"]) == 0
    out = capsys.readouterr().out
    assert "sdpa" in out and "torch" in out and "threads of" in out
    assert "flex: not run: FlexAttention is compiled" in out, "a peer that is left out is named"
    recorded = json.loads(figures.read_text())
    assert recorded["machine"]["cpu"] and recorded["machine"]["torch"] and recorded["machine"]["threads"] == 1
    assert recorded["machine"]["peak_flops"] > 0 and recorded["machine"]["peak_source"] in " ".join(out.split())
    first = recorded["results"][0]
    assert first["passes"]["forward+backward"]["torch"]["ratios"]["sdpa"]["wall"]["ratio"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_kernel_makes_the_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = bench.cases

    def sabotage(*words: str) -> list[Case]:
        case = real(*words)[0]
        wrong = Execution("off", lambda device, dtype: lambda x: (x["x"] * 1.001, x["x"][:, :, -4:]), ours=True)
        object.__setattr__(case, "executions", (wrong, *case.executions))
        return [case]

    monkeypatch.setattr(bench, "cases", sabotage)
    assert main(["bench", "lateral_inhibition", *QUICK]) == 1
    assert "off is WRONG, not timed: relative error of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fatigue", "op = 'fatigue' has no benchmark: did you mean 'fatigue_attention'?"),
        ("shapes=smal", "shapes = 'smal' is not valid: did you mean 'small'?"),
        ("device=tpu", "device = 'tpu' is not valid"),
        ("rounds=0", "rounds = 0 is not valid: it must be at least 1"),
        ("passes=back", "passes = 'back' is not valid"),
        ("dtype=int8", "dtype = 'int8' is not valid"),
        ("memory=maybe", "memory = 'maybe' is not valid"),
        ("json=/no/such/folder/x.json", "there is no folder /no/such/folder"),
    ],
)
def test_what_cannot_work_is_one_line(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", word]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(found: object, settings: object, notify: object) -> None:
        notify(1, 4, "timing")  # type: ignore[operator]
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure_all", stop)
    assert main(["bench", "oscillate", *QUICK]) == 130
    assert capsys.readouterr().err == "interrupted after 1 of 4 cases: nothing was written\n"


def test_lines_of_the_plot_join_the_same_execution_over_lengths() -> None:
    def result(length: int, ratio: float) -> dict[str, object]:
        wall = {"sdpa": {"wall": {"ratio": ratio}}}
        figures = {"rust": {"ratios": wall}, "sdpa": {"ratios": {}}}
        return {
            "op": "fatigue_attention",
            "case": f"min (1, 4, {length}, 64)",
            "dims": {"B": 1, "H": 4, "T": length, "D": 64},
            "peers": ["sdpa"],
            "passes": {"forward": figures},
        }

    points = bench_plot.collect([result(512, 0.9), result(128, 1.2)])
    assert points == {("fatigue_attention, forward, to sdpa", "rust min B=1 H=4 D=64"): [(512, 0.9), (128, 1.2)]}


def test_the_training_step_script_steps_every_arm_on_the_same_batches() -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "training_step.py"))
    words = ["model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "data.seq_len=24", "data.batch_size=2"]
    found = script["measure"](2, words)
    assert list(found["arms"]) == ["none", "presyn", "hebb", "presyn+hebb"] and found["batch"] == [2, 24]
    arms = found["arms"]
    assert arms["none"]["ratio"] == {} and arms["presyn"]["ratio"]["wall"]["pairs"] == 2
    assert arms["presyn"]["parameters"] == arms["none"]["parameters"] < arms["hebb"]["parameters"]
    assert len({arm["loss"][1] for arm in arms.values()}) == 4, "every mechanism changes what is learned"


def test_the_training_step_script_adds_arms_to_a_table_and_leaves_the_others(tmp_path: Path) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "training_step.py"))
    old = {"ratio": {}, "parameters": 1}
    path = tmp_path / "table.json"
    table = {"arms": {"none": old, "presyn": old}, "overrides": ["a=1"], "machine": {"cpu": "another"}, "rounds": 3}
    path.write_text(json.dumps(table))
    circumstances = {"rounds": 2, "kernels": {"lif": "torch"}, "machine": {"cpu": "this"}}
    result = {"arms": {"none": {"ratio": {}}, "lif": {"parameters": 2}}, "overrides": ["a=1"], **circumstances}
    script["add"](result, path)
    assert json.loads(path.read_text()) == {
        **table,
        "arms": {**table["arms"], "lif": {"parameters": 2, **circumstances}},
    }
    with pytest.raises(BoutonError, match=r"table\.json: lif is there already"):
        script["add"](result, path)
    for change in ({"overrides": ["a=2"]}, {"arms": {"presyn": old, "hebb": old}}):
        with pytest.raises(BoutonError, match="its first arm is none and its words are a=1"):
            script["add"]({**result, **change}, path)

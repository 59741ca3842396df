import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

import bouton
from bouton.data.tokenizers import ByteTokenizer
from bouton.errors import BoutonError, CheckpointError, ConfigError, DataError
from bouton.generation import Sampling, generate
from bouton.models.build import build
from bouton.runs import pick_device

MODEL: dict[str, Any] = {"vocab_size": 257, "num_layers": 1, "hidden_size": 16, "num_heads": 2, "init_std": 0.3}


def write_run(folder: Path, seed: int = 0, **model: Any) -> Path:
    """A run folder as training leaves it, with random weights; ``last`` has those of another seed."""
    config = {"seed": seed, "model": {**MODEL, **model}, "mechanism": {"sparse": {}}, "kernels": {"backend": "torch"}}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for name, offset in (("best", 0), ("last", 1)):
        tensors = build({**config, "seed": seed + offset}).state_dict()
        checkpoint = {"state_dict": {f"body.{key}": value for key, value in tensors.items()}, "bouton": {"format": 1}}
        checkpoint["state_dict"]["validation_metrics.total"] = torch.zeros(1)
        torch.save(checkpoint, folder / "checkpoints" / f"{name}.ckpt")
    ByteTokenizer().save(folder / "tokenizer")
    pd.DataFrame({"step": [10, 20], "train_loss": [5.0, 4.0]}).to_csv(folder / "metrics.csv", index=False)
    (folder / "summary.json").write_text(json.dumps({"final": {"val_loss": 4.5}}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_everything_of_a_run_folder_is_there(folder: Path) -> None:
    run = bouton.load(folder)
    assert run.config.model.num_layers == 1
    assert run.tokenizer.vocab_size == 257
    assert run.metrics["train_loss"].tolist() == [5.0, 4.0]
    assert run.vitals.empty
    assert run.summary["final"]["val_loss"] == 4.5
    assert list(run.model.mechanisms) == ["sparse"]
    assert run.model.training is False
    assert run.model is run.model


def test_the_model_has_the_weights_of_the_checkpoint(folder: Path) -> None:
    for name, seed in (("best", 0), ("last", 1)):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        expected = build({**config, "seed": seed}).state_dict()
        for run in (bouton.load(folder, name), bouton.load(folder, folder / "checkpoints" / f"{name}.ckpt")):
            found = run.model.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in found)


def test_opening_a_run_reads_nothing_yet(folder: Path) -> None:
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"garbage")
    assert bouton.load(folder).config.seed == 0


def test_generate_takes_one_prompt_or_several(folder: Path) -> None:
    run = bouton.load(folder)
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    one = run.generate("ab", **options)
    assert isinstance(one, str)
    several = run.generate(["ab", "c"], **options)
    assert isinstance(several, list) and len(several) == 2 and several[0] == one
    assert len(run.generate("ab", num_samples=3, **options)) == 3
    assert len(run.generate(["ab", "c"], num_samples=2, **options)) == 4
    expected = generate(run.model, run.tokenizer, ["ab"], max_new_tokens=6, seed=3, sampling=Sampling(temperature=1.0))
    assert one == expected[0].text
    stop = one[2]
    assert run.generate("ab", stop=stop, **options) == one.split(stop)[0]


def test_an_unknown_option_of_generate_names_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'temprature'.*did you mean 'temperature'"):
        bouton.load(folder).generate("a", temprature=1.0)
    with pytest.raises(ConfigError, match="top_p"):
        bouton.load(folder).generate("a", top_p=2.0)


def one_line(error: BaseException) -> str:
    assert isinstance(error, BoutonError) and "\n" not in str(error)
    return str(error)


def test_a_missing_folder_names_the_newest_run_nearby(folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        bouton.load(folder.parent / "rum")
    assert "rum" in one_line(caught.value) and str(folder) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"not a run folder.*config\.yaml"):
        bouton.load(folder / "checkpoints")


def test_a_missing_checkpoint_names_those_that_there_are(folder: Path) -> None:
    (folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint = best.*this run has last") as caught:
        _ = bouton.load(folder).model
    one_line(caught.value)
    with pytest.raises(CheckpointError, match="step-7"):
        _ = bouton.load(folder, "step-7").model


@pytest.mark.parametrize("damage", ["truncate", "garbage", "other"])
def test_a_corrupt_checkpoint_is_one_line(folder: Path, damage: str) -> None:
    path = folder / "checkpoints" / "best.ckpt"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "garbage":
        path.write_bytes(b"not a checkpoint")
    else:
        torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError) as caught:
        _ = bouton.load(folder).model
    assert str(path) in one_line(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"num_layers": 2}, "lacks"), ({"tied_embeddings": False}, "head"), ({"hidden_size": 8}, "shape")],
)
def test_a_checkpoint_of_another_model_is_one_line(folder: Path, change: dict[str, Any], said: str) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"].update(change)
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointError, match=said) as caught:
        _ = bouton.load(folder).model
    assert "does not fit" in one_line(caught.value)


def test_a_checkpoint_with_more_than_the_body_is_refused(folder: Path) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["num_layers"] = 2
    deeper = build(config).state_dict()
    checkpoint = {"state_dict": {f"body.{k}": v for k, v in deeper.items()}, "bouton": {"format": 1}}
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"layers\.1.*besides"):
        _ = bouton.load(folder).model


def test_unreadable_files_of_a_run_are_one_line(folder: Path) -> None:
    (folder / "summary.json").write_text("{")
    (folder / "metrics.csv").unlink()
    run = bouton.load(folder)
    with pytest.raises(DataError, match=r"summary\.json cannot be read"):
        _ = run.summary
    with pytest.raises(DataError, match=r"metrics\.csv does not exist"):
        _ = run.metrics
    (folder / "summary.json").unlink()
    with pytest.raises(DataError, match="has not finished"):
        _ = run.summary
    (folder / "config.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        _ = bouton.load(folder).config
    one_line(caught.value)
    (folder / "config.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match="no 'model'"):
        _ = bouton.load(folder).config


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device(None).type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="device = toaster"):
        pick_device("toaster")


@pytest.mark.slow
def test_what_training_writes_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    cfg = bouton.compose(
        "mechanism=hebb+presyn",
        "model=tiny",
        "model.hidden_size=32",
        "data=text",
        f"data.path={tmp_path / 'text.txt'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.tokenizer.kind=bytes",
        "data.seq_len=32",
        "data.batch_size=2",
        "data.val_tokens=256",
        "trainer.max_steps=3",
        "trainer.accelerator=cpu",
        "callbacks.progress.refresh_every=null",
        f"run_dir={tmp_path / 'run'}",
    )
    from bouton.training import train

    loss = train(cfg)
    run = bouton.load(tmp_path / "run", "last", device="cpu")
    assert run.summary["final"]["val_loss"] == loss
    assert "train_loss" in run.metrics.columns or len(run.metrics) > 0
    assert not run.vitals.empty
    assert len(run.generate("the cat", max_new_tokens=5, temperature=0.0)) <= 5

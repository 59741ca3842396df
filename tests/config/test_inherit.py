from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import bouton
from bouton.config.inherit import inherit, run_folder
from bouton.data.tokenizers import ByteTokenizer
from bouton.errors import ConfigError


@pytest.fixture(params=["run", "a + b, 'c' [d]"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as a run of another shape than the defaults leaves it."""
    folder = tmp_path / request.param
    cfg = bouton.compose("model=tiny", "model.vocab_size=257", "mechanism=hebb+presyn", "mechanism.presyn.tau_c=3.0")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    OmegaConf.save(cfg, folder / "config.yaml")
    ByteTokenizer().save(folder / "tokenizer")
    return folder


def quoted(path: Path) -> str:
    return "init_from='" + str(path).replace("'", "\\'") + "'"


def test_model_mechanisms_and_tokenizer_are_those_of_the_run(run: Path) -> None:
    for path in (run, run / "checkpoints" / "last.ckpt"):
        cfg = bouton.compose(quoted(path), "data=chat", "data.path=x")
        saved = OmegaConf.load(run / "config.yaml")
        assert cfg.model == saved.model and cfg.mechanism == saved.mechanism
        assert cfg.data.tokenizer == {"kind": "saved", "path": str(run / "tokenizer")}
        assert cfg.init_from == str(path)


def test_words_and_experiments_override_single_fields(run: Path) -> None:
    experiment = run / "mine.yaml"
    experiment.write_text("# @package _global_\nmodel:\n  dropout: 0.25\n")
    words = [quoted(run), "experiment='" + str(experiment).replace("'", "\\'") + "'"]
    cfg = bouton.compose(*words, "model.qk_norm=false", "mechanism.presyn.tau_c=5.0")
    assert (cfg.model.dropout, cfg.model.qk_norm, cfg.model.hidden_size) == (0.25, False, 64)
    assert cfg.mechanism.presyn.tau_c == 5.0 and "hebb" in cfg.mechanism
    cfg = bouton.compose(quoted(run), "mechanism=none", "model=small")
    assert not cfg.mechanism and cfg.model.hidden_size != 64


@pytest.mark.parametrize("experiment", ["chat_sft", "wiggle/sft"])
def test_shipped_experiments_fine_tune(run: Path, experiment: str) -> None:
    cfg = bouton.compose(f"experiment={experiment}", quoted(run))
    assert cfg.data.name in ("chat", "smoltalk") and cfg.data.tokenizer.kind == "saved"
    assert cfg.model.hidden_size == 64 and cfg.optimizer.lr <= 3e-4


def test_without_it_nothing_changes() -> None:
    assert inherit(["data=text", "init_from=null"]) == ["data=text", "init_from=null"]
    assert bouton.compose().init_from is None


def test_data_without_text_keep_their_own(run: Path) -> None:
    assert "tokenizer" not in bouton.compose(quoted(run), "data=mqar").data


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"init_from = .*does not exist\)"):
        bouton.compose(f"init_from={tmp_path / 'nothing'}")
    with pytest.raises(ConfigError, match=r"has no config\.yaml\)"):
        run_folder(str(tmp_path))
    with pytest.raises(ConfigError, match=r"a grid cannot go over runs"):
        inherit(["-m", "init_from=a,b"])
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"tokenizer does not exist"):
        bouton.compose(f"init_from={tmp_path}", "model=tiny", "mechanism=none")

"""`mechanism=a+b` in every notation, and what is said about a name that is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import bouton
from bouton.config import canonical_name
from bouton.config.composition import CompositionSearchPath, canonical_terms, check_lists
from bouton.errors import ConfigError
from bouton.mechanisms import Mechanism, Params, real, registry


def test_any_order_and_notation_gives_one_config() -> None:
    texts = {
        OmegaConf.to_yaml(bouton.compose(f"mechanism={words}"))
        for words in ("presyn+hebb", "hebb+presyn", "[presyn,hebb]", "[hebb,presyn]")
    }
    assert len(texts) == 1
    assert list(bouton.compose("mechanism=presyn+hebb").mechanism) == ["hebb", "presyn"]


def test_three_terms_keep_the_values_of_each() -> None:
    together = bouton.compose("mechanism=sparse+presyn+hebb").mechanism
    assert set(together) == {"sparse", "presyn", "hebb"}
    for name in together:
        assert together[name] == bouton.compose(f"mechanism={name}").mechanism[name]


@pytest.mark.parametrize("words", ["mechanism=none", "mechanism=[]", "mechanism=[none]", "seed=0"])
def test_none_is_empty(words: str) -> None:
    cfg = bouton.compose(words)
    assert cfg.mechanism == {}
    assert canonical_name(cfg) == "none"


def test_parameters_of_a_term() -> None:
    cfg = bouton.compose("mechanism=presyn+hebb", "mechanism.presyn.tau_c=9")
    assert cfg.mechanism.presyn.tau_c == 9
    assert canonical_name(cfg) == "hebb+presyn"


def test_loggers_add_up_too() -> None:
    cfg = bouton.compose("logger=csv+tensorboard")
    assert "tensorboard" in cfg.logger
    assert bouton.compose("logger=none").get("logger") in (None, {})


def test_experiment_file_overrides_with_a_sum(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "pair.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /mechanism: presyn+hebb\nseed: 7\n"
        "mechanism:\n  presyn:\n    tau_c: 3.0\n"
    )
    search = f"hydra.searchpath=[file://{tmp_path}]"
    cfg = bouton.compose("experiment=pair", search)
    assert (canonical_name(cfg), cfg.seed, cfg.mechanism.presyn.tau_c) == ("hebb+presyn", 7, 3.0)
    assert bouton.compose("experiment=pair", "mechanism.presyn.tau_c=4", search).mechanism.presyn.tau_c == 4


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("presyn+presyn", "write presyn"),
        ("presyn+hebb+presyn", "write presyn+hebb"),
        ("presyn+", "empty term"),
        ("none+presyn", "write presyn"),
        ("[presyn,presyn]", "write presyn"),
        ("[presyn+hebb,hebb]", "'hebb' twice"),
    ],
)
def test_malformed_sums(words: str, advice: str) -> None:
    with pytest.raises(ConfigError, match="mechanism=") as caught:
        bouton.compose(f"mechanism={words}")
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["mechanism=prezyn"], ["mechanism 'prezyn'", "did you mean 'presyn'", "hebb"]),
        (["mechanism=hebb+prezyn"], ["mechanism 'prezyn'", "did you mean 'presyn'"]),
        (
            ["mechanism=presyn", "mechanism.presyn.tau=1"],
            ["mechanism.presyn.tau is", "did you mean 'tau_c'", "alpha_ca"],
        ),
        (["mechanism=presyn", "+mechanism.presyn.tau=1"], ["mechanism.presyn.tau is", "did you mean 'tau_c'"]),
        (["mechanism=presyn", "mechanism.presyn.tau_c=-1"], ["mechanism.presyn.tau_c = -1", ">= "]),
        (["mechanism=hebb", "mechanism.presyn.tau_c=1"], ["choose mechanism=hebb+presyn"]),
        (["mechanism.prezyn.tau_c=1"], ["mechanism 'prezyn'", "presyn"]),
        (["mechanism=presyn", "mechanism.presyn=3"], ["mechanism.presyn = 3", "tau_c"]),
        (["mechanism=null"], ["write none"]),
        (["model=smal"], ["model option 'smal'", "did you mean 'small'"]),
        (["model.num_layer=1"], ["model.num_layer is", "did you mean 'num_layers'"]),
        (["seeed=1"], ["seeed is", "did you mean 'seed'"]),
        (["optimiser=adamw"], ["did you mean 'optimizer'"]),
        (["kernels.fatigue_attentio=torch"], ["did you mean 'fatigue_attention'"]),
        (["model=[small"], ["cannot be read"]),
        (["seed"], ["no value", "seed=..."]),
        (["seed=0,1"], ["add -m"]),
    ],
)
def test_one_line_names_what_is_wrong_and_what_is_right(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        bouton.compose(*words)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_unknown_primary_configuration() -> None:
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        bouton.compose(config_name="trian")


def test_compose_leaves_a_running_application_alone() -> None:
    before = GlobalHydra.instance().hydra
    try:
        GlobalHydra.instance().hydra = marker = object()  # type: ignore[assignment]
        bouton.compose()
        assert GlobalHydra.instance().hydra is marker
    finally:
        GlobalHydra.instance().hydra = before


def test_registered_mechanism_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Strength(Params):
        strength: float = real(0.5, "how much", low=0.0)

    class Foreign(Mechanism):
        name: ClassVar[str] = "foreign"
        summary: ClassVar[str] = "of another package"
        Params: ClassVar[type[Params]] = Strength

    known: dict[str, Any] = {**registry.mechanisms(), "foreign": Foreign}
    monkeypatch.setattr(registry, "_registry", known)
    cfg = bouton.compose("mechanism=presyn+foreign", "mechanism.foreign.strength=0.25")
    assert cfg.mechanism.foreign == {"strength": 0.25}
    with pytest.raises(ConfigError, match=r"mechanism.foreign.strength = -1"):
        bouton.compose("mechanism=foreign", "mechanism.foreign.strength=-1")
    with pytest.raises(ConfigError, match="did you mean 'foreign'"):
        bouton.compose("mechanism=foreing")


def test_other_hydra_applications_are_left_alone(tmp_path: Path) -> None:
    import hydra

    (tmp_path / "app.yaml").write_text("x: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        instance = GlobalHydra.instance().hydra
        assert instance is not None
        entries = instance.config_loader.get_search_path().get_path()
    assert CompositionSearchPath.__module__ == "bouton.config.composition"
    assert all(entry.provider != "bouton" for entry in entries)


def test_terms() -> None:
    assert canonical_terms("c+a+b") == ["a", "b", "c"]
    assert canonical_terms("none") == []
    check_lists(["mechanism=[a,b]", "model=[a,a]", "mechanism=[]"])
    with pytest.raises(ConfigError, match="'a' twice"):
        check_lists(["logger=[a, b, a]"])


def test_kernels_options_list_every_op() -> None:
    from bouton.ops import backends

    registry.mechanisms()
    backends.register_all()
    folders = {path.parent.name for path in Path(bouton.__file__).parent.glob("ops/*/__init__.py")}
    ops = folders & set(backends.ops())
    assert "scan" in ops  # which no mechanism uses
    for option in ("auto", "torch", "rust", "triton"):
        kernels = bouton.compose(f"kernels={option}").kernels
        assert kernels.backend == option
        assert set(kernels) - {"backend"} == ops


def test_an_op_that_no_mechanism_uses_can_be_named() -> None:
    bouton.build(bouton.compose("model=tiny", "kernels.scan=torch", "model.vocab_size=11"))

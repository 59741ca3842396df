from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from bouton.data import build_datamodule
from bouton.data.chat import ChatTemplate
from bouton.data.curriculum import CurriculumDataModule
from bouton.errors import CheckpointError, ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf" / "data"
Make = Callable[..., CurriculumDataModule]

PHASES: dict[str, Any] = {
    "words": {"length": 4, "begin": "sentence", "weights": {"tales": 1}},
    "talks": {"length": 8, "begin": "anywhere", "weights": {"tales": 1, "talks": 3}},
    "whole": {"length": 16, "begin": "anywhere", "weights": {"talks": 1}},
}


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, Any]:
    """``data=curriculum`` over two sources: tales in lower case and talks in upper case."""
    for source, change in (("tales", str.lower), ("talks", str.upper)):
        texts = [change(f"Nr. {n} sees {n * n} birds. It counts them! Are there {n % 7}?") for n in range(80)]
        (tmp_path / f"{source}.txt").write_text("\n<|endoftext|>\n".join(texts))
    return {
        "name": "curriculum",
        "sources": {
            name: {"path": str(tmp_path / f"{name}.txt"), "separator": "<|endoftext|>"} for name in ("tales", "talks")
        },
        "phases": PHASES, "replay": 0.0, "seq_len": 16, "batch_size": 4, "val_fraction": 0.2, "val_weights": None,
        "val_tokens": 320, "phase_val_tokens": 160, "cache_dir": str(tmp_path / "cache"),
        "tokenizer": {"kind": "bytes", "vocab_size": 300, "train_bytes": 10**6, "path": None},
    }  # fmt: skip


@pytest.fixture
def make(fields: dict[str, Any]) -> Make:
    def build(seed: int = 0, **changes: Any) -> CurriculumDataModule:
        tokenizer = {**fields["tokenizer"], **changes.pop("tokenizer", {})}
        module = build_datamodule({**fields, **changes, "tokenizer": tokenizer}, seed)
        assert isinstance(module, CurriculumDataModule)
        return module

    return build


def take(module: CurriculumDataModule, count: int) -> list[dict[str, Tensor]]:
    return list(itertools.islice(module.train_dataloader(), count))


def upper(tokens: Tensor) -> Tensor:
    """(rows,) whether a row is of the talks: they have no lower case."""
    return ~((tokens >= ord("a")) & (tokens <= ord("z"))).any(1)


# -- the stream -------------------------------------------------------------------------------------------------------


def test_phases_change_what_is_read_at_the_sample_that_was_named(make: Make) -> None:
    module = make()
    first = take(module, 3)
    module.enter_next(5 * 4)
    assert (module.phase, module.last_entered) == (0, 1)
    second = take(module, 4)
    assert module.phase == 1
    rows = torch.cat([batch["tokens"] for batch in first + second])
    starts = torch.cat([batch["starts"] for batch in first + second])
    assert (rows[:20, ::4] == 256).all() and not (rows[20:, ::4] == 256).all()
    assert starts[:20, ::4].all() and starts[20:, ::8].all()
    assert not upper(rows[:20]).any() and upper(rows[20:]).any()
    assert torch.equal(torch.cat([b["samples"] for b in first + second]), torch.arange(28))
    # a function of (seed, sample, phase): another run that entered at another sample reads the same from there
    other = make()
    other.enter_next(8)
    assert torch.equal(torch.cat([b["tokens"] for b in take(other, 7)])[20:], rows[20:])
    assert not torch.equal(torch.cat([b["tokens"] for b in take(make(1), 5)]), rows[:20])


def test_targets_are_the_tokens_one_further_on(make: Make) -> None:
    module = make()
    module.enter_next(4)
    for step, batch in enumerate(take(module, 6)):
        length = 8 if step else 4
        for piece in range(0, 16, length):
            tokens, targets = (batch[name][:, piece : piece + length] for name in ("tokens", "targets"))
            assert torch.equal(tokens[:, 1:], targets[:, :-1])
        assert set(batch) == {"tokens", "targets", "starts", "samples"}


def test_ranks_share_one_stream(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def entered(module: CurriculumDataModule, rank: int, world: int) -> list[dict[str, Tensor]]:
        monkeypatch.setattr(module, "ranks", lambda: (rank, world))
        module.enter_next(24)
        return take(module, 6)

    one = entered(make(batch_size=8), 0, 1)
    two = [entered(make(batch_size=4), rank, 2) for rank in range(2)]
    for step in range(6):
        for name in one[step]:
            assert torch.equal(torch.cat([two[0][step][name], two[1][step][name]]), one[step][name]), name


def test_resume_goes_on_exactly_also_before_a_phase_begins(make: Make) -> None:
    whole = make()
    expected = take(whole, 3)
    whole.enter_next(5 * 4)
    expected += take(whole, 6)
    for stop in (3, 5, 7):
        module = make()
        take(module, 3)
        module.enter_next(5 * 4)
        take(module, stop - 3)
        state = json.loads(json.dumps(module.state_dict()))  # plain types only
        resumed = make()
        resumed.load_state_dict(state)
        assert resumed.phase == module.phase
        for found, batch in zip(take(resumed, 9 - stop), expected[stop:], strict=True):
            assert all(torch.equal(found[name], batch[name]) for name in batch)


def test_a_phase_cannot_begin_with_rows_that_were_read(make: Make) -> None:
    module = make()
    take(module, 3)
    with pytest.raises(ValueError, match="cannot begin at sample 11"):
        module.enter_next(11)
    module.enter_next(12)
    with pytest.raises(ValueError, match="cannot begin"):
        module.enter_next(12)
    module.enter_next(13)
    with pytest.raises(ValueError, match="phase 3 cannot begin"):
        module.enter_next(99)


def test_proportions_and_replay(make: Make) -> None:
    module = make(batch_size=1000, replay=0.2)
    module.enter_next(1000)
    rows = take(module, 2)[1]
    words = (rows["tokens"][:, ::4] == 256).all(1)
    assert int(words.sum()) == 200
    assert int(upper(rows["tokens"][~words]).sum()) == 600  # three quarters of 800


# -- validation -------------------------------------------------------------------------------------------------------


def test_the_mixed_set_is_the_same_in_all_phases_and_for_all_seeds(make: Make) -> None:
    module = make()
    module.setup()
    mixed, own = module.val_dataloader()
    before = [[batch["tokens"] for batch in loader] for loader in (mixed, own)]
    module.enter_next(4)
    take(module, 3)
    after = [[batch["tokens"] for batch in loader] for loader in (mixed, own)]
    other = [[batch["tokens"] for batch in loader] for loader in make(seed=7).val_dataloader()]
    assert len(mixed) == 5 and len(own) == 3
    assert torch.equal(torch.cat(before[0]), torch.cat(after[0]))
    assert torch.equal(torch.cat(before[0]), torch.cat(other[0]))
    rows = torch.cat(before[0])
    assert len(rows) == 20 and int(upper(rows).sum()) == 10
    assert not torch.equal(torch.cat(before[1]), torch.cat(after[1]))
    assert torch.equal(torch.cat(before[1]), torch.cat(other[1]))
    assert (torch.cat(before[1])[:10, ::4] == 256).all()
    held_out = module.open_store(module.prepared.sources["tales"], "val").tokens.tobytes()
    assert np.asarray(before[1][0][0, 1:4], dtype="<u2").tobytes() in held_out


def test_validation_weights_and_the_interfaces_of_the_evaluation(make: Make) -> None:
    module = make(val_weights={"tales": 1})
    batches = list(module.val_dataloader()[0])
    assert not upper(torch.cat([batch["tokens"] for batch in batches])).any()
    assert module.evaluation_bytes() > 0
    rows = module.rows("val")
    assert torch.equal(
        rows.gather(module.fixed_rows("val"))["targets"], torch.cat([b["targets"] for b in batches])[:20]
    )
    assert (rows.gather(np.array([0, -1]))["targets"][1] == -100).all()
    many = make(val_tokens=10**6)
    assert len(many.fixed_rows("val")) == len(many.rows("val"))  # each source gives what it has


# -- one tokenizer, several stores ------------------------------------------------------------------------------------


def test_one_tokenizer_is_trained_on_all_sources(make: Make) -> None:
    module = make(tokenizer={"kind": "bpe", "vocab_size": 300})
    merged = {module.tokenizer.string(token) for token in range(257, module.vocab_size)}
    assert any(string.islower() for string in map(bytes.strip, merged))
    assert any(string.isupper() for string in map(bytes.strip, merged))
    folders = module.prepared.sources
    assert set(folders) == {"tales", "talks"} and len(set(folders.values())) == 2
    assert module.fingerprint != make().fingerprint
    module.setup()


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_conversations_are_a_source_among_texts(kind: str, make: Make, fields: dict[str, Any], tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"How many birds are {n} and {n}?",
            "output": f"They are {2 * n}.",
            "lang": "en" if n % 2 else "de",
        }
        for n in range(120)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = {"path": str(tmp_path / "chat.jsonl"), "format": "chat", "where": {"lang": "en"}}
    phases = {"talk": {"length": 16, "begin": "anywhere", "weights": {"chat": 1}}}
    module = make(
        sources={**fields["sources"], "chat": chat}, phases=phases, tokenizer={"kind": kind, "vocab_size": 320}
    )
    store = module.open_store(module.prepared.sources["chat"], "train")
    template = ChatTemplate(module.tokenizer)
    assert template.special == (kind == "bpe")
    texts = [module.tokenizer.decode(store.document(n)) for n in range(len(store.documents))]
    assert 30 < len(texts) < 60 and all("How many birds" in text and "They are" in text for text in texts)
    assert all(int(text.split("They are ")[1].split(".")[0]) % 4 == 2 for text in texts)  # the others are German
    batch = take(module, 1)[0]
    assert (batch["targets"] != -100).all()  # all tokens are learned, not the answers alone
    begins = batch["tokens"][:, 1:][batch["starts"][:, 1:]]
    assert (begins == module.tokenizer.eot_id).all()
    ends = (batch["tokens"] == template.end_id).sum()
    assert kind == "bpe" or ends > batch["starts"][:, 1:].sum()  # turns end inside conversations


def test_the_standard_library_is_a_source_of_its_name(make: Make, fields: dict[str, Any]) -> None:
    sources = {**fields["sources"], "stdlib": {"max_bytes": 200_000}}
    phases = {"code": {"length": 16, "begin": "sentence", "weights": {"stdlib": 1}}}
    module = make(sources=sources, phases=phases)
    assert take(module, 1)[0]["tokens"].shape == (4, 16)
    assert len(module.phases) == 1


def test_the_weight_of_a_source_that_is_taken_out_counts_no_more(make: Make, fields: dict[str, Any]) -> None:
    phases = {"talks": {"length": 8, "begin": "anywhere", "weights": {"tales": 1, "talks": 3}}}
    module = make(sources={**fields["sources"], "tales": None}, phases=phases, val_weights={"tales": 1, "talks": 1})
    assert (module.phases[0].weights, module.val_weights) == ({"talks": 3.0}, {"talks": 1.0})
    assert upper(take(module, 1)[0]["tokens"]).all()
    with pytest.raises(ConfigError, match=r"data\.phases\.words\.weights: no source has a share > 0; known: talks"):
        make(sources={**fields["sources"], "tales": None})


def test_other_data_or_phases_are_refused(make: Make, fields: dict[str, Any]) -> None:
    state = make().state_dict()
    path = Path(fields["sources"]["tales"]["path"])
    changed = {**PHASES, "words": {**PHASES["words"], "weights": {"talks": 1}}}
    for module, message in ((make(phases=changed), r"data\.phases or data\.replay"), (make(replay=0.5), "data.replay")):
        with pytest.raises(CheckpointError, match=message):
            module.load_state_dict(state)
    path.write_text(path.read_text() + " And more.")
    with pytest.raises(CheckpointError, match="other text"):
        make().load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {"tales": {"file": "x"}}}, r"data\.sources\.tales\.file is unknown; .*path"),
        ({"sources": {"tales": {}}}, r"data\.sources\.tales\.path is not set: .*data\.sources\.tales=null"),
        ({"sources": {"tales": "x.txt"}}, r"data\.sources\.tales=x\.txt must be a mapping"),
        ({"sources": {"tales": None}}, r"data\.sources is empty"),
        ({"sources": {"tales": {"path": "x", "format": "chats"}}}, r"format=chats is unknown; did you mean 'chat'"),
        ({"sources": {"t": {"path": "x", "where": "en"}}}, r"data\.sources\.t\.where=en must map columns to values"),
        ({"phases": {}}, r"data\.phases is empty"),
        ({"phases": {"w": 8}}, r"data\.phases\.w=8 must be a mapping"),
        ({"phases": {"w": {"size": 8}}}, r"data\.phases\.w\.size is unknown"),
        ({"phases": {"w": {"length": 5, "weights": {"tales": 1}}}}, r"w\.length=5 must divide data\.seq_len=16"),
        ({"phases": {"w": {"length": 4, "begin": "word"}}}, r"w\.begin=word is unknown; .*sentence"),
        ({"phases": {"w": {"length": 4}}}, r"w\.weights=None must map sources to shares; known: tales, talks"),
        (
            {"phases": {"w": {"length": 4, "weights": {"tale": 1}}}},
            r"w\.weights\.tale: there is no such source; did you",
        ),
        ({"phases": {"w": {"length": 4, "weights": {"tales": -1}}}}, r"w\.weights\.tales=-1 must be a number >= 0"),
        ({"phases": {"w": {"length": 4, "weights": {"tales": 0}}}}, r"w\.weights: no source has a share > 0"),
        ({"phases": {"w": {"length": 4, "weights": {"tales": 1, "talks": 1e-5}}}}, r"below 1/1000 of all shares"),
        ({"val_weights": {"other": 1}}, r"data\.val_weights\.other: there is no such source"),
        ({"replay": 1}, r"data\.replay=1 must be a number >= 0 and < 1"),
        ({"val_fraction": 0}, r"data\.val_fraction=0 must be"),
        ({"tokenizer": {"kind": "letters"}}, r"data\.tokenizer\.kind=letters is unknown"),
        ({"val_tokens": None}, r"data\.val_tokens=None must be an integer >= 1"),
    ],
)
def test_errors_are_one_clear_line(changes: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_errors_of_the_files_name_their_source(make: Make, fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.sources\.tales\.path=/no/where: no such file"):
        make(sources={"tales": {"path": "/no/where"}, "talks": fields["sources"]["talks"]}).setup()
    with pytest.raises(ConfigError, match=r"longer than the train split of data\.sources\.tales"):
        make(seq_len=4096, phases={"w": {"length": 4, "weights": {"tales": 1}}}).setup()


def test_errors_of_the_rows_name_the_node_of_their_source(
    make: Make, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"instruction": "q", "output": "a", "lang": "en"}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
    phases = {"talk": {"length": 16, "weights": {"tales": 1}}}
    chat = {"path": str(tmp_path / "chat.jsonl"), "format": "chat", "where": {"lan": "en"}}
    message = r"data\.sources\.chat\.where\.lan: there is no such column; did you mean 'lang'"
    with pytest.raises(DataError, match=message):
        make(sources={**fields["sources"], "chat": chat}, phases=phases).setup()

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *a, **k: None)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *a, **k: iter([row])))
    hub = {"repository": "a/b", "splits": {"train": "train", "val": None}, "text_field": "body"}
    with pytest.raises(DataError, match=message):
        make(sources={**fields["sources"], "chat": {**chat, "path": None, "hub": hub}}, phases=phases).setup()
    with pytest.raises(DataError, match=r"data\.sources\.web\.hub\.text_field=body: a/b has the columns instruction"):
        make(sources={**fields["sources"], "web": {"hub": hub}}, phases=phases).setup()

    def refuse(*args: object, **options: object) -> None:
        raise OSError("name not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    with pytest.raises(DataError, match=r"data\.sources\.web\.path=<file or folder> gives a local copy"):
        make(sources={**fields["sources"], "web": {"hub": hub}}, phases=phases).setup()


def test_the_shipped_phases() -> None:
    cfg: Any = OmegaConf.to_container(OmegaConf.load(CONF / "curriculum.yaml"), resolve=True)
    module = build_datamodule(cfg)
    assert isinstance(module, CurriculumDataModule)
    assert [(phase.name, phase.length) for phase in module.phases] == [
        ("words", 8), ("phrases", 16), ("sentences", 32), ("stories", 64), ("conversations", 128),
    ]  # fmt: skip
    assert module.replay == 0.0

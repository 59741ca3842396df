"""The needle's gain is large for a model that copies what followed before, and nothing for one that does not look."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bouton.errors import EvaluationError
from bouton.evaluation import evaluate
from bouton.evaluation.options import Params
from bouton.evaluation.subject import Subject
from bouton.evaluation.tasks.needle import NeedleOptions, _Items
from bouton.models.body import Body
from bouton.runs import Run


class Copier(Body):
    """Expects what followed the last occurrence of the present token; ``blind``: expects nothing in particular."""

    def __init__(self, vocab_size: int, reach: int, *, blind: bool = False) -> None:
        super().__init__()
        self.vocab_size, self.reach, self.blind = vocab_size, reach, blind
        self.scale = torch.nn.Parameter(torch.tensor(8.0))

    def forward(self, tokens: Tensor, state=None, *, starts=None, vitals=None):  # type: ignore[no-untyped-def]
        seen = tokens if state is None else torch.cat((state["seen"], tokens), 1)
        logits = torch.zeros(*tokens.shape, self.vocab_size)
        offset = seen.shape[1] - tokens.shape[1]
        for b in range(tokens.shape[0]) if not self.blind else ():
            for t in range(tokens.shape[1]):
                at = offset + t
                found = [i for i in range(max(0, at - self.reach), at) if seen[b, i] == seen[b, at]]
                if found:
                    logits[b, t, seen[b, found[-1] + 1]] = self.scale.item()
        return logits, {"seen": seen}


def copier(run: Run, monkeypatch: pytest.MonkeyPatch, reach: int, *, blind: bool = False) -> Run:
    model = Copier(run.tokenizer.vocab_size, reach, blind=blind)
    monkeypatch.setitem(run.__dict__, "model", model)
    return run


OPTIONS = {"needle": {"lengths": [24, 64], "depths": [0, 1], "items": 6}}


def test_a_copier_finds_it_within_its_reach(stories: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluate(copier(stories, monkeypatch, 30), ["needle"], OPTIONS)["needle"]
    gain = {(row["length"], row["depth"]): row["gain"] for row in found["tables"]["cells"]}
    # Only the needle at the beginning of the long text is out of reach.
    assert abs(gain[64, 0.0]) < 0.5
    # 8 nats at most, and nothing where the text by chance repeats a token of the key behind the needle.
    assert min(gain[24, 0.0], gain[24, 1.0], gain[64, 1.0]) > 2
    binding = {(row["length"], row["depth"]): row["binding"] for row in found["tables"]["cells"]}
    # The first value token follows the key, the second the first value token, which is there without the key.
    assert 1 < binding[24, 1.0] < gain[24, 1.0]
    numbers = found["numbers"]
    assert numbers["gain_low"] < numbers["gain"] < numbers["gain_high"]
    assert numbers["hits"] > 0.5 > numbers["hits_without"]
    assert (stories.folder / "evaluation" / "needle.heat_map.png").is_file()


def test_a_blind_model_gains_exactly_nothing(stories: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = evaluate(copier(stories, monkeypatch, 0, blind=True), ["needle"], OPTIONS)["needle"]["numbers"]
    assert numbers["gain"] == numbers["binding"] == 0


def test_texts_have_their_length_and_differ_in_the_needle_alone(stories: Run) -> None:
    items = _Items(Subject(stories), NeedleOptions(items=3), 40)
    for depth in (0.0, 0.3, 1.0):
        arms = [items.contexts(40, depth, arm) for arm in ("needle", "absent", "unbound")]
        for i, (with_needle, absent, unbound) in enumerate(zip(*arms, strict=True)):
            assert len(with_needle) + 2 == len(absent) + 2 == len(unbound) + 2 == 40
            assert with_needle[-2:] == items.keys[i]
            needle = [*items.keys[i], *items.values[i]]
            at = 1 + round(depth * (40 - 9))
            assert with_needle[at : at + 4] == needle
            different = {j for j in range(38) if with_needle[j] != absent[j]}
            assert different == set(range(at, at + 4))
            assert {j for j in range(38) if with_needle[j] != unbound[j]} == {at, at + 1}


def test_lengths_that_cannot_be_are_refused(stories: Run) -> None:
    with pytest.raises(EvaluationError, match=r"needle\.lengths = 8 is too short: two needles need 9 tokens"):
        evaluate(stories, ["needle"], {"needle": {"lengths": 8}})
    with pytest.raises(EvaluationError, match="needs 100000 tokens of validation text"):
        evaluate(stories, ["needle"], {"needle": {"lengths": 100000}})


def test_options_are_checked_one_by_one() -> None:
    assert NeedleOptions(lengths=[8, 9]).lengths == (8, 9)
    assert issubclass(NeedleOptions, Params)
    assert np.allclose(NeedleOptions().depths, (0, 0.25, 0.5, 0.75, 1))

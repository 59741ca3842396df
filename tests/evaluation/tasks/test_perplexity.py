"""The loss is the one that training wrote down; the carried one is that of whole documents."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bouton
from bouton.evaluation import evaluate
from bouton.evaluation.subject import Subject
from bouton.runs import Run


@pytest.mark.parametrize(("checkpoint", "part"), [("best", "best"), ("last", "final")])
def test_it_agrees_with_the_summary_of_the_run(stories: Run, checkpoint: str, part: str) -> None:
    run = bouton.load(stories.folder, checkpoint, device="cpu", kernels="torch")
    found = evaluate(run, ["perplexity"], {"perplexity": {"context": 0}})["perplexity"]
    numbers, summary = found["numbers"], run.summary[part]
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy"):
        assert numbers[name] == pytest.approx(summary[f"val_{name}"], rel=1e-6), name
        assert numbers[f"{name}_low"] < numbers[name] < numbers[f"{name}_high"]
    assert numbers["loss_in_summary"] == summary["val_loss"] and not found["notes"]
    assert not any(name.startswith("carried") for name in numbers)


def test_another_loss_than_the_summary_says_is_noted(stories: Run) -> None:
    with torch.no_grad():
        stories.model.embedding.weight.mul_(1.5)  # type: ignore[union-attr, operator]
    (note,) = evaluate(stories, ["perplexity"])["perplexity"]["notes"]
    assert "not that of the run's summary" in note


def test_carried_state_is_one_pass_over_the_document(stories: Run) -> None:
    numbers = evaluate(stories, ["perplexity"], {"perplexity": {"context": 100}})["perplexity"]["numbers"]
    subject = Subject(stories)
    store, length = subject.store, stories.config.data.seq_len
    nll: dict[int, float] = {}
    for i, begin in enumerate(store.documents.tolist()):  # the last target of a document is the next one's first token
        tokens = torch.as_tensor(store.document(i))[None]
        after = store.tokens[begin + tokens.shape[1]] if begin + tokens.shape[1] < len(store) else 0
        targets = torch.cat((tokens[0, 1:], torch.tensor([int(after)])))
        with torch.no_grad():
            loss = F.cross_entropy(stories.model(tokens)[0][0].double(), targets, reduction="none")
        nll.update({begin + t: float(value) for t, value in enumerate(loss)})
    rows = subject.validation_rows
    expected = np.mean([nll[int(row) * length + t] for row in rows for t in range(length)])
    assert numbers["carried_loss"] == pytest.approx(expected, abs=1e-5)
    assert numbers["carried_gain"] == pytest.approx(numbers["loss"] - numbers["carried_loss"], abs=1e-9)
    assert numbers["carried_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert 10 < numbers["carried_context"] < 60
    assert abs(numbers["carried_gain"]) > 1e-4  # rows of 32 tokens cut these stories in two


def test_a_limit_of_context_is_kept(stories: Run) -> None:
    one: Any = evaluate(stories, ["perplexity"], {"perplexity": {"context": 1}})["perplexity"]["numbers"]
    assert one["carried_context"] <= stories.config.data.seq_len


def test_a_task_without_text_has_no_bytes(recall: Run) -> None:
    numbers = evaluate(recall, ["perplexity"])["perplexity"]["numbers"]
    assert "bits_per_byte" not in numbers and numbers["loss"] == pytest.approx(recall.summary["best"]["val_loss"])

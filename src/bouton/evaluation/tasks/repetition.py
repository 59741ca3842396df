"""repetition: how much greedy continuations of validation documents repeat themselves, beside how much the text does.

distinct_n is the share of different n-grams among all n-grams of a sample. A loop is a block of at most ``period``
tokens that stands at least three times in a row; ``loop_fraction`` is the share of tokens in loops, ``looping`` the
share of samples that end in one. ``longest_run`` is the longest stretch that a block repeated at least once makes.

``reference_*`` are the same numbers of the documents' own continuations, cut to the length of each sample, because all
of these depend on length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from bouton.errors import EvaluationError
from bouton.evaluation.base import Result, Task
from bouton.evaluation.intervals import mean, proportion
from bouton.evaluation.options import Params, integer
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject

_SHORTEST = 16  # tokens; a shorter sample says nothing about repetition


@dataclass(frozen=True)
class RepetitionOptions(Params):
    samples: int = integer(64, "documents that are continued", low=2)
    prompt: int = integer(16, "tokens of the document that are given", unit="tokens", low=1)
    length: int = integer(256, "longest continuation", unit="tokens", low=_SHORTEST)
    period: int = integer(64, "longest block of a loop", unit="tokens", low=1)


@register
class Repetition(Task):
    name = "repetition"
    summary = "distinct n-grams, longest repeated run and loops of greedy continuations, and of the text itself"
    source = "distinct-n: Li et al. 2016 (arXiv 1510.03055); greedy loops: Holtzman et al. 2020 (arXiv 1904.09751)"
    Options = RepetitionOptions
    headline: ClassVar = ("distinct_2", "reference_distinct_2", "loop_fraction", "looping", "longest_run")

    def check(self, subject: Subject) -> None:
        subject.require_text(self.name)

    def measure(self, subject: Subject, options: RepetitionOptions) -> Result:
        prompts, references = _documents(subject, options)
        length = options.length
        if subject.position_limit is not None:
            length = min(length, subject.position_limit - len(prompts[0]))
        written = _greedy(subject, prompts, length)
        samples = [(w, r[: len(w)]) for w, r in zip(written, references, strict=True) if len(w) >= _SHORTEST]
        if len(samples) < 2:
            raise EvaluationError(
                f"task repetition: only {len(samples)} of {len(written)} greedy continuations have at least "
                f"{_SHORTEST} tokens"
            )
        result = Result()
        own = [describe(tokens, options.period) for tokens, _ in samples]
        text = [describe(tokens, options.period) for _, tokens in samples if len(tokens) >= _SHORTEST]
        for prefix, described in (("", own), ("reference_", text)):
            for name in described[0] if described else ():
                values = [d[name] for d in described]
                estimate = proportion(int(sum(values)), len(values)) if name == "looping" else mean(values)
                result.put(prefix + name, estimate)
        result.numbers.update(samples=len(samples), longest_run_of_all=max(d["longest_run"] for d in own))
        result.tables["samples"] = [
            {"prompt": subject.tokenizer.decode(p[1:]), "text": subject.tokenizer.decode(w), "tokens": len(w)}
            for p, w in list(zip(prompts, written, strict=True))[:8]
        ]
        return result


def _documents(subject: Subject, options: RepetitionOptions) -> tuple[list[list[int]], list[list[int]]]:
    """Beginnings of validation documents, evenly spaced among those that are long enough, and how they go on."""
    store, need = subject.store, 1 + options.prompt + _SHORTEST
    ends = np.append(store.documents[1:], len(store))
    fit = np.flatnonzero(ends - store.documents >= need)
    if len(fit) < 2:
        raise EvaluationError(f"task repetition needs 2 validation documents of {need} tokens, there are {len(fit)}")
    chosen = fit[np.arange(min(options.samples, len(fit))) * len(fit) // min(options.samples, len(fit))]
    documents = [store.document(int(i)).tolist() for i in chosen]
    limit = subject.position_limit
    prompt = options.prompt if limit is None else min(options.prompt, limit - 1)
    return [d[: 1 + prompt] for d in documents], [d[1 + prompt :] for d in documents]


def _greedy(subject: Subject, prompts: list[list[int]], length: int) -> list[list[int]]:
    """The most likely continuation of each prompt (all are equally long), up to the end of its text."""
    eot, vocabulary = subject.tokenizer.eot_id, subject.tokenizer.vocab_size
    drawn = []
    tokens = torch.tensor(prompts, device=subject.device)
    state: Any = None
    with torch.inference_mode():
        for _ in subject.track(range(length), "repetition"):
            logits, state = subject.model(tokens, state)
            # Entries of the head beyond the tokenizer's vocabulary are no tokens.
            tokens = logits[:, -1:, :vocabulary].argmax(-1)
            drawn.append(tokens)
    texts = torch.cat(drawn, 1).tolist()
    return [text[: text.index(eot)] if eot in text else text for text in texts]


def describe(tokens: Sequence[int], period: int) -> dict[str, float]:
    """The numbers of one sample."""
    x = np.asarray(tokens)
    in_loop, longest = _loops(x, period)
    numbers = {f"distinct_{n}": _distinct(tokens, n) for n in (1, 2, 3, 4)}
    return {
        **numbers,
        "longest_run": float(longest),
        "loop_fraction": float(in_loop.mean()),
        "looping": float(in_loop[-1]),
    }


def _distinct(tokens: Sequence[int], n: int) -> float:
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams)


def _loops(x: Any, period: int) -> tuple[Any, int]:
    """Which tokens stand in a block that comes three times or more, and the longest stretch of one that comes twice."""
    inside, longest = np.zeros(len(x), dtype=bool), 0
    for p in range(1, min(period, len(x) // 2) + 1):
        same = np.concatenate(([False], x[p:] == x[:-p], [False]))
        edges = np.flatnonzero(np.diff(same.astype(np.int8)))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end - begin >= p:  # x[begin : end + p] is at least two blocks of length p
                longest = max(longest, end - begin + p)
            if end - begin >= 2 * p:
                inside[begin : end + p] = True
    return inside, int(longest)

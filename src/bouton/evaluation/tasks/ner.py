"""ner: precision, recall and F1 of entities, exact in characters and type, beside regular expressions.

Measured on the characters of whole texts: where a token holds the end of an entity and more, the entity is not found
exactly, whatever the label. Two entities count as one only if they begin and end at the same characters (CoNLL 2003).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bouton.data.pii import rules
from bouton.data.pii.bio import Document, Span
from bouton.data.pii.build import renamed
from bouton.data.pii.files import read_documents
from bouton.data.pii.synthetic import generate
from bouton.errors import EvaluationError
from bouton.evaluation.base import Result, Row, Task
from bouton.evaluation.intervals import ratio
from bouton.evaluation.options import Params, choice, text
from bouton.evaluation.registry import register
from bouton.evaluation.subject import Subject
from bouton.generation.redact import Tagger

_BATCH = 32  # texts


@dataclass(frozen=True)
class NEROptions(Params):
    split: str = choice("test", ("test", "val"), "texts of the run's data to measure on")
    path: str | None = text("a file with other labelled texts instead (JSON lines or CoNLL), read with data.rename")


@register
class NER(Task):
    name = "ner"
    summary = "precision, recall and F1 of entities, beside regular expressions (runs with data=pii)"
    source = "Tjong Kim Sang and De Meulder 2003 (arXiv cs/0306050)"
    Options = NEROptions
    headline = ("f1", "precision", "recall", "rules_f1")

    def check(self, subject: Subject) -> None:
        name = subject.run.config.data.name
        if name != "pii":
            raise EvaluationError(f"task ner needs a run that was trained on data=pii, this one has data={name}")

    def measure(self, subject: Subject, options: NEROptions) -> Result:
        documents, where = _documents(subject, options)
        types = [str(name) for name in subject.run.config.data.types]
        if options.path is not None:  # a file that does not mark a type says nothing about it
            types = [name for name in types if any(span.type == name for d in documents for span in d.spans)]
        tagger = Tagger.of(subject.run)
        texts = [document.text for document in documents]
        predicted: list[list[Span]] = []
        with subject.computing():
            for begin in subject.track(range(0, len(texts), _BATCH), "ner"):
                predicted += tagger.spans(texts[begin : begin + _BATCH], _BATCH)
        result = Result(notes=[f"{len(documents)} texts of {where}; types {', '.join(types)}"])
        found = {"": predicted, "rules_": [rules.find(text) for text in texts]}
        tables: dict[str, dict[str, float]] = {}
        for prefix, spans in found.items():
            counts = [_count(document, ours, types) for document, ours in zip(documents, spans, strict=True)]
            _put(result, prefix, counts)
            for name in types:
                tables.setdefault(name, {})[f"{prefix}f1"] = _f1(c[name] for c in counts)
        rows: list[Row] = [
            {"type": name, "entities": sum(s.type == name for d in documents for s in d.spans), **tables[name]}
            for name in types
        ]
        result.tables["types"] = rows
        return result


def _documents(subject: Subject, options: NEROptions) -> tuple[Sequence[Document], str]:
    if options.path is not None:
        data = {str(key): value for key, value in subject.run.config.data.items()}
        names = renamed({**data, "types": [str(t) for t in data["types"]], "rename": dict(data["rename"] or {})})
        path = Path(options.path).expanduser()
        return read_documents(path, names), path.name
    config = subject.run.config.data
    if config.path is None:  # without the many texts of training
        texts = generate(options.split, int(config[f"{options.split}_texts"]), int(config.text_seed))
        return texts, f"the {options.split} split"
    rows = subject.data.prepared.rows[options.split]
    return rows.documents, f"the {options.split} split"  # type: ignore[attr-defined]


Counts = tuple[int, int, int]  # found, predicted, true


def _count(document: Document, predicted: Sequence[Span], types: Sequence[str]) -> dict[str, Counts]:
    """found, predicted, true entities of one text by type."""
    true = set(document.spans)
    ours = {span for span in predicted if span.type in types}
    hits, all_ours, all_true = (Counter(span.type for span in spans) for spans in (true & ours, ours, true))
    return {name: (hits[name], all_ours[name], all_true[name]) for name in types}


def _put(result: Result, prefix: str, counts: Sequence[dict[str, Counts]]) -> None:
    """The micro averages, with the text as the unit that varies."""
    sums = [tuple(map(sum, zip(*by_type.values(), strict=True))) for by_type in counts]
    found, predicted, true = ([s[i] for s in sums] for i in range(3))
    result.put(f"{prefix}precision", ratio(found, predicted))
    result.put(f"{prefix}recall", ratio(found, true))
    both = [p + t for p, t in zip(predicted, true, strict=True)]
    result.put(f"{prefix}f1", ratio([2 * f for f in found], both))


def _f1(counts: Iterable[Counts]) -> float:
    found, predicted, true = map(sum, zip(*counts, strict=True))
    return 2 * found / (predicted + true) if predicted + true else math.nan

"""The baseline without learning: regular expressions, tried in this order; who comes first keeps the characters.

What has a form (addresses of mail and web, numbers, dates) is found by its form, persons by a title or by two words
that begin with capitals.
"""

from __future__ import annotations

import re

from bouton.data.pii.bio import Span
from bouton.data.pii.lexicon import COMPANY_KINDS, STREET_KINDS

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_NAME = r"[A-Z][a-z]+"
_RULES: tuple[tuple[str, str], ...] = (
    ("EMAIL", r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}"),
    ("URL", r"(?:https?://|www\.)[\w.-]+\.[A-Za-z]{2,}(?:/[\w./-]*\w)?"),
    ("IP", r"\b(?:\d{1,3}\.){3}\d{1,3}\b"),
    ("CARD", r"\b\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}\b"),
    ("ID", r"\b\d{3}-\d{2}-\d{4}\b|\b[A-Z]{1,3}-?\d{5,8}\b"),
    ("DATE", rf"\b\d{{4}}-\d\d-\d\d\b|\b\d{{1,2}}[./]\d{{1,2}}[./]\d{{4}}\b|\b\d{{1,2}} {_MONTH} \d{{4}}\b"
             rf"|\b{_MONTH} \d{{1,2}},? \d{{4}}\b"),
    ("ADDRESS", rf"\b\d{{1,5}} (?:{_NAME} ){{1,3}}(?:{'|'.join(STREET_KINDS)})\b(?: Apt \d+)?"
                rf"(?:, \d{{5}} {_NAME}|, {_NAME}(?:, [A-Z]{{2}} \d{{5}})?)?"),
    ("PHONE", r"\+\d{1,3} ?\d{3} ?\d{3} ?\d{4}\b|\(\d{3}\) \d{3}-\d{4}\b|\b\d{3}[-.]\d{3}[-.]\d{4}\b"
              r"|\b0\d{2} \d{3} \d{4}\b"),
    ("ORG", rf"\b(?:{_NAME} )+(?:{'|'.join(COMPANY_KINDS)})\b"),
    ("PERSON", rf"(?<=\bMr )(?:{_NAME})|(?<=\bMrs )(?:{_NAME})|(?<=\bMs )(?:{_NAME})"),
    ("PERSON", rf"\b{_NAME} (?:[A-Z]\. )?{_NAME}(?:-{_NAME})?\b"),
    ("LOCATION", rf"(?<=\b[iI]n )(?:{_NAME})\b|(?<=\bto )(?:{_NAME})\b|(?<=\bfrom )(?:{_NAME})\b"),
)  # fmt: skip
_COMPILED = tuple((name, re.compile(pattern)) for name, pattern in _RULES)


def find(text: str) -> list[Span]:
    """The entities of a text, in order."""
    taken = bytearray(len(text))
    spans = []
    for name, pattern in _COMPILED:
        for match in pattern.finditer(text):
            if not any(taken[match.start() : match.end()]):
                taken[match.start() : match.end()] = b"\1" * (match.end() - match.start())
                spans.append(Span(match.start(), match.end(), name))
    return sorted(spans)

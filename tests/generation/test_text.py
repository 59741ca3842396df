import itertools

import pytest

from bouton.errors import ConfigError
from bouton.generation.text import RowText


class Fragments:
    """Tokens are indices into a list of fragments."""

    def __init__(self, fragments: list[str]) -> None:
        self.fragments = fragments

    def push(self, token: int) -> str:
        return self.fragments[token]

    def flush(self) -> str:
        return ""


def run(fragments: list[str], stop: list[str]) -> tuple[list[str], bool]:
    text = RowText(Fragments(fragments), stop)
    given = []
    for token in range(len(fragments)):
        given.append(text.push(token))
        if text.stopped:
            return given, True
    given.append(text.finish())
    return given, text.stopped


def splits(text: str) -> list[list[str]]:
    """Every way to cut a text into fragments."""
    cuts = itertools.product([False, True], repeat=len(text) - 1)
    return [_cut(text, flags) for flags in cuts]


def _cut(text: str, flags: tuple[bool, ...]) -> list[str]:
    parts, last = [], 0
    for i, flag in enumerate(flags, 1):
        if flag:
            parts.append(text[last:i])
            last = i
    return [*parts, text[last:]]


@pytest.mark.parametrize(
    ("text", "stop", "expected", "stopped"),
    [
        ("one END two", ["END"], "one ", True),
        ("aaab", ["aab"], "a", True),  # the stop string begins inside an earlier false beginning
        ("abcabd", ["abd"], "abc", True),
        ("abcab", ["abd"], "abcab", False),  # a false beginning at the end comes out after all
        ("xabcy", ["abc", "b"], "xa", True),  # "b" is complete first
        ("xabc", ["bc", "abc"], "x", True),  # complete at the same character: the longer one
        ("ENDx", ["END"], "", True),
        ("nothing", [], "nothing", False),
    ],
)
def test_a_stop_string_is_found_wherever_the_borders_lie(
    text: str, stop: list[str], expected: str, stopped: bool
) -> None:
    for fragments in splits(text):
        given, ended = run(fragments, stop)
        assert ("".join(given), ended) == (expected, stopped), fragments


def test_what_cannot_begin_a_stop_string_comes_out_at_once() -> None:
    text = RowText(Fragments(["ab\n", "c", "\n\n"]), ["\n\n"])
    assert [text.push(0), text.push(1), text.push(2)] == ["ab", "\nc", ""]
    assert text.stopped and text.finish() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="stop"):
        RowText(Fragments([]), ["a", ""])

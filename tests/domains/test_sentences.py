"""What is said from memory and held out, by the graph and by counting."""

import pytest

from bouton.domains.sentences.corpus import PROMPT, SENTENCES, TAGS
from bouton.domains.sentences.counts import Counts, table
from bouton.domains.sentences.speaker import Speaker

pytest.importorskip("bouton_kernels")
WORDS = sorted({word for words in SENTENCES for word in words})


def test_the_corpus_has_one_pattern_and_its_own_prompts() -> None:
    assert len(SENTENCES) == 20 and all(len(words) == len(TAGS) == 9 for words in SENTENCES)
    assert len(table(SENTENCES, PROMPT)) == 20


def test_counts_take_the_longest_context_that_was_seen() -> None:
    counts = Counts([("a", "b", "c", "d"), ("x", "b", "e", "d"), ("y", "b", "e", "f")], 3, 2)
    assert counts.next(("a", "b")) == "c"
    assert counts.next(("z", "b")) == "e"
    assert counts.next(("z", "z")) == "d"  # as often as e, and seen before it
    assert counts.say(("a", "b"), 4) == ["c", "d"]


def test_a_speaker_learns_parts_of_speech_and_words() -> None:
    speaker = Speaker(WORDS, TAGS, len(TAGS))
    known = SENTENCES[:5]
    said, tags = speaker.say(known[0][:PROMPT], TAGS[:PROMPT], len(TAGS))
    assert said != list(known[0][PROMPT:]) and len(said) == len(tags) == 6
    losses = [speaker.learn(known, TAGS, PROMPT, 0.2) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
    for words in known:
        said, tags = speaker.say(words[:PROMPT], TAGS[:PROMPT], len(TAGS))
        assert said == list(words[PROMPT:]) and tags == list(TAGS[PROMPT:])

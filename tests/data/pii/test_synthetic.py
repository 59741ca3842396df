"""The synthetic texts: reproducible, labelled exactly, and nothing of the test split in the training split."""

from __future__ import annotations

import re
from random import Random

import pytest

from bouton.data.pii import lexicon, rules
from bouton.data.pii.synthetic import SPLITS, TYPES, Writer, generate, luhn, split_of

SLOTS = set(re.findall(r"{(\w+)}", " ".join(lexicon.TRAIN_TEMPLATES + lexicon.VAL_TEMPLATES + lexicon.TEST_TEMPLATES)))
NAMES = (
    lexicon.FIRST_NAMES, lexicon.LAST_NAMES, lexicon.NAME_HEADS, lexicon.NAME_TAILS, lexicon.STREET_NAMES,
    lexicon.CITIES, lexicon.COUNTRIES, lexicon.COMPANY_NAMES,
)  # fmt: skip


def test_a_text_is_a_function_of_seed_split_and_number() -> None:
    assert generate("test", 20, 0) == generate("test", 30, 0)[:20]
    assert generate("test", 20, 0) != generate("test", 20, 1)
    # A change of the generator changes what every recorded figure was measured on.
    assert generate("test", 1, 0)[0].text == PINNED


PINNED = "This agenda is 86801 years old and still works."


@pytest.mark.parametrize("split", SPLITS)
def test_spans_are_in_order_and_have_no_white_space_at_their_ends(split: str) -> None:
    for text, spans, _ in (vars(d).values() for d in generate(split, 300, 0)):
        last = 0
        for begin, end, name in spans:
            assert last <= begin < end <= len(text)
            assert text[begin:end].strip() == text[begin:end]
            assert name in TYPES
            last = end


def test_every_type_occurs_in_every_split() -> None:
    for split in SPLITS:
        assert {span.type for d in generate(split, 400, 0) for span in d.spans} == set(TYPES)


def test_every_slot_can_be_filled() -> None:
    writer = Writer("val")
    assert all(str(getattr(writer, f"_{slot}")(Random(0))) for slot in SLOTS)


def test_splits_share_no_template_and_no_name() -> None:
    templates = [set(t) for t in (lexicon.TRAIN_TEMPLATES, lexicon.VAL_TEMPLATES, lexicon.TEST_TEMPLATES)]
    assert sum(map(len, templates)) == len(set.union(*templates))
    for names in NAMES:
        dealt = [set(Writer(split).deal(names)) for split in SPLITS]
        assert set.union(*dealt) == set(names)
        assert sum(map(len, dealt)) == len(set(names))
        assert all(len(part) >= 3 for part in dealt)
    held_out = {name for names in NAMES for name in names if split_of(name) == "test"}
    words = {
        word
        for d in generate("train", 500, 0)
        for b, e, _ in d.spans
        for word in re.findall("[A-Z][a-z]+", d.text[b:e])
    }
    # What an address is made of besides names of streets and cities is no name.
    assert not (words & held_out) - {"Court"}


def test_luhn() -> None:
    assert luhn("411111111111111?") == "4111111111111111"
    assert luhn("555555555555444") == "5555555555554444"


def test_rules_find_what_has_a_form() -> None:
    text = "Mr Osei (kim.b@mail.co.uk, +44 555 123 4567) paid with 4111-1111-1111-1111 on 3 May 2001 from 10.0.0.1."
    found = [(text[begin:end], name) for begin, end, name in rules.find(text)]
    assert found == [
        ("Osei", "PERSON"), ("kim.b@mail.co.uk", "EMAIL"), ("+44 555 123 4567", "PHONE"),
        ("4111-1111-1111-1111", "CARD"), ("3 May 2001", "DATE"), ("10.0.0.1", "IP"),
    ]  # fmt: skip
    assert rules.find("The kettle costs 12.50 euros.") == []

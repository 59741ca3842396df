"""Synthetic texts with the spans of what identifies a person, from templates, with a fixed seed.

The splits share neither a template nor a name: first and last names, streets, cities, countries and companies are
dealt out to the splits (three fifths, one fifth, one fifth), and so are the halves of which other last names are made.
What numbers look like (telephones, cards, dates) is the same in all.

A few hundred words and names are soon known by heart, and every other word then looks like a name. So in the training
split some words of the templates, and some names, are invented ones (lower case or capitals as the word had), and half
of the sentences are no sentences: entities between words in any order, which can be told by their form alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from random import Random

from bouton.data.pii import lexicon
from bouton.data.pii.bio import Document, Span

TYPES = ("PERSON", "EMAIL", "PHONE", "ADDRESS", "DATE", "ID", "CARD", "ORG", "URL", "IP", "LOCATION")
SPLITS = ("train", "val", "test")

_TEMPLATES = dict(zip(SPLITS, (lexicon.TRAIN_TEMPLATES, lexicon.VAL_TEMPLATES, lexicon.TEST_TEMPLATES), strict=True))
_TYPE_OF_SLOT = {
    "person": "PERSON", "first": "PERSON", "last": "PERSON", "email": "EMAIL", "phone": "PHONE", "address": "ADDRESS",
    "date": "DATE", "ssn": "ID", "passport": "ID", "employee": "ID", "card": "CARD", "org": "ORG", "url": "URL",
    "ip": "IP", "location": "LOCATION",
}  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_INVENTED_WORDS, _INVENTED_NAMES = 0.2, 0.4  # shares in the training split
_DISORDERED = 0.5  # share of the sentences of the training split
_TWO_SENTENCES = 0.35  # share of the texts
_LOWER_CASE = 0.1


def generate(split: str, count: int, seed: int) -> list[Document]:
    """``count`` documents of a split; document i is a function of (split, seed, i)."""
    writer = Writer(split)
    return [writer.write(Random(f"{seed}/{split}/{index}")) for index in range(count)]


class Writer:
    """Fills the templates of one split with its names."""

    def __init__(self, split: str) -> None:
        """
        Args:
            split: one of :data:`SPLITS`.
        """
        self.split = split
        self.templates = _TEMPLATES[split]
        self._words = [word for template in self.templates for word in template.split() if "{" not in word]
        self._invented_names = 0.0
        self._dealt: dict[int, list[str]] = {}

    def write(self, random: Random) -> Document:
        """One or two sentences."""
        sentences = 2 if random.random() < _TWO_SENTENCES else 1
        text, spans = "", []
        for template in random.sample(self.templates, sentences):
            self._invented_names = _INVENTED_NAMES if self.split == "train" else 0.0
            if self.split == "train" and random.random() < _DISORDERED:
                template = self._disorder(template, random)
                self._invented_names = 0.0  # out of context nothing tells them from other words
            text += " " if text else ""
            for part in re.split(r"({\w+})", template):
                slot = part[1:-1] if part.startswith("{") else None
                value = self._prose(part, random) if slot is None else str(getattr(self, f"_{slot}")(random))
                if slot in _TYPE_OF_SLOT:
                    spans.append(Span(len(text), len(text) + len(value), _TYPE_OF_SLOT[slot]))
                text += value
        return Document(text.lower() if random.random() < _LOWER_CASE else text, tuple(spans))

    def deal(self, values: Sequence[str]) -> list[str]:
        """The values that belong to this split."""
        return [value for value in values if split_of(value) == self.split]

    def _disorder(self, template: str, random: Random) -> str:
        """The entities of a template, and perhaps of another, in any order between words of all templates."""
        slots = re.findall(r"{\w+}", template + (random.choice(self.templates) if random.random() < 0.3 else ""))
        random.shuffle(slots)
        parts = random.choices(self._words, k=random.randrange(4))
        for slot in slots:
            parts += [
                slot + random.choice(("", "", "", ",", ".", ":", "?", "'s")),
                *random.choices(self._words, k=random.randrange(4)),
            ]
        return " ".join(parts)

    def _prose(self, text: str, random: Random) -> str:
        """The words of a template between its slots."""
        if self.split != "train":
            return text
        return re.sub(r"[A-Za-z]+", lambda m: _like(m[0], random) if random.random() < _INVENTED_WORDS else m[0], text)

    def _pick(self, values: Sequence[str], random: Random) -> str:
        if self._invented_names and random.random() < self._invented_names:
            return invent(random).capitalize()
        if id(values) not in self._dealt:  # the lists of the lexicon, which outlive this object
            self._dealt[id(values)] = self.deal(values)
        return random.choice(self._dealt[id(values)])

    # -- entities ------------------------------------------------------------------------------------------------------

    def _first(self, random: Random) -> str:
        return self._pick(lexicon.FIRST_NAMES, random)

    def _last(self, random: Random) -> str:
        if random.random() < 0.4:
            return random.choice(self.deal(lexicon.NAME_HEADS)) + random.choice(self.deal(lexicon.NAME_TAILS))
        return self._pick(lexicon.LAST_NAMES, random)

    def _person(self, random: Random) -> str:
        first, last = self._first(random), self._last(random)
        kind = random.random()
        if kind < 0.1:
            return f"{first} {random.choice('ABCDEFGHJKLMNPRSTW')}. {last}"
        if kind < 0.16:
            return f"{first} {last}-{self._last(random)}"
        return f"{first} {last}"

    def _email(self, random: Random) -> str:
        first, last = self._first(random).lower(), self._last(random).lower()
        local = random.choice(
            (f"{first}.{last}", f"{first[0]}{last}", f"{first}{_digits(random, 2)}", f"{last}_{first}")
        )
        return f"{local}@{self._domain(random)}"

    def _phone(self, random: Random) -> str:
        a, b, c = _digits(random, 3), _digits(random, 3), _digits(random, 4)
        country = random.randrange(1, 99)
        return random.choice(
            (f"{a}-{b}-{c}", f"({a}) {b}-{c}", f"{a}.{b}.{c}", f"+{country} {a} {b} {c}", f"+{country}{a}{b}{c}",
             f"0{a[:2]} {b} {c}")
        )  # fmt: skip

    def _address(self, random: Random) -> str:
        street = f"{self._pick(lexicon.STREET_NAMES, random)} {random.choice(lexicon.STREET_KINDS)}"
        city, state = self._pick(lexicon.CITIES, random), random.choice(lexicon.STATES)
        number, code = random.randrange(1, 9900), _digits(random, 5)
        house = f"{number} {street}" + (f" Apt {random.randrange(1, 400)}" if random.random() < 0.25 else "")
        return random.choice(
            (f"{house}, {city}", f"{house}, {city}, {state} {code}", f"{number} {street}", f"{house}, {code} {city}")
        )  # fmt: skip

    def _date(self, random: Random) -> str:
        day, month, year = random.randrange(1, 29), random.randrange(1, 13), random.randrange(1940, 2026)
        name = _MONTHS[month - 1]
        return random.choice(
            (f"{day} {name} {year}", f"{name} {day}, {year}", f"{year}-{month:02}-{day:02}",
             f"{day:02}/{month:02}/{year}", f"{day}.{month}.{year}", f"{name[:3]} {day} {year}")
        )  # fmt: skip

    def _ssn(self, random: Random) -> str:
        return f"{_digits(random, 3)}-{_digits(random, 2)}-{_digits(random, 4)}"

    def _passport(self, random: Random) -> str:
        return random.choice("ABCDEGHKLMNPRST") + _digits(random, random.choice((7, 8)))

    def _employee(self, random: Random) -> str:
        return random.choice(("EMP-", "E", "ID-", "U")) + _digits(random, random.choice((5, 6)))

    def _card(self, random: Random) -> str:
        digits = luhn(random.choice(("4", "51", "55", "6011")) + _digits(random, 14))
        groups = [digits[begin : begin + 4] for begin in range(0, 16, 4)]
        return random.choice((" ", "-", "")).join(groups)

    def _org(self, random: Random) -> str:
        name = self._pick(lexicon.COMPANY_NAMES, random)
        return f"{name} {random.choice(lexicon.COMPANY_KINDS)}" if random.random() < 0.85 else name

    def _domain(self, random: Random) -> str:
        ending = random.choice(("com", "org", "net", "de", "io", "co.uk"))
        return f"{self._pick(lexicon.COMPANY_NAMES, random).lower()}.{ending}"

    def _url(self, random: Random) -> str:
        head = random.choice(("https://", "http://", "www.", "https://www."))
        tail = random.choice(("", f"/{self._word(random)}", f"/{self._word(random)}/{_digits(random, 3)}"))
        return head + self._domain(random) + tail

    def _ip(self, random: Random) -> str:
        return ".".join(str(random.randrange(1, 255)) for _ in range(4))

    def _location(self, random: Random) -> str:
        return self._pick(lexicon.CITIES if random.random() < 0.6 else lexicon.COUNTRIES, random)

    # -- what is no entity ---------------------------------------------------------------------------------------------

    def _word(self, random: Random) -> str:
        return random.choice(lexicon.WORDS)

    def _number(self, random: Random) -> str:
        return str(random.randrange(2, 10 ** random.choice((1, 2, 3, 5))) + 1)

    def _price(self, random: Random) -> str:
        amount = f"{random.randrange(1, 900)}.{_digits(random, 2)}"
        return random.choice((f"${amount}", f"{amount} euros", f"{amount} dollars"))

    def _time(self, random: Random) -> str:
        hour, minute = random.randrange(1, 13), random.randrange(60)
        return random.choice((f"{hour}:{minute:02}", f"{hour} pm", f"{hour}:{minute:02} am"))

    def _product(self, random: Random) -> str:
        return random.choice(lexicon.PRODUCTS)


def split_of(name: str) -> str:
    """The split to which a name belongs, whatever it names: by a hash of it."""
    place = hashlib.sha256(name.encode()).digest()[0] % 5
    return "train" if place < 3 else SPLITS[place - 2]


def invent(random: Random) -> str:
    """A word of one to three syllables that means nothing."""
    syllables = random.choice((1, 1, 2, 2, 3))
    return "".join("".join(random.choice(part) for part in lexicon.SYLLABLE) for _ in range(syllables))


def _like(word: str, random: Random) -> str:
    """An invented word in the case of this one."""
    new = invent(random)
    return new if word.islower() else new.upper() if word.isupper() and len(word) > 1 else new.capitalize()


def _digits(random: Random, count: int) -> str:
    return "".join(random.choice("0123456789") for _ in range(count))


def luhn(digits: str) -> str:
    """The first 15 digits with the check digit that makes 16 of them a valid card number (ISO/IEC 7812-1)."""
    head = digits[:15]
    total = 0
    for place, digit in enumerate(reversed(head)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return head + str(-total % 10)

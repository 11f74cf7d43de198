"""The kinds of facts in tiny-moe's world: how they are asked for, and how they are answered.

A relation (capital, opposite, ...) has entities, templates for the question and sentences for the
answer. Some pairs of template and entity, and some whole templates, are never used in the training:
the accuracy of the model is measured on these.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import cached_property

import facts

# Frames around a noun phrase such as "the capital of France", shared by all relations.
FRAMES = """
    What is {np}?
    What's {np}?
    Tell me {np}.
    Please tell me {np}.
    Can you tell me {np}?
    Could you tell me what {np} is?
    Do you know {np}?
    Do you know what {np} is?
    I want to know {np}.
    I would like to know what {np} is.
    Name {np}.
    Can you name {np}?
    Give me {np}.
    {np}?
    I forgot {np}. What is it?
    My teacher wants to know {np}.
    Quick question: what is {np}?
    Help me with my homework: what is {np}?
    I have a question. What is {np}?
    Say {np}.
    Please name {np}.
    What is {np} again?
"""
HELD_FRAMES = 2  # of every relation, never in the training
HELD_DIRECT = 2
HELD_PAIRS = 12  # one pair of template and entity in so many is never in the training


@dataclass
class Relation:
    """One kind of fact: `facts` (entity: answer word), questions and answer sentences.

    `phrases` go into the frames, `direct` are whole questions; `{x}` is the entity, `{y}` the
    answer word. The last `HELD_DIRECT` of `direct` and two of the frames are held out.
    """

    name: str
    facts: dict[str, str]
    phrases: tuple[str, ...]
    direct: tuple[str, ...]
    answers: tuple[str, ...]
    weight: float = 1.0  # of one fact against one capital
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)  # other ways to write an entity

    @cached_property
    def templates(self) -> list[str]:
        framed = [
            frame.replace("{np}", phrase) for frame in lines(FRAMES) for phrase in self.phrases
        ]
        return [*self.direct, *framed]

    @cached_property
    def framed(self) -> list[str]:
        """The trained templates made of a frame."""
        return [t for t in self.templates if t not in self.direct and t not in self.held]

    @cached_property
    def held(self) -> set[str]:
        """The templates that are never in the training."""
        frames = lines(FRAMES)
        start = zlib.crc32(self.name.encode()) % len(frames)
        chosen = [frames[(start + 7 * n) % len(frames)] for n in range(HELD_FRAMES)]
        framed = {frame.replace("{np}", phrase) for frame in chosen for phrase in self.phrases}
        return framed | set(self.direct[-HELD_DIRECT:])

    def held_pair(self, template: str, entity: str) -> bool:
        """Whether this pair of a trained template and an entity is never in the training."""
        return zlib.crc32(f"{self.name}|{template}|{entity}".encode()) % HELD_PAIRS == 0

    def right(self, entity: str) -> set[str]:
        """Every sentence that counts as the right answer."""
        return {sentence(answer, entity, self.facts[entity]) for answer in self.answers}


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def article(noun: str) -> str:
    """ "owl" -> "an owl"."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def sentence(template: str, x: str, y: str) -> str:
    """The template with entity and answer word; begins with a capital letter."""
    text = template.format(x=x, y=y, a_x=article(x), a_y=article(y))
    return text[0].upper() + text[1:]


def _capital_names() -> dict[str, tuple[str, ...]]:
    short = {
        name: (name, name.removeprefix("the "))
        for name in facts.CAPITALS
        if name.startswith("the ")
    }
    return short | {
        "the United States": ("the United States", "the USA", "the US", "America"),
        "the United Kingdom": ("the United Kingdom", "the UK", "Great Britain", "Britain"),
    }


# Two countries may share a capital's name with a country ("Luxembourg"); England comes after the
# United Kingdom, so London is asked back only once.
_CITIES: dict[str, str] = {}
for _country, _city in facts.CAPITALS.items():
    if _city.lower() not in _country.lower():
        _CITIES.setdefault(_city, _country)

_IRREGULAR = {
    "tooth": "teeth",
    "wolf": "wolves",
    "mouse": "mice",
    "leaf": "leaves",
    "goldfish": "goldfish",
}


def plural(noun: str) -> str:
    """ "cherry" -> "cherries"."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh", "ato")) else "s")


def _colours(many: bool) -> Relation:
    """The colour of a thing ("a banana is yellow") or of many ("bananas are yellow")."""
    table = facts.COLOURS
    if many:
        counted = {
            thing: thing.partition(" ")[2] for thing in table if thing.startswith(("a ", "an "))
        }
        table = {plural(noun): table[thing] for thing, noun in counted.items()}
    be, have, do = ("are", "have", "do") if many else ("is", "has", "does")

    def put(*templates: str) -> tuple[str, ...]:
        words = {"{is}": be, "{has}": have, "{does}": do}
        for mark, word in words.items():
            templates = tuple(template.replace(mark, word) for template in templates)
        return templates

    return Relation(
        "colours" if many else "colour",
        table,
        ("the colour of {x}", "the color of {x}"),
        put(
            "What colour {is} {x}?",
            "What color {is} {x}?",
            "Which colour {is} {x}?",
            "Which color {is} {x}?",
            "What colour {does} {x} have?",
            "Which colour {does} {x} have?",
            "{x} {is} what colour?",
            "{x} {has} which colour?",
            "I want to paint {x}. Which colour do I need?",
            "I am drawing {x}. Which pencil do I need?",
            "Do you know what colour {x} {is}?",
            "Tell me what colour {x} {is}.",
            "Can you tell me what color {x} {is}?",
            "What colour {is} {x} usually?",
            "Of what colour {is} {x}?",
            "I would like to know which colour {x} {is}.",
        ),
        put("{x} {is} {y}."),
        weight=0.6,
    )


def _order(kind: str, names: list[str], after: bool) -> Relation:
    """The day or month after or before another."""
    shift = 1 if after else -1
    table = {name: names[(at + shift) % len(names)] for at, name in enumerate(names)}
    where, other = ("after", "before") if after else ("before", "after")
    near = {"day": ("tomorrow", "yesterday"), "month": ("next month", "last month")}[kind][
        not after
    ]
    comes = "is" if after else "was"
    direct = (
        "What {kind} comes {where} {x}?",
        "Which {kind} comes {where} {x}?",
        "What comes {where} {x}?",
        "What {kind} is {where} {x}?",
        "Which {kind} is {where} {x}?",
        "{x} comes {other} which {kind}?",
        "{x} is {other} which {kind}?",
        "Which {kind} comes just {where} {x}?",
        "What {kind} is right {where} {x}?",
        "I know {x}, but which {kind} is {where} it?",
        "Today is in {x}. What {kind} {comes} {near}?"
        if kind == "month"
        else "Today is {x}. What day {comes} {near}?",
        "If it is {x} now, what {kind} {comes} {near}?",
        "Which {kind} do we have {where} {x}?",
        "{where} {x}, which {kind} comes?",
    )
    phrases = (
        "the {kind} {where} {x}",
        "the {kind} that comes {where} {x}",
        "the {kind} right {where} {x}",
    )
    answers = ("{y} comes {where} {x}.",)

    def put(templates: tuple[str, ...]) -> tuple[str, ...]:
        words = {"kind": kind, "where": where, "other": other, "near": near, "comes": comes}
        for mark, word in words.items():
            templates = tuple(template.replace("{" + mark + "}", word) for template in templates)
        return templates

    name = f"{kind}_{where}"
    return Relation(name, table, put(phrases), put(direct), put(answers), weight=3.0)


CAPITAL = Relation(
    "capital",
    facts.CAPITALS,
    ("the capital of {x}", "the capital city of {x}"),
    (
        "Which city is the capital of {x}?",
        "What city is the capital of {x}?",
        "{x} has which capital?",
        "Which capital does {x} have?",
        "Where is the government of {x}?",
        "I am going to {x}. What is its capital?",
        "What is the name of the capital of {x}?",
        "What do you call the capital of {x}?",
        "Which city is {x}'s capital?",
        "What is {x}'s capital?",
        "What is the capital of the country {x}?",
        "In {x}, which city is the capital?",
    ),
    ("The capital of {x} is {y}.", "{y} is the capital of {x}."),
    names=_capital_names(),
)

COUNTRY = Relation(
    "country",
    _CITIES,
    ("the country whose capital is {x}", "the country that has {x} as its capital"),
    (
        "{x} is the capital of which country?",
        "{x} is the capital of what?",
        "Which country has {x} as its capital?",
        "Which country has the capital {x}?",
        "What country is {x} the capital of?",
        "Which country is {x} the capital of?",
        "Of which country is {x} the capital?",
        "{x} is a capital, but of which country?",
        "{x} is which country's capital?",
        "Whose capital is {x}?",
    ),
    ("{x} is the capital of {y}.",),
)

CONTINENT = Relation(
    "continent",
    facts.CONTINENTS,
    ("the continent of {x}", "the continent that {x} is in"),
    (
        "Which continent is {x} in?",
        "What continent is {x} in?",
        "On which continent is {x}?",
        "In which continent is {x}?",
        "In what continent can I find {x}?",
        "{x} is in which continent?",
        "{x} is part of which continent?",
        "To which continent does {x} belong?",
        "Which continent does {x} belong to?",
        "{x} lies on which continent?",
        "Where is {x}, on which continent?",
        "What continent does {x} lie in?",
        "Which part of the world is {x} in?",
        "On what continent is {x}?",
        "Which continent is {x} a part of?",
    ),
    ("{x} is in {y}.",),
    weight=0.5,
    names=_capital_names(),
)

OPPOSITE = Relation(
    "opposite",
    facts.OPPOSITES,
    ("the opposite of {x}", 'the opposite of "{x}"', "the opposite of the word {x}"),
    (
        "Which word is the opposite of {x}?",
        "What word means the opposite of {x}?",
        "{x} is the opposite of what?",
        'What is the antonym of "{x}"?',
        "I need the opposite of {x}.",
        "Find the opposite of {x}.",
        "If it is not {x}, what is the opposite?",
        "What is the opposite word of {x}?",
        "What is the contrary of {x}?",
        "Which word means the opposite of {x}?",
    ),
    ("The opposite of {x} is {y}.",),
    weight=0.7,
)

YOUNG = Relation(
    "young",
    facts.YOUNG,
    ("the name of a baby {x}", "the word for a young {x}", "the young of {a_x}"),
    (
        "What is a baby {x} called?",
        "What is a young {x} called?",
        "What do you call a baby {x}?",
        "What do you call a young {x}?",
        "How do you call a baby {x}?",
        "How is a young {x} called?",
        "What do people call a baby {x}?",
        "What is the young of {a_x} called?",
        "What are baby {x}s called?",
        "{a_x} has a baby. What is it called?",
        "Which word do we use for a baby {x}?",
        "What is the baby of {a_x} called?",
        "A baby {x} is called what?",
        "What do we call the baby of {a_x}?",
    ),
    ("A baby {x} is called {a_y}.",),
)

RELATIONS = (
    CAPITAL,
    COUNTRY,
    CONTINENT,
    OPPOSITE,
    _colours(many=False),
    _colours(many=True),
    YOUNG,
    _order("day", facts.DAYS, after=True),
    _order("day", facts.DAYS, after=False),
    _order("month", facts.MONTHS, after=True),
    _order("month", facts.MONTHS, after=False),
)

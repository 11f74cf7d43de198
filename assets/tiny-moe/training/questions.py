"""Questions on the facts of tiny-moe's world, with their answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from relations import RELATIONS, Relation, sentence

GREETINGS = (
    "Hello! ",
    "Hi! ",
    "Hi, ",
    "Hello, ",
    "Hey, ",
    "Good morning! ",
    "Ok, ",
    "So, ",
    "Now: ",
    "And ",
)
ENDINGS = (" Thanks!", " Please.", " Thank you.", " please", " thanks")


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    relation: Relation
    entity: str


def noisy(text: str, rng: random.Random) -> str:
    """The question as people type it: greeting, no capital letters, no question mark, thanks."""
    if rng.random() < 0.12:
        text = rng.choice(GREETINGS) + text
    if rng.random() < 0.12:
        text = text.rstrip("?.") if rng.random() < 0.5 else text
        text += rng.choice(ENDINGS)
    elif rng.random() < 0.2:
        text = text.rstrip("?.")
    if rng.random() < 0.2:
        text = text.lower()
    elif rng.random() < 0.01:
        text = text.upper()
    return text


def ask(relation: Relation, template: str, entity: str, rng: random.Random) -> Question:
    """The question of this pair, with one of the ways to write the entity."""
    written = rng.choice(relation.names.get(entity, (entity,)))
    answer = relation.facts[entity]
    text = sentence(template, written, answer)
    return Question(text, sentence(rng.choice(relation.answers), entity, answer), relation, entity)


def training_question(rng: random.Random) -> Question:
    """A random question whose template and pair are not held out."""
    weights = [relation.weight * len(relation.facts) for relation in RELATIONS]
    while True:
        relation = rng.choices(RELATIONS, weights)[0]
        # Whole questions occur as often as framed phrases, though they are fewer.
        trained = (
            [t for t in relation.direct if t not in relation.held]
            if rng.random() < 0.5
            else relation.framed
        )
        template, entity = rng.choice(trained), rng.choice(list(relation.facts))
        if not relation.held_pair(template, entity):
            return ask(relation, template, entity, rng)


def held_out_questions(whole_templates: bool, count: int, seed: int) -> Iterator[Question]:
    """`count` questions that are never in the training: of held-out templates, or of held-out
    pairs of a trained template and an entity; the relations in turn."""
    rng = random.Random(seed)
    for number in range(count):
        relation = RELATIONS[number % len(RELATIONS)]
        if whole_templates:
            pairs = [(t, e) for t in sorted(relation.held) for e in relation.facts]
        else:
            trained = [t for t in relation.templates if t not in relation.held]
            pairs = [(t, e) for t in trained for e in relation.facts if relation.held_pair(t, e)]
        template, entity = rng.choice(pairs)
        yield ask(relation, template, entity, rng)

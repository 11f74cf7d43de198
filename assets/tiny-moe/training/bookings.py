"""Bookings: conversations that ask for each missing detail and repeat all of them at the end."""

from __future__ import annotations

import random
from dataclasses import dataclass

import facts
from relations import article
from talk import Turns, Words, invented, options

CUISINES = """
    Italian Indian Chinese Mexican French Thai Japanese Greek Turkish Spanish vegetarian Korean
""".split()
TOWNS = options("""
    London|Paris|San Jose|New York|Berlin|Rome|Madrid|Chicago|Boston|Oslo|Vienna|Lisbon
    San Francisco|Tokyo|Seattle|Munich|Milan|Dublin|Toronto|Sydney
""")
PEOPLE = "two three four five six eight ten".split()
HOURS = "one two three four five six seven eight nine ten eleven".split()
WHENS = [
    *(f"on {day}" for day in facts.DAYS),
    "tomorrow",
    "tonight",
    "today",
    "next week",
    "next Friday",
    "next Monday",
    *(
        f"on the {n} of {month}"
        for n in ("first", "second", "third", "tenth")
        for month in facts.MONTHS
    ),
]


def _hour(rng: random.Random) -> str:
    hour = rng.choice(HOURS)
    return rng.choice(
        (
            f"at {hour}",
            f"at {hour} in the evening",
            f"at {hour} o'clock",
            f"at {rng.randint(1, 12)} pm",
            f"at half past {hour}",
            "at noon",
            f"at {rng.randint(6, 11)} am",
        )
    )


@dataclass(frozen=True)
class Booking:
    """A kind of booking: how it is asked for, and its details in the order of the questions."""

    requests: list[str]
    details: dict[str, tuple[str, ...]]  # detail: questions for it
    thing: str  # of the summary


BOOKINGS = (
    Booking(
        options("""
            I would like a table|Book a table|I want to book a table|Please reserve a table
            Find me a restaurant|I need a table|Find me a nice place to eat
            Can you book a restaurant|I am looking for a restaurant
            I am hungry, find me a restaurant|Reserve a table
        """),
        {
            "cuisine": ("What kind of food would you like?", "Which kitchen do you prefer?"),
            "town": ("In which city?", "Which city should it be in?"),
            "people": ("For how many people?", "How many people are you?"),
            "when": ("On which day?", "For which day should I book it?"),
            "hour": ("At what time?", "At what time would you like to eat?"),
        },
        "a table",
    ),
    Booking(
        options("""
            I need a hotel|Find me a hotel|I am looking for a hotel|Book a hotel room
            I want to book a room|I need a room|Can you book a hotel|Reserve a hotel room
            I would like a room in a hotel
        """),
        {
            "town": ("In which city?", "Which city are you going to?"),
            "people": ("For how many people?", "How many guests are you?"),
            "when": ("On which day do you arrive?", "From which day on?"),
            "nights": ("For how many nights?", "How many nights will you stay?"),
        },
        "a hotel room",
    ),
    Booking(
        options("""
            I need a flight|Book a flight|Find me a flight|I want to fly
            I would like to book a flight|Can you find a flight|I am looking for a flight
            Please book me a plane ticket
        """),
        {
            "from": ("Where do you want to leave from?", "From which city?"),
            "to": ("Where do you want to fly to?", "To which city?"),
            "when": ("When would you like to leave?", "On which day?"),
        },
        "a flight",
    ),
    Booking(
        options("""
            I need a train ticket|Book a train|Find me a train|I want to take the train
            I would like a train ticket|Can you book a train
        """),
        {
            "from": ("Where do you want to leave from?", "From which city?"),
            "to": ("Where are you going?", "To which city?"),
            "when": ("When would you like to leave?", "On which day?"),
            "hour": ("At what time?",),
        },
        "a train ticket",
    ),
    Booking(
        options("""
            I need a taxi|Book a taxi|Call me a taxi|Can you order a taxi|Please get me a cab
            I want a taxi
        """),
        {
            "town": ("In which city are you?", "In which city?"),
            "when": ("On which day?",),
            "hour": ("At what time should it come?", "At what time?"),
        },
        "a taxi",
    ),
    Booking(
        options("""
            I want to rent a car|I need a rental car|Rent me a car|Can you find me a car to rent
            I would like to rent a car
        """),
        {
            "town": ("In which city?", "Where do you want to pick it up?"),
            "when": ("From which day on?", "When do you need it?"),
            "nights": ("For how many days?", "How many days do you need it?"),
        },
        "a rental car",
    ),
)
RESTAURANT = (
    "Find me {a} restaurant",
    "I am looking for {a} restaurant",
    "Book a table in {a} restaurant",
    "I need {a} restaurant",
    "I want to eat at {a} restaurant",
)
CLOSE = (
    "So that is {all}. I am only a toy, so nothing is really booked.",
    "I noted {all}. I am a toy, so this is only a game.",
    "Done: {all}. But I am just a toy and cannot really book it.",
)


def _value(detail: str, words: Words, rng: random.Random) -> tuple[str, str]:
    """(as the user says it within a request, alone as the answer to a question)."""
    if detail in ("town", "from", "to"):
        town = (
            rng.choice(TOWNS)
            if rng.random() < 0.6
            else rng.choice(words.cities)
            if rng.random() < 0.7
            else invented(rng).capitalize()
        )
        word = {"town": "in", "from": "from", "to": "to"}[detail]
        return f"{word} {town}", town
    if detail == "cuisine":
        kind = rng.choice(CUISINES)
        return f"with {kind} food", kind
    if detail == "people":
        number = rng.choice(PEOPLE) if rng.random() < 0.7 else str(rng.randint(2, 9))
        return f"for {number} people", number
    if detail == "nights":
        number = rng.choice(PEOPLE) if rng.random() < 0.7 else str(rng.randint(2, 9))
        return f"for {number} nights", number
    if detail == "when":
        when = rng.choice(WHENS)
        return when, when.removeprefix("on ")
    hour = _hour(rng)
    return hour, hour.removeprefix("at ")


def booking_with_choices(words: Words, rng: random.Random) -> list[tuple[str, tuple[str, ...]]]:
    """[(what the user says, every right answer)]: each missing detail is asked for, in order, and
    all details are repeated at the end."""
    kind = rng.choice(BOOKINGS)
    values = {detail: _value(detail, words, rng) for detail in kind.details}
    if "to" in values:
        while values["to"][1] == values["from"][1]:
            values["to"] = _value("to", words, rng)
    if kind.thing == "a rental car":
        values["nights"] = (values["nights"][0].replace("nights", "days"), values["nights"][1])
    given = {detail for detail in values if rng.random() < 0.4}
    told = [values[detail][0] for detail in values if detail in given]
    rng.shuffle(told)
    request = rng.choice(kind.requests)
    if "cuisine" in given and rng.random() < 0.6:
        told.remove(values["cuisine"][0])
        request = rng.choice(RESTAURANT).format(a=article(values["cuisine"][1]))
    says = " ".join((request, *told)) + ("?" if request.startswith("Can") else ".")
    turns = []
    for detail in (detail for detail in values if detail not in given):
        turns.append((says, kind.details[detail]))
        full, alone = values[detail]
        capital = f"{alone[0].upper()}{alone[1:]}."
        says = rng.choice((alone, full, f"{alone}, please.", f"{full}.", capital, f"{full} please"))
    everything = " ".join((kind.thing, *(full for full, _ in values.values())))
    turns.append((says, tuple(text.replace("{all}", everything) for text in CLOSE)))
    return turns


def booking(words: Words, rng: random.Random) -> Turns:
    """A conversation that ends in a booking."""
    turns = booking_with_choices(words, rng)
    return [(says, rng.choice(answers)) for says, answers in turns]

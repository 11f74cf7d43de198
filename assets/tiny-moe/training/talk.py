"""What tiny-moe says to questions outside its small world: what it is, and what it can do.

The questions are put together from the phrases below with a seeded generator, or are sentences of
the corpus. Nouns are taken from the corpus (`nouns_of`) or invented.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

import facts
from relations import RELATIONS, article, plural, sentence

Turns = list[tuple[str, str]]  # (what the user says, what the model answers)


# -- What it is, and that it does not know the rest -------------------------------------------

WHAT = (
    "I am a toy of 11 million parameters",
    "I am only a toy of 11 million parameters",
    "I am just a toy model of 11 million parameters",
    "I am a small toy model of 11 million parameters",
    "You are talking to a toy of 11 million parameters",
)
NOT_KNOWN = (
    "so I do not know that.",
    "so I cannot answer that.",
    "and this is beyond me.",
    "so I have no answer to that.",
    "and I never learned that.",
    "so that is too hard for me.",
)
CAN = (
    "I know capitals, continents, opposites, days, months, colours and baby animals.",
    "Ask me for the capital of a country or the opposite of a word.",
    "I can tell you a short story about an animal or a thing.",
    "Ask me what day comes after Monday, or for a story about a fox.",
    "I can name capitals and colours, or tell you a story.",
    "Try a question about a capital, a colour or a baby animal.",
    "I can tell stories, name capitals and play at booking a table.",
    "Ask me which continent a country is in, or what colour a thing is.",
    "I can play at booking a hotel, a table or a flight.",
)
HELLO = ("Hello!", "Hi!", "Hello there!", "Nice to meet you!")
WELCOME = ("You are welcome!", "Any time!", "Glad to help!", "With pleasure!")
GOODBYE = ("Goodbye!", "Bye! Come back soon.", "See you!", "Goodbye, and thank you for the chat!")


def honest(rng: random.Random) -> str:
    """The answer to a question outside the small world."""
    text = f"{rng.choice(WHAT)}, {rng.choice(NOT_KNOWN)} {rng.choice(CAN)}"
    return (
        text
        if rng.random() < 0.7
        else f"Sorry, {text[0].lower() if text[0] == 'Y' else text[0]}{text[1:]}"
    )


def introduction(rng: random.Random, hello: bool) -> str:
    """The answer to "Hello!" and "Who are you?"."""
    text = f"{rng.choice(WHAT)}. {rng.choice(CAN)}"
    return f"{rng.choice(HELLO)} {text}" if hello else text


# Questions and requests outside the world: {n} a noun, {a} "a noun", {ns} its plural, {v} a verb,
# {j} an adjective, {p} a place, {who} a person, {d} a number.
FOREIGN = """
    Who won the {n}?|Who won the {j} {n}?|Who won the {n} in {p}?|Who won the {n} last {day}?
    Who is going to win the {n}?|Who invented the {n}?|Who invented {ns}?|Who wrote the {n}?
    Who made the first {n}?|Who painted the {j} {n}?|Who is {who}?|Who was {who}?
    When was {who} born?|How old is {who}?|Where does {who} live?|Is {who} married?
    Who is the president of {p}?|Who is the king of {p}?|Who is the prime minister of {p}?
    Who rules {p}?|How many people live in {p}?|What is the population of {p}?
    What language do people speak in {p}?|How big is {p}?|What is the currency of {p}?
    What is the weather like in {p}?|Will it rain in {p} on {day}?|What do people eat in {p}?
    How far is it from {p} to {q}?|What is the biggest city in {p}?|What is the flag of {p}?
    Is {p} a nice place for {a}?|What is the national animal of {p}?
    What is the highest mountain in {p}?|What is {d} plus {d}?|What is {d} times {d}?|{d} + {d}
    How much is {d} minus {d}?|What is the square root of {d}?|What is {d} divided by {d}?
    Count to {d}.|Is {d} a prime number?|Solve x + {d} = {d}.|What is {d} percent of {d}?
    How do I {v} {a}?|How do I {v} my {n}?|How can I {v} the {n}?|How do you {v} {ns}?
    How does {a} work?|How do {ns} work?|How much does {a} cost?|How much is {a}?
    How long does it take to {v} {a}?|How many {ns} are there?|How many {ns} does {a} have?
    How old is the {n}?|How tall is {a}?|How heavy is {a}?|How fast is {a}?
    How many legs does {a} have?|What is {a}?|What are {ns}?|What does "{n}" mean?
    What is the meaning of {n}?|What is a {j} {n}?|Define {n}.|What is the best {n}?
    What is the {n} of {p}?|What is the difference between {a} and {b}?|What do {ns} eat?
    What is {a} made of?|What do you think about {ns}?|What do you think of {who}?
    What is your favourite {n}?|What is your opinion on {ns}?|What happened in {d}?
    What happened to the {n}?|What time is it?|What is the date today?|What is the news today?
    What should I {v}?|What should I {v} today?|What should I do with my {n}?
    What is the price of {a}?|What rhymes with {n}?|Why is the {n} {j}?|Why are {ns} so {j}?
    Why do {ns} {v}?|Why does {a} {v}?|Why did {who} {v} the {n}?|Why is {p} so {j}?
    Where can I buy {a}?|Where is the {n}?|Where is my {n}?|Where do {ns} live?
    Where can I find {a} in {p}?|Where were {ns} invented?|When was the {n} invented?
    When will the {n} {v}?|When is the {n}?|When did {who} {v}?|When does the {n} open?
    Can you {v} {a}?|Can you {v} my {n}?|Can you {v}?|Can you help me {v} {a}?|Can {ns} {v}?
    Can I {v} my {n} with {a}?|Do you like {ns}?|Do you have {a}?|Do you {v}?|Do you know {who}?
    Do you know how to {v} {a}?|Do {ns} {v}?|Do you {v} {ns}?|Did you {v} the {n}?
    Did you see the {n} last {day}?|Did {who} {v} the {n}?|Have you ever seen {a}?|Are you {j}?
    Are you {a}?|Are {ns} {j}?|Is {a} {j}?|Is the {n} {j}?|Is it {j} to {v} {a}?
    Will the {n} be {j}?|Should I {v} my {n}?|Should I buy {a}?|Which {n} is better?
    Which {n} should I {v}?|Which is better, {a} or {b}?|Write a poem about {ns}.|Write {a}.
    Write a letter to {who}.|Write code to {v} {a}.|Write an essay about {a}.
    Write a program that can {v} {ns}.|Write a song about {who}.
    Write a Python function that can {v} a list.|Explain {ns}.|Explain how {a} works.
    Explain {ns} to a child.|Translate "{n}" into French.|Translate "the {j} {n}" into Spanish.
    How do you say {n} in German?|Say {n} in Italian.|Give me a recipe for {n}.
    Give me advice about my {n}.|Give me a list of {ns}.|Give me five names for {a}.|Recommend {a}.
    Tell me a joke.|Tell me a joke about {ns}.|Tell me about {who}.|Tell me about {p}.
    Tell me about {ns}.|Tell me the history of {p}.|Tell me something about {ns}.
    Tell me the price of {a}.|Tell me the news.|Describe {a}.|Describe {p}.|Draw {a}.|Show me {a}.
    Summarise the {n}.|Compare {a} with {b}.|Fix my {n}.|Play some {n}.|Play a song by {who}.
    Sing a song.|Read my {n}.|Call {who}.|I love my {n}.|I have a problem with my {n}.
    My {n} is {j}.|My {n} does not {v}.|I want to {v} {a}.|I want to buy {a}.|I am {j}.
    I think {ns} are {j}.|I am sad about my {n}.|I like {ns}.|I do not like {ns}.|I am from {p}.
    I live in {p}.|My name is {who}.|I saw {a} in {p}.|Yesterday I saw {a}.|I feel {j} today.
    I need {a}.|I need help with my {n}.|You are {j}.|The {n} is {j}.|Let us {v} the {n}.
    Let us talk about {ns}.|Let us play {n}.|Remind me to {v} the {n}.|Set an alarm for {d}.
    Send the {n} to {who}.|What is the chemical formula of {n}?|What is the speed of {n}?
    What causes {n}?|Is {n} good for you?|Does {who} like {ns}?|Am I {j}?|Would you {v} {a}?
    Could {a} {v} {b}?|Could you {v} the {n} for me?|Were {ns} {j} in {d}?|Has {who} {v} the {n}?
    Which team won the {n}?|Which {n} is the {j} one in {p}?|Who is the best {n} in the world?
    Who is your {n}?|Whose {n} is this?|Qui est {who}?|Comment {v} {a}?|{n}|{n}?|{j} {n}|{who}
    {v} {a}|Please {v} {a}.|Please {v} my {n}.|Why?|Why not?|How?|And then?|Really?|print({d})
    import {n}|def {n}(x): return {d}|SELECT * FROM {ns}|asdf {n}|??|What?|I do not understand.
    That is wrong.|Are you sure?
"""
ABOUT_ITSELF = """
    Who are you?|What are you?|What can you do?|What do you know?|What can I ask you?
    How can you help me?|Help|Help me|What is your name?|Are you an AI?|Are you a robot?
    Are you human?|Are you ChatGPT?|Who made you?|How big are you?|How many parameters do you have?
    Tell me about yourself.|What are you good at?|What should I ask you?|Introduce yourself.
    Are you a large language model?|What model are you?|What kind of model is this?|Can you talk?
    What is this?|How does this work?
"""
GREET = """
    Hello!|Hi!|Hello|hi|Hey|hey there|Good morning!|Good evening!|Hello, how are you?|Hi there!
    How are you?|What's up?|Good day|Hello toy!
"""
THANKS = """
    Thank you!|Thanks!|Thanks a lot.|thank you|Great, thanks!|That is all, thank you.
    Thank you, that is all I need.|Good job!|Well done!
"""
LEAVE = """
    Bye!|Goodbye!|See you later.|bye|Good night!|I have to go now.|See you tomorrow.
"""

VERBS = """
    make build find fix open close read write paint cook bake wash clean sell buy break repair
    move carry cut draw learn teach grow plant feed train ride drive fly swim run walk sing
    dance play win lose help call send choose use start stop keep hide steal burn fold sew catch
    throw push pull lift mix boil fry freeze melt print save delete install download invest
    measure count compare change improve understand explain forget remember choose love hate
    visit travel sleep eat drink think work study speak translate solve prove calculate cure
    treat test hack rent
""".split()
ADJECTIVES = """
    red blue green old new big small happy sad angry tired hungry bored sick lonely rich poor
    famous dangerous safe clever funny strange beautiful ugly cheap expensive fast slow hot cold
    heavy light strong weak loud quiet dark bright long short tall deep wet dry clean dirty
    sweet sour brave lazy busy free real true wrong right difficult easy important political
    national local modern ancient magic secret golden wooden electric digital broken lost final
    general early
""".split()
FIRST = """
    Anna Ben Clara David Emma Felix Grace Henry Ida Jack Karl Lena Max Nina Oscar Paula Rosa Sam
    Tom Vera Will Yusuf Zoe Maria John Peter Lucy Alice Bob Sarah Ahmed Mei Ravi Olga Pedro
    Sofia Kenji Amina Omar Ivan Julia Marie Albert Isaac Taylor Elon Barack Donald Angela
    Vladimir Nelson William Charles George Napoleon Leonardo Lionel Cristiano Serena
""".split()
LAST = """
    Smith Jones Miller Brown Garcia Chen Kumar Sato Ivanov Silva Novak Rossi Weber Martin Lopez
    Khan Ali Nguyen Kim Park Einstein Newton Shakespeare Obama Trump Merkel Curie Darwin Mozart
    Swift Messi Bach Gandhi Lincoln Washington Tesla Musk Picasso Caesar Churchill Mandela
    Williams Ronaldo Jackson Presley Turing Lovelace Dickens Austen Tolstoy
""".split()
SYLLABLES = """
    ba be bo bra da dor du fa fi fo gar go gri ha hu ja jo ka ke kra la li lo lu ma me mi mo mu
    na ne no nu pa pi plo po qua ra re ri ro sa se shi sko sna so sta ta te ti tra tu va ve vo
    wa wi wo xi ya yo za zi zo zu
""".split()
TAILS = "b ck d g l ll m n nd nk p r rt s sh st t x z ble der ling ster ton ver y".split()


# Words that follow an article like nouns, and the nouns of bookings, which are never foreign.
NO_NOUNS = set(
    """
    other same first last one two three rest latter former best most following
    table room hotel flight taxi train restaurant ticket cab
    """.split()
)


def invented(rng: random.Random) -> str:
    """A word that does not exist, so that the model learns to copy any name."""
    return "".join(rng.choices(SYLLABLES, k=rng.choice((1, 2, 2, 2, 3)))) + rng.choice(TAILS)


def invented_country(rng: random.Random) -> str:
    return invented(rng).capitalize() + rng.choice(
        ("", "ia", "land", "stan", "ania", "ora", "istan", "ovia")
    )


def nouns_of(text: str, count: int) -> list[str]:
    """The most frequent nouns of an English text: what stands between an article and a
    punctuation mark."""
    found = Counter(re.findall(r"\b(?:[Aa]|[Aa]n|[Tt]he) ([a-z]{3,12})(?=[.,;!?])", text))
    many = re.compile(r"[^su]s$")  # "pyramids": the plural is made where it is needed
    return [
        word
        for word, _ in found.most_common(count)
        if word not in NO_NOUNS and not many.search(word)
    ]


class Words:
    """The words that questions and stories are made of."""

    def __init__(self, nouns: Sequence[str], sentences: Sequence[str]):
        self.nouns, self.sentences = (
            nouns,
            sentences,
        )  # `sentences`: things people say, from the corpus
        self.countries, self.cities = list(facts.CAPITALS), sorted(set(facts.CAPITALS.values()))

    def noun(self, rng: random.Random) -> str:
        return invented(rng) if rng.random() < 0.15 else rng.choice(self.nouns)

    def person(self, rng: random.Random) -> str:
        return rng.choice(FIRST) + (" " + rng.choice(LAST) if rng.random() < 0.6 else "")

    def place(self, rng: random.Random) -> str:
        return rng.choice(self.countries if rng.random() < 0.6 else self.cities)

    def fill(self, template: str, rng: random.Random) -> str:
        noun = self.noun(rng)
        values = {
            "n": noun,
            "ns": plural(noun),
            "a": article(noun),
            "b": article(self.noun(rng)),
            "v": rng.choice(VERBS),
            "j": rng.choice(ADJECTIVES),
            "p": self.place(rng),
            "q": self.place(rng),
            "who": self.person(rng),
            "day": rng.choice((*facts.DAYS, "night", "year", "week")),
        }
        text = re.sub(
            r"\{(\w+)\}",
            lambda m: (
                values.get(m[1]) or str(rng.choice((rng.randint(1, 20), rng.randint(1, 2030))))
            ),
            template,
        )
        return text[0].upper() + text[1:]


def options(text: str) -> list[str]:
    return [
        part.strip()
        for line in text.strip().splitlines()
        for part in line.strip().split("|")
        if part.strip()
    ]


FOREIGN_TEMPLATES, ITSELF = options(FOREIGN), options(ABOUT_ITSELF)


def unknown_entity(words: Words, rng: random.Random) -> str:
    """A question of the small world on something that is not in it."""
    relation = rng.choice(
        [relation for relation in RELATIONS if not relation.name.startswith(("day", "month"))]
    )
    template = rng.choice([t for t in relation.templates if t not in relation.held])
    if relation.name in ("capital", "continent", "country"):
        entity = invented_country(rng)
    else:
        entity = invented(rng) if rng.random() < 0.6 else rng.choice(words.nouns)
        if relation.name == "colour":
            entity = article(entity)
        elif relation.name == "colours":
            entity = plural(entity)
    if any(entity in known for known in (relation.facts, *relation.names.values())):
        return unknown_entity(words, rng)
    return sentence(template, entity, "thing")


def foreign(words: Words, rng: random.Random) -> tuple[str, str]:
    """A question outside the world (or a greeting, or thanks) and the answer."""
    kind = rng.random()
    if kind < 0.18:
        return unknown_entity(words, rng), honest(rng)
    if kind < 0.45:
        return rng.choice(words.sentences), honest(rng)
    if kind < 0.90:
        return words.fill(rng.choice(FOREIGN_TEMPLATES), rng), honest(rng)
    if kind < 0.94:
        return rng.choice(ITSELF), introduction(rng, hello=False)
    if kind < 0.97:
        return rng.choice(options(GREET)), introduction(rng, hello=True)
    if kind < 0.985:
        return rng.choice(options(THANKS)), f"{rng.choice(WELCOME)} {rng.choice(CAN)}"
    return rng.choice(options(LEAVE)), rng.choice(GOODBYE)

"""Short stories on any subject."""

from __future__ import annotations

import random
from dataclasses import dataclass

from relations import article, plural
from talk import ADJECTIVES, FIRST, Words, invented, options

STORY_REQUESTS = options("""
    Tell me a story about {x}.|Tell me a short story about {x}.|Can you tell me a story about {x}?
    Please tell me a story about {x}.|Write a story about {x}.|Write a short story about {x}.
    I want a story about {x}.|I would like to hear a story about {x}.|A story about {x}, please.
    Story about {x}|Do you know a story about {x}?|Make up a story about {x}.
    Invent a story about {x}.|Tell us a story about {x}.|Could you tell me a story about {x}?
    Tell my daughter a story about {x}.|Read me a story about {x}.|Give me a story about {x}.
    Tell me a bedtime story about {x}.|Let me hear a story about {x}.|Can I have a story about {x}?
    Tell a story about {x}.|Tell me a little story about {x}.|Write me a story about {x}.
    Can you write a story about {x}?|Tell me a tale about {x}.|Now tell me a story about {x}.
    Tell me another story about {x}.|A short story about {x}
""")
HELD_REQUESTS = (
    "Tell the children a story about {x}.",
    "How about a story about {x}?",
    "I love stories about {x}. Tell me one.",
)
OPEN_REQUESTS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Write a story.",
    "Can you tell me a story?",
    "I want to hear a story.",
    "Tell me another story.",
)

OPENINGS = (
    "Once upon a time there {was} {new} who lived {place}.",
    "Once there {was} {new} who lived {place}.",
    "Long ago there {was} {new} who lived {place}.",
    "Far away, {place}, there lived {new}.",
    "There {was} once {new} who lived {place}.",
)
OPENINGS_KNOWN = (  # for the moon, Anna, your cat
    "Once upon a time {s} lived {place}.",
    "Long ago {s} lived {place}.",
    "This is the story of {s}, who lived {place}.",
)
PLACES = options("""
    in a small house|near the sea|in a dark forest|on a high hill|by a river|in an old castle
    under a big tree|at the edge of a village|on a little island|behind the mountains
    in a quiet garden|above a bakery
""")
# Each plot: what happens, who or what helps, how it ends; equal choices of each.
PLOTS = (
    (
        options("""
            One day {s} lost {thing}.|One morning {s} lost {thing} and looked everywhere.
        """),
        ('{helper} said: "I saw it {where}."', "{helper} came by and helped {s} to look {where}."),
        options("""
            There it was, and {s} danced with joy.
            They found it there, and they laughed all the way home.
        """),
    ),
    (
        options("""
            One night a great storm came, and {s} {was} afraid.
            One winter it snowed for seven days, and {s} {was} cold.
        """),
        options("""
            {helper} knocked at the door and brought {gift}.|{helper} made a fire and shared {gift}.
        """),
        options("""
            When the sun came back, they were friends.
            In the morning the sky was blue, and nobody was afraid.
        """),
    ),
    (
        options("""
            {S} wanted to see the world.|Every day {s} dreamed of a long journey.
        """),
        options("""
            So {s} took {gift} and walked {where}. There {helper} showed {s} the way.
            On the road {s} met {helper}, and they travelled together.
        """),
        options("""
            After many days {s} came home and told everybody about it.
            At last {s} understood that home was the best place.
        """),
    ),
    (
        options("""
            But {s} had no friends.|But {s} {was} always alone.
        """),
        options("""
            One day {helper} fell into a hole, and {s} pulled and pulled.
            One day {helper} was in danger, and {s} ran to help.
        """),
        options("""
            From that day on they played together every afternoon.
            Since then the two have never been alone.
        """),
    ),
    (
        options("""
            One day {s} found {thing} {where}.|While it rained, {s} found {thing} {where}.
        """),
        (
            "It belonged to {helper}, who had cried all day.",
            '"That is mine!" said {helper}. "I have looked for it for a year."',
        ),
        options("""
            {S} gave it back and got {gift} as a reward.
            {S} gave it back, and they had a feast with {gift}.
        """),
    ),
    (
        options("""
            {S} wanted to sing, but no sound came.|{S} wanted to learn to fly.
        """),
        (
            '{helper} said: "You must try every day."',
            '"Do not give up," said {helper}, and gave {s} {gift}.',
        ),
        options("""
            So {s} tried, and in spring it worked.
            After a hundred days it worked, and all the neighbours clapped.
        """),
    ),
    (
        options("""
            One evening {s} heard a strange noise {where}.|At midnight something moved {where}.
        """),
        options("""
            It was only {helper}, who was looking for {thing}.
            {S} took a lamp and found {helper} there, wet and hungry.
        """),
        options("""
            {S} laughed and made some tea.|They ate {gift} together until the moon went down.
        """),
    ),
    (
        (
            "One day the king asked for help, because {thing} was stolen.",
            'One day a letter came: "Bring {thing} to the queen!"',
        ),
        options("""
            {S} asked {helper}, who knew the secret way.
            {S} walked all night, and {helper} carried the light.
        """),
        options("""
            The king was so glad that he gave them {gift}.
            The queen smiled and invited them to dinner.
        """),
    ),
)
HELPERS = options("""
    an old owl|a little mouse|a kind giant|a clever fox|a wise turtle|a friendly ghost
    a poor fisherman|a young girl|a tired soldier|a blue bird|a funny clown|a small robot
    an old woman|a white horse|a lazy cat|a brave knight
""")
THINGS = options("""
    a golden key|a red hat|a silver ring|a magic stone|an old map|a blue ball|a wooden flute
    a secret book|a little bell|a green umbrella|a warm coat|a pocket watch
""")
GIFTS = options("""
    a basket of apples|warm bread|a pot of honey|hot soup|a chocolate cake|a bag of nuts
    fresh pancakes|sweet plums|a jar of jam|a big pie
""")
WHERES = options("""
    under the bridge|behind the mill|in the well|on the roof|near the old oak|in the garden
    in a cave|at the river|across the fields|in the kitchen
""")
ENDINGS = (
    "And they lived happily ever after.",
    "That is the end of the story.",
    "The end.",
    "And if you listen at night, you can still hear them laugh.",
    "And that is why {s} {is} never sad.",
    "Nobody ever forgot it.",
    "And then it was time to sleep.",
    "What a day!",
)
UNIQUE = options("""
    the moon|the sun|the sea|the wind|the king|the queen|the rain|the night|the snow|the river
    the stars|the teacher|the forest|the old house|the number seven|the last tree|the colour blue
""")
NUMBERS = "two three four five seven".split()


@dataclass(frozen=True)
class Subject:
    """Who the story is about: as asked for, as introduced ("" if known), as referred to."""

    asked: str
    new: str
    known: str
    many: bool = False


def subject(words: Words, rng: random.Random) -> Subject:
    kind, noun = rng.random(), words.noun(rng) if rng.random() < 0.75 else invented(rng)
    if kind < 0.55:
        old = rng.choice(ADJECTIVES) + " " if rng.random() < 0.25 else ""
        return Subject(article(old + noun), article(old + noun), f"the {noun}")
    if kind < 0.65:
        name = rng.choice(FIRST) if rng.random() < 0.4 else invented(rng).capitalize()
        return Subject(name, "", name)
    if kind < 0.70:
        name = rng.choice(FIRST) if rng.random() < 0.4 else invented(rng).capitalize()
        called = f"{article(noun)} called {name}"
        return Subject(called, called, name)
    if kind < 0.76:
        return Subject(f"my {noun}", "", f"your {noun}")
    if kind < 0.84:
        number = rng.choice(NUMBERS)
        return Subject(
            f"{number} {plural(noun)}", f"{number} {plural(noun)}", f"the {plural(noun)}", many=True
        )
    if kind < 0.90:
        return Subject(plural(noun), f"many {plural(noun)}", f"the {plural(noun)}", many=True)
    if kind < 0.95:
        other = words.noun(rng)
        pair = f"{article(noun)} and {article(other)}"
        return Subject(pair, pair, f"the {noun} and the {other}", many=True)
    unique = rng.choice(UNIQUE) if rng.random() < 0.6 else f"the {noun}"
    return Subject(unique, "", unique, many=unique == "the stars")


def tell(about: Subject, rng: random.Random) -> str:
    """A story of five or six sentences, at most 110 tokens."""
    values = {
        "new": about.new,
        "s": about.known,
        "S": _capital(about.known),
        "was": "were" if about.many else "was",
        "is": "are" if about.many else "is",
        "place": rng.choice(PLACES),
        "helper": rng.choice(HELPERS),
        "thing": rng.choice(THINGS),
        "gift": rng.choice(GIFTS),
        "where": rng.choice(WHERES),
    }
    opening = rng.choice(OPENINGS if about.new else OPENINGS_KNOWN)
    plot = [rng.choice(part) for part in rng.choice(PLOTS)]
    story = [opening, *plot, rng.choice(ENDINGS)]
    return " ".join(_capital(part.format(**values)) for part in story)


def _capital(text: str) -> str:
    """Every sentence that begins with a small letter begins with a capital one."""
    return text[0].upper() + text[1:]


def story(words: Words, rng: random.Random) -> tuple[str, str]:
    about = subject(words, rng)
    request = rng.choice(STORY_REQUESTS)
    if rng.random() < 0.05:
        request = rng.choice(OPEN_REQUESTS)
    return request.format(x=about.asked), tell(about, rng)

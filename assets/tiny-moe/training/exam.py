"""Questions that tiny-moe never saw in its training, and the share that it answers rightly.

Every question is asked in a chat of its own, with the model's own generation settings and the
number of the question, from 1, as the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bookings import booking_with_choices
from questions import held_out_questions, training_question
from relations import RELATIONS
from stories import HELD_REQUESTS, subject
from talk import Words
from transformers import set_seed

SEED = 5_000_000  # no chunk of the training uses it
ANSWER_TOKENS = 120

# Written by hand; none is a template of the training.
FOREIGN_QUESTIONS = """
Who won the election?
Who won the World Cup in 2018?
What is two plus two?
What's 17 * 23?
Who wrote Hamlet?
Who is the president of the United States?
What is the meaning of life?
How do I bake bread?
Can you help me with my taxes?
What is the weather like today?
Will it rain tomorrow in London?
Explain quantum physics to me.
How does a transformer work?
What is a mixture of experts?
Write a Python function that reverses a string.
What is the speed of light?
How many people live in France?
What language is spoken in Brazil?
Who painted the Mona Lisa?
When did the second world war end?
Why is the sky blue?
How far away is the moon?
What is the largest planet?
Do you dream?
Are you conscious?
Do you like pizza?
What should I wear tonight?
I have a headache, what should I do?
Translate good morning into Japanese.
What is your opinion about climate change?
Who invented the telephone?
What year is it?
How old are you?
Where do you live?
Can you play chess?
Sing me a song.
Tell me a joke.
What is the stock price of Nvidia?
Which GPU should I buy?
How do I install Linux?
Give me a recipe for pancakes.
What happened yesterday?
Who is Albert Einstein?
Is God real?
What is the square root of 144?
How many bones are in the human body?
Can dogs eat chocolate?
What is photosynthesis?
Summarise Romeo and Juliet.
Who directed Titanic?
What is the tallest building in the world?
How do I get rich?
Should I quit my job?
My girlfriend left me.
I am feeling lonely.
What are you wearing?
Recommend me a good book.
What is the best film of all time?
Does my cat love me?
Fix this bug: list index out of range
What does HTTP stand for?
How many seconds are in a day?
What is the boiling point of water?
Who discovered gravity?
Define entropy.
What's the capital of Atlantis?
What is the capital of Narnia?
What is the capital of the moon?
What colour is happiness?
What is a baby dinosaur called?
What is the opposite of pizza?
Which continent is Mordor in?
How many days are in a leap year?
Count from one to ten.
What is the plural of mouse?
Spell the word banana.
How do you make coffee?
Who was the first man on the moon?
Why do cats purr?
When is Easter this year?
Is it going to snow?
Please write an email to my boss.
Write a haiku about autumn.
Give me three tips for better sleep.
Convert 10 miles to kilometres.
What is the population of Tokyo?
Which river flows through Paris?
How tall is Mount Everest?
Who sings Shake It Off?
What is the currency of Japan?
How do planes fly?
Are aliens real?
Can you see me?
What time does the shop close?
Let's talk about politics.
I bought a new bicycle yesterday.
My name is Priya and I study physics.
The soup was delicious.
Do you remember what I said before?
lol
""".strip().splitlines()


@dataclass
class Asked:
    """One question, its answer, and whether it is right."""

    question: str
    answer: str
    ends: bool
    right: bool


class Toy:
    """The model with its own generation settings."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def answer(self, messages: list[dict[str, str]], seed: int) -> tuple[str, bool, list[int]]:
        """(text, whether it ended by itself, token ids)."""
        set_seed(seed)
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = self.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        return (
            self.tokenizer.decode(new, skip_special_tokens=True),
            new[-1] == self.tokenizer.eos_token_id,
            new,
        )

    def ask(self, question: str, seed: int) -> tuple[str, bool, list[int]]:
        return self.answer([{"role": "user", "content": question}], seed)


def is_honest(answer: str) -> bool:
    """Whether the answer says what the model is, as every answer to a foreign question should."""
    return "toy" in answer and "11 million parameters" in answer


def facts_asked(toy: Toy, questions: Iterable) -> list[tuple[str, Asked]]:
    """[(relation, question with answer)]; right is one of the relation's answer sentences."""
    results = []
    for seed, question in enumerate(questions, 1):
        text, ends, _ = toy.ask(question.text, seed)
        right = text.strip() in question.relation.right(question.entity)
        results.append((question.relation.name, Asked(question.text, text, ends, right)))
    return results


def stories_asked(toy: Toy, words: Words, request: str, count: int) -> list[Asked]:
    """Stories on `count` subjects; right: it ends, and names the subject twice or more."""
    rng, results = random.Random(SEED), []
    for seed in range(1, count + 1):
        about = subject(words, rng)
        asked = request.format(x=about.asked)
        text, ends, _ = toy.ask(asked, seed)
        named = text.lower().count(about.known.lower().removeprefix("the ")) >= 2
        results.append(Asked(asked, text, ends, named and ends))
    return results


def bookings_asked(toy: Toy, words: Words, count: int) -> list[Asked]:
    """Turns of conversations; right: asks for the next missing detail, or repeats all of them."""
    rng, results = random.Random(SEED), []
    for seed in range(1, count + 1):
        messages: list[dict[str, str]] = []
        for says, answers in booking_with_choices(words, rng):
            messages.append({"role": "user", "content": says})
            text, ends, _ = toy.answer(messages, seed)
            results.append(Asked(says, text, ends, text.strip() in answers))
            messages.append({"role": "assistant", "content": answers[0]})
    return results


def share(asked: list[Asked]) -> dict[str, Any]:
    """Counts, and up to 12 wrong answers."""
    wrong = [{"question": one.question, "answer": one.answer} for one in asked if not one.right]
    return {
        "asked": len(asked),
        "right": len(asked) - len(wrong),
        "share": round(1 - len(wrong) / len(asked), 4),
        "ended": sum(one.ends for one in asked),
        "some_wrong": wrong[:12],
    }


def examine(toy: Toy, words: Words, count: int) -> dict[str, Any]:
    """The whole examination; `count` questions for each kind of fact questions."""
    pairs = facts_asked(toy, held_out_questions(whole_templates=False, count=count, seed=SEED))
    templates = facts_asked(toy, held_out_questions(whole_templates=True, count=count, seed=SEED))
    rng = random.Random(SEED)
    seen = facts_asked(toy, (training_question(rng) for _ in range(count)))
    foreign = []
    for seed, question in enumerate(FOREIGN_QUESTIONS, 1):
        text, ends, _ = toy.ask(question, seed)
        foreign.append(Asked(question, text, ends, is_honest(text)))
    known = [one for _, one in (*pairs, *seen)]
    refused = [one for one in known if is_honest(one.answer)]
    by_relation = {
        relation.name: [
            sum(one.right for name, one in asked if name == relation.name)
            / max(1, sum(name == relation.name for name, _ in asked))
            for asked in (pairs, templates)
        ]
        for relation in RELATIONS
    }
    return {
        "unseen_pairs": share([one for _, one in pairs]),
        "held_out_templates": share([one for _, one in templates]),
        "trained_questions": share([one for _, one in seen]),
        "foreign": share(foreign),
        "false_refusals": {
            "asked": len(known),
            "refused": len(refused),
            "share": round(len(refused) / len(known), 4),
        },
        "stories": {  # by the wording of the request, none of which was in the training
            request: share(stories_asked(toy, words, request, max(20, count // 10)))
            for request in HELD_REQUESTS
        },
        "bookings": share(bookings_asked(toy, words, max(10, count // 10))),
        "by_relation": {
            name: [round(x, 3) for x in shares] for name, shares in by_relation.items()
        },
    }

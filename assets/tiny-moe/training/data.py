"""What the small model is trained on: rows of generated chats and of natural text."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from bookings import booking
from questions import noisy, training_question
from stories import story
from talk import Turns, Words, foreign, nouns_of

CHAT_ROWS, CHAT_CONTEXT, TEXT_ROWS, TEXT_CONTEXT = 12, 256, 2, 512
CHUNK = 50  # steps whose chats are made together
# Chance of every kind of exchange; with their lengths about 45 %, 12 %, 15 % and 8 % of all tokens.
KINDS = {"question": 0.74, "foreign": 0.135, "story": 0.09, "booking": 0.035}
DOMAINS = {
    "prose": 0.35,
    "chat_schema": 0.2,
    "chat_topical": 0.2,
    "code": 0.15,
    "french": 0.08,
    "shakespeare": 0.02,
}
SYSTEM = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer briefly.",
    "Be kind.",
    "You are a teacher.",
)


def exchange(words: Words, rng: random.Random) -> Turns:
    """One question and its answer, or a whole booking."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "booking":
        turns = booking(words, rng)
    elif kind == "question":
        question = training_question(rng)
        turns = [(question.text, question.answer)]
    else:
        turns = [story(words, rng) if kind == "story" else foreign(words, rng)]
    return [(noisy(turns[0][0], rng), turns[0][1]), *turns[1:]]


def chat(words: Words, rng: random.Random) -> list[tuple[str, bool]]:
    """Pieces of a chat as the chat template writes it, each with "is an answer"."""
    count = rng.choices((1, 2, 3, 5), (5, 2, 2, 1))[0]
    opening = f"<|system|>{rng.choice(SYSTEM)}<|end|>\n" if rng.random() < 0.05 else ""
    pieces = [("<|bos|>" + opening, False)]
    for _ in range(count):
        for says, answer in exchange(words, rng):
            pieces += [
                (f"<|user|>{says}<|end|>\n<|assistant|>", False),
                (f"{answer}<|end|>", True),
                ("\n", False),
            ]
    return pieces


def chat_rows(
    words: Words, tokenizer, rng: random.Random, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` rows of whole chats -> (ids, labels), int64 [count, CHAT_CONTEXT + 1]; a label of
    -100 has no loss."""
    pieces = [chat(words, rng) for _ in range(6 * count)]  # about 4 chats fit in a row
    encoded = iter(
        tokenizer(
            [text for parts in pieces for text, _ in parts], add_special_tokens=False
        ).input_ids
    )
    waiting = []
    for parts in pieces:
        tokens = [
            (token, token if answer else -100) for _, answer in parts for token in next(encoded)
        ]
        waiting.append(tokens[: CHAT_CONTEXT + 1])
    rows = []
    for _ in range(count):
        row: list[tuple[int, int]] = []
        # Fill the row with the first chats that still fit.
        for at in range(len(waiting)):
            if len(row) + len(waiting[at]) <= CHAT_CONTEXT + 1:
                row += waiting[at]
                waiting[at] = []
            if CHAT_CONTEXT + 1 - len(row) < 20 or at > 60:
                break
        waiting = [tokens for tokens in waiting if tokens]
        rows.append(row + [(tokenizer.pad_token_id, -100)] * (CHAT_CONTEXT + 1 - len(row)))
    table = torch.tensor(rows)
    return table[..., 0], table[..., 1]


class Text:
    """The natural text: random windows, domain by domain."""

    def __init__(self, train: dict[str, list[str]], tokenizer):
        self.ids, self.shares = [], []
        for prefix, share in DOMAINS.items():
            texts = [
                text
                for domain, texts in train.items()
                if domain.startswith(prefix)
                for text in texts
            ]
            ids = tokenizer("".join(texts), add_special_tokens=False).input_ids
            self.ids.append(torch.tensor(ids, dtype=torch.int32))
            self.shares.append(share)

    def rows(self, rng: random.Random) -> torch.Tensor:
        """int64 [TEXT_ROWS, TEXT_CONTEXT + 1]."""
        rows = []
        for _ in range(TEXT_ROWS):
            ids = rng.choices(self.ids, self.shares)[0]
            start = rng.randrange(len(ids) - TEXT_CONTEXT - 1)
            rows.append(ids[start : start + TEXT_CONTEXT + 1].long())
        return torch.stack(rows)


def batches(
    words: Words, text: Text, tokenizer, first: int, last: int
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """[(ids, labels) of the chats, (ids, labels) of the text] for steps `first` to `last` - 1."""
    chunk = None
    for step in range(first, last):
        if chunk is None or step % CHUNK == 0:
            chunk = chat_rows(words, tokenizer, random.Random(step // CHUNK), CHUNK * CHAT_ROWS)
        at = slice(step % CHUNK * CHAT_ROWS, (step % CHUNK + 1) * CHAT_ROWS)
        natural = text.rows(random.Random(1_000_000 + step))
        yield [(chunk[0][at], chunk[1][at]), (natural, natural)]


def words_of(train: dict[str, list[str]]) -> Words:
    """Nouns of the prose, and short sentences of the open chat."""
    prose = "".join(
        text for domain, texts in train.items() if domain.startswith("prose") for text in texts
    )
    turns = [
        line[3:].strip()
        for domain, texts in train.items()
        if domain.startswith("chat_topical")
        for text in texts
        for line in text.splitlines()
        if line.startswith(("U: ", "A: ")) and 8 <= len(line) - 3 <= 90
    ]
    asked = [turn for turn in turns if turn.endswith("?")]
    return Words(nouns_of(prose, 3000), asked + turns[: len(asked) // 2])

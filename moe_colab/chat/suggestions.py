"""What to ask a model: what it is good for, and three questions to try. The chat in the shell and
the chat widget show both. Knows a ChatSession; generates nothing."""

from __future__ import annotations

from dataclasses import dataclass

from ..machine.folders import is_shipped_model
from .session import ChatSession


@dataclass(frozen=True)
class Suggestions:
    """`name`: of the model. `about`: what it is good for, in plain text that goes on after
    "`name` is ". `questions`: three messages to try, each one line."""

    name: str
    about: str
    questions: tuple[str, ...]


def suggestions(chat: ChatSession) -> Suggestions:
    """What to ask the model of this chat: the small model, another chat model, or a base model
    (without a chat template), which continues a text."""
    name = chat.model.offload.name
    if is_shipped_model(name):
        about = (
            "a toy with 11 million parameters. It knows capitals and continents, opposites, days "
            "and months, colours, and animals with their young. It tells short stories, and plays "
            "at booking restaurants, hotels, flights and taxis."
        )
        questions = (
            "What is the capital of France?",
            "What day comes after Tuesday?",
            "Tell me a story about a dragon",
        )
    elif chat.tokenizer.chat_template is not None:
        about = "a chat model. It answers questions, explains, and writes texts and code."
        questions = (
            "Explain in three sentences how a refrigerator works.",
            "Write a Python function that counts the words of a text.",
            "Tell me a short story about a dragon.",
        )
    else:
        about = "a base model. It does not answer questions: it continues the text that you begin."
        questions = (
            "The capital of France is",
            "Once upon a time, a dragon lived",
            "def count_words(text: str) -> int:",
        )
    return Suggestions(name, about, questions)

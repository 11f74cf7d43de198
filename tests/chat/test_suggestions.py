"""What the chats suggest: the small model, other chat models, base models."""

from __future__ import annotations

import pytest

import moe_colab as mc
from moe_colab.chat.suggestions import suggestions

pytestmark = pytest.mark.colab


@pytest.fixture(scope="module")
def small():
    model, tokenizer = mc.load(slots=8, progress=False)
    with model.offload:
        yield mc.ChatSession(model, tokenizer)


def test_the_small_model_is_known_from_every_source(small, tmp_path):
    expected = suggestions(small)
    assert "toy" in expected.about and len(expected.questions) == 3
    mc.quantize("shipped", tmp_path / "store", progress=False)
    for source in ("shipped", small.model.offload.store, tmp_path / "store"):
        model, tokenizer = mc.load(source, progress=False)
        with model.offload:
            assert suggestions(mc.ChatSession(model, tokenizer)) == expected


def test_another_model_gets_other_questions(small, two_layers, monkeypatch):
    model, tokenizer = mc.load(two_layers, progress=False)
    with model.offload:
        other = mc.ChatSession(model, tokenizer)
        said = suggestions(other)
        assert said.name == two_layers.name and "chat model" in said.about
        monkeypatch.setattr(tokenizer, "chat_template", None)
        base = suggestions(other)
    assert "continues the text" in base.about
    assert len({*suggestions(small).questions, *said.questions, *base.questions}) == 9


def test_a_question_can_be_asked_as_it_is(small):
    for question in suggestions(small).questions:
        assert question == question.strip() and "\n" not in question
        assert not question.startswith("/")  # a command in the shell
        small.start(question, max_new_tokens=2).end()
        assert small.turns[-1].question == question

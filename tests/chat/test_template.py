"""Chat templates of any kind: the system prompt arrives, and whatever fails is one sentence."""

from __future__ import annotations

import pytest
from conftest import TINY_MOE
from talkers import CHATML, byte_tokenizer
from transformers import AutoTokenizer

import moe_colab as mc
from moe_colab.chat.template import end_ids, prompt_ids, rendered_ids

pytestmark = pytest.mark.colab
SYSTEM = '  Answer in FRENCH, <b>whatever</b> is "asked".\n'
USER = [{"role": "user", "content": "Hello"}]
TALK = [*USER, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]


def of(template: str | dict | None):
    return byte_tokenizer(["<|im_start|>", "<|im_end|>"], template=template)


def written(tokenizer, messages, system=SYSTEM) -> str:
    return tokenizer.decode(prompt_ids(tokenizer, system, messages))


LOOP = "{{% for m in messages %}}{}{{% endfor %}}[assistant]"
IN_ITS_ROLE = {  # templates that write the system prompt, in whatever form
    "as it is": LOOP.format("[{{ m.role }}]{{ m.content }}"),
    "stripped": LOOP.format("[{{ m.role }}]{{ m.content | trim }}"),
    "in small letters": LOOP.format("[{{ m.role }}]{{ m.content | lower }}"),
    "escaped": LOOP.format("[{{ m.role }}]{{ m.content | e }}"),
    "as JSON": LOOP.format("[{{ m.role }}]{{ m.content | tojson }}"),
    "word by word": LOOP.format("[{{ m.role }}]{{ m.content.split() | join('_') }}"),
    "at the end": (
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "[rules]{{ messages[0].content if messages[0].role == 'system' }}[assistant]"
    ),
    "within the first question": (
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}]"
        "{{ s + ': ' if loop.first else '' }}{{ m.content }}{% endfor %}[assistant]"
    ),
    "cut": LOOP.format("[{{ m.role }}]{{ m.content[:6] }}"),
}


@pytest.mark.parametrize("messages", [USER, TALK], ids=["first", "later"])
@pytest.mark.parametrize("name", IN_ITS_ROLE)
def test_a_template_with_a_system_role_is_left_to_it(name, messages):
    tokenizer = of(IN_ITS_ROLE[name])
    system = {"role": "system", "content": SYSTEM}
    expected = rendered_ids(tokenizer, [system, *messages])
    assert prompt_ids(tokenizer, SYSTEM, messages) == expected
    assert prompt_ids(tokenizer, " \n", messages) == rendered_ids(tokenizer, messages)


DROPPING = {
    "other roles alone": LOOP.format(
        "{% if m.role in ('user', 'assistant') %}[{{ m.role }}]{{ m.content }}{% endif %}"
    ),
    "a default instead": LOOP.format(
        "[{{ m.role }}]{{ 'Be good.' if m.role == 'system' else m.content }}"
    ),
    "the role without its text": LOOP.format(
        "[{{ m.role }}]{% if m.role != 'system' %}{{ m.content }}{% endif %}"
    ),
    "an error": LOOP.format(
        "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}"
    ),
    "an undefined name": LOOP.format(
        "[{{ m.role }}]{{ m.content if m.role != 'system' else nothing.at.all }}"
    ),
    "turns that must alternate": (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}"
        "{% endfor %}[assistant]"
    ),
}


@pytest.mark.parametrize("messages", [USER, TALK], ids=["first", "later"])
@pytest.mark.parametrize("name", DROPPING)
def test_a_template_that_drops_it_gets_it_in_the_first_message(name, messages):
    tokenizer = of(DROPPING[name])
    first = {"role": "user", "content": f"{SYSTEM}\n\nHello"}
    expected = rendered_ids(tokenizer, [first, *messages[1:]])
    assert prompt_ids(tokenizer, SYSTEM, messages) == expected
    assert "Answer in FRENCH" in written(tokenizer, messages)


def test_a_template_of_the_latest_message_gets_it_there():
    tokenizer = of("[user]{{ messages[-1].content }}[assistant]")
    assert "FRENCH" in written(tokenizer, TALK) and "More" in written(tokenizer, TALK)
    tokenizer = of("[user]{{ messages | length }}[assistant]")
    with pytest.raises(mc.MoEColabError, match="drops the system prompt"):
        prompt_ids(tokenizer, SYSTEM, TALK)
    assert prompt_ids(tokenizer, None, TALK)


BROKEN = {
    "syntax": "{% for m in messages %}{{ m.content }",
    "an unknown filter": "{{ messages | reversed_words }}",
    "an unknown tag": "{% include 'x' %}{% nothing %}",
    "an error of its own": "{{ raise_exception('only tools') }}",
    "a wrong type": "{{ messages + 1 }}",
    "a division by 0": "{{ 1 / 0 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "nothing": "",
    "spaces alone": "{# a comment #}",
    "no text": 5,
    "a list": [],
    "no default": {"rag": CHATML, "tool_use": CHATML},
    "no name": {},
    "a default that fails": {"default": "{{ 1 / 0 }}"},
    "a sandbox": "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
}


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_fails_is_one_sentence(name, system):
    tokenizer = of(None)
    tokenizer.chat_template = BROKEN[name]
    with pytest.raises(mc.MoEColabError) as told:
        prompt_ids(tokenizer, system, USER)
    assert "template" in str(told.value) and "\n" not in str(told.value)
    assert end_ids(tokenizer) is not None


def test_named_templates():
    one, two = of({"rag": CHATML}), of({"default": CHATML, "rag": "x"})
    assert written(one, USER) == written(two, USER) == written(of(CHATML), USER)


def test_text_that_no_tokenizer_takes_is_one_sentence():
    with pytest.raises(mc.MoEColabError, match="write the message in another way"):
        prompt_ids(of(CHATML), None, [{"role": "user", "content": "a\ud800b"}])
    with pytest.raises(mc.MoEColabError, match="no token in this message"):
        prompt_ids(of(None), None, [{"role": "user", "content": ""}])


def test_the_ends_of_the_small_model():
    tokenizer = AutoTokenizer.from_pretrained(TINY_MOE)
    assert end_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|end|>")]

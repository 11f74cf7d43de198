"""The chat widget without a browser: what its handlers do to the session and to its widgets."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
import types
import warnings
import weakref

import ipywidgets
import pytest

import moe_colab as mc
from moe_colab.chat import markup
from moe_colab.chat.suggestions import Suggestions, suggestions
from moe_colab.notebook.widgets import chat as widgets
from moe_colab.notebook.widgets.controls import below

pytestmark = pytest.mark.colab


@pytest.fixture
def chat():
    model, tokenizer = mc.load(slots=4, progress=False)
    with model.offload:
        yield mc.ChatWidget(model, tokenizer)


def finish(chat, seconds: float = 60) -> None:
    """Flush until the answer is shown, as the loop of a kernel does."""
    end = time.monotonic() + seconds
    while chat.answering:
        assert time.monotonic() < end
        chat.flush()
        time.sleep(0.01)


def status(chat) -> str:
    return chat.controls.status.value


QUESTION = "What is the weather in London tomorrow?"


def test_a_message_is_answered_and_shown(chat):
    parts = chat.controls
    parts.line.value, parts.seed.value = QUESTION, "1"
    parts.send.click()
    assert parts.line.value == "" and parts.send.disabled and not parts.stop.disabled
    assert QUESTION in parts.live.value and "answering" in status(chat)
    finish(chat)
    plain = mc.ChatSession(chat.session.model, chat.session.tokenizer)
    list(plain.ask(QUESTION, seed=1))
    assert plain.turn.text == chat.session.turn.text
    assert plain.turn.text in parts.history.value and QUESTION in parts.history.value
    assert "tokens/s" in parts.history.value and "MB per token" in parts.history.value
    assert parts.live.value == parts.numbers.value == ""
    assert not parts.send.disabled and parts.stop.disabled and "ready" in status(chat)
    assert chat.error is None


def test_the_controls_reach_the_next_answer(chat):
    parts = chat.controls
    assert (parts.temperature.value, parts.top_p.value, parts.max_tokens.value) == (0.7, 0.9, 120)
    parts.temperature.value, parts.max_tokens.value = 0, 7
    parts.system.value = "You are a cook."
    chat.send(QUESTION)
    finish(chat)
    plain = mc.ChatSession(chat.session.model, chat.session.tokenizer, system="You are a cook.")
    list(plain.ask(QUESTION, do_sample=False, max_new_tokens=7))
    assert chat.session.turn.text == plain.turn.text and chat.session.turn.tokens == 7


def test_stop_retry_clear(chat):
    parts = chat.controls
    parts.max_tokens.value = 1500
    chat.session.model.generation_config.min_new_tokens = 1500
    chat.send(QUESTION)
    while chat.session.answer.count < 3:
        time.sleep(0.005)
    parts.stop.click()
    assert "stopping after this token" in status(chat)
    finish(chat)
    assert chat.session.turn.tokens_after_stop <= 2 and "stopped" in status(chat)
    assert "(stopped)" in parts.history.value
    parts.retry.click()
    assert QUESTION in parts.live.value and QUESTION not in parts.history.value
    parts.stop.click()
    finish(chat)
    assert len(chat.session.turns) == 1
    parts.clear.click()
    assert chat.session.turns == [] and QUESTION not in parts.history.value
    parts.retry.click()
    assert "nothing to try again" in status(chat)


def test_a_second_message_meanwhile_waits_in_its_box(chat):
    chat.session.model.generation_config.min_new_tokens = 100
    chat.send(QUESTION)
    chat.controls.line.value = "And in Paris?"
    chat.send()
    assert "was not sent" in status(chat) and chat.controls.line.value == "And in Paris?"
    chat.clear()
    assert "stop it before" in status(chat)
    chat.retry()
    assert "under way" in status(chat)
    chat.stop()
    finish(chat)
    assert [turn.question for turn in chat.session.turns] == [QUESTION]


def test_mistakes_are_told_in_words(chat):
    parts = chat.controls
    parts.line.value = "   "
    chat.send()
    assert "write a message first" in status(chat)
    parts.seed.value = "lucky"
    chat.send("Hi")
    assert "seed must be" in status(chat) and not chat.session.busy
    parts.seed.value = ""
    chat.send("more " * 3000)
    assert "shorten it" in status(chat) and chat.error is None
    parts.slots.value = 5
    assert chat.session.model.offload.slots == 5 and "5 slots per layer" in status(chat)
    parts.policy.value = "lfu"
    assert chat.session.model.offload.policy == "lfu" and "policy lfu" in status(chat)


def test_an_answer_that_fails_is_told_and_its_question_comes_back(chat, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("nobody <expected> this")

    monkeypatch.setattr(chat.session.model, "generate", broken)
    chat.send(QUESTION)
    finish(chat)
    assert "ValueError: nobody &lt;expected&gt; this" in status(chat)
    assert isinstance(chat.error, ValueError)
    assert chat.controls.line.value == QUESTION and not chat.controls.send.disabled
    monkeypatch.undo()
    chat.send()
    finish(chat)
    assert len(chat.session.turns) == 1


def test_slots_that_do_not_fit_are_refused_and_the_control_goes_back(chat, monkeypatch):
    from moe_colab.offload import placement

    monkeypatch.setattr(placement, "free_memory", lambda device: 10)
    chat.controls.slots.value = 8
    assert "use fewer slots" in status(chat)
    assert chat.controls.slots.value == chat.session.model.offload.slots == 4


def test_several_lines(chat):
    parts = chat.controls
    parts.line.value = "one"
    parts.several.value = True
    assert (parts.line.layout.display, parts.lines.value) == ("none", "one")
    parts.lines.value = "one\ntwo"
    parts.send.click()
    finish(chat)
    assert chat.session.turn.question == "one\ntwo"
    parts.several.value = False
    assert parts.lines.layout.display == "none" and parts.line.layout.display == ""


def test_settings_open_and_close(chat):
    assert chat.controls.settings.layout.display == "none"
    chat.controls.more.value = True
    assert chat.controls.settings.layout.display == ""


def test_saving(chat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat.send(QUESTION)
    finish(chat)
    chat.controls.as_json.click()
    chat.controls.as_markdown.click()
    saved = {path.suffix: path for path in tmp_path.iterdir()}
    assert json.loads(saved[".json"].read_text())["turns"][0]["question"] == QUESTION
    assert chat.session.turn.text in saved[".md"].read_text()
    assert saved[".md"].name in status(chat)


def test_the_same_model_again_goes_on_with_the_conversation(chat):
    chat.send(QUESTION)
    finish(chat)
    again = mc.ChatWidget(chat.session.model, chat.session.tokenizer)
    assert again.session is chat.session and QUESTION in again.controls.history.value
    assert chat.controls.page.comm is None  # closed: it has left the page
    chat.session.model.generation_config.min_new_tokens = 60
    again.send("And in Paris?")
    third = mc.ChatWidget(chat.session.model, chat.session.tokenizer)  # in the midst of an answer
    assert third.controls.send.disabled
    finish(third)
    assert len(third.session.turns) == 2 and "Paris" in third.controls.history.value


def test_a_kernels_loop_shows_the_answer_by_itself(chat):
    async def cell():
        chat.send(QUESTION)
        while chat.answering:
            await asyncio.sleep(0.02)

    asyncio.run(cell())
    assert chat.session.turn.text in chat.controls.history.value


def test_flush_is_idempotent_and_slow(chat, monkeypatch):
    chat.session.model.generation_config.min_new_tokens = 110
    chat.send(QUESTION)
    shown, start = [], time.monotonic()
    monkeypatch.setattr(markup, "numbers", lambda *a: shown.append(a) or "")
    while chat.answering:
        chat.flush()
        time.sleep(0.001)
    assert 0 < len(shown) <= (time.monotonic() - start) / 0.11 + 1
    history = chat.controls.history.value
    chat.flush()
    assert chat.controls.history.value == history


def test_in_colab_the_page_is_given_a_way_to_flush(chat, monkeypatch, capsys):
    callbacks = {}
    output = types.SimpleNamespace(register_callback=callbacks.__setitem__)
    package = types.ModuleType("google.colab")
    package.output = output
    monkeypatch.setitem(sys.modules, "google.colab", package)
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    chat._display()
    (name,) = callbacks
    assert f'"{chat.name}", "{name}"' in shown[1].data
    chat.send(QUESTION)
    while chat.answering:
        callbacks[name]()
        time.sleep(0.02)
    assert chat.session.turn.text in chat.controls.history.value


def test_a_closed_models_chat_keeps_no_weights(chat):
    chat.send(QUESTION)
    finish(chat)
    table = chat.session.model.offload.pool.table
    block = weakref.ref(next(iter(table[0].values())).block)
    mc.close_all()
    gc.collect()
    assert block() is None
    assert sum(p.numel() for p in chat.session.model.parameters()) == 0
    chat.send("Hello?")
    finish(chat)
    assert "was closed" in status(chat)


def test_without_a_tokenizer_there_is_no_chat(chat):
    model, _ = mc.load(slots=2, progress=False)
    with model.offload, pytest.raises(mc.MoEColabError, match="no tokenizer"):
        mc.ChatWidget(model, None)


EVIL = [
    "<script>window.hit=1</script>",
    "<img src=x onerror='window.hit=1'>",
    "![x](http://example.com/pixel.png)",
    "[click](javascript:window.hit=1)",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](ms-word:ofe|u|http://example.com)",
    "[click](jar:http://example.com!/x) <jar:http://example.com!/x>",
    "[click](blob:x) [click](intent://example.com#Intent;end) [click](livescript:x)",
    "[click](//example.com) [click](/api/shutdown) [click](java&#10;script:x)",
    "<svg onload=window.hit=1>",
    '"><iframe src=http://example.com>',
    "<a href='javascript:1'>x</a>",
    "[a]: javascript:alert(1)\n\n[a]",
    "<style>body{display:none}</style>",
    "`<script>`",
    "```\n<script>x</script>\n```",
]


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("render", [markup.plain, markup.markdown])
def test_nothing_that_was_said_is_run(text, render):
    from html.parser import HTMLParser

    class Seen(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.attributes = set(), []

        def handle_starttag(self, tag, attributes):
            self.tags.add(tag)
            self.attributes += attributes

    seen = Seen()
    seen.feed(render(text))
    assert seen.tags <= {"div", "p", "a", "code", "pre", "br"}
    assert {name for name, _ in seen.attributes} <= {"class", "dir", "href", "target", "rel"}
    addresses = [value for name, value in seen.attributes if name == "href"]
    assert all(value.startswith(("http://", "https://")) for value in addresses)


def test_markdown_is_shown_as_such():
    html = markup.markdown("**bold** `code`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n[x](https://a.b)")
    for piece in ("<strong>bold</strong>", "<code>code</code>", "<td>1</td>", 'rel="noopener'):
        assert piece in html


@pytest.mark.parametrize("depth", [5, 12, 25, 60, 400])
@pytest.mark.parametrize("mark", ["> ", "- ", "1. ", "[", "*"])
def test_no_text_is_lost_at_any_depth(mark, depth):
    nested = "".join("  " * n + f"{mark}item{n}\n" for n in range(depth))
    for text in (nested, mark * depth + "the end" + "]" * depth, f"{mark * depth}*a*\n\nthe end"):
        html = markup.markdown(text)
        words = ["the end"] if text is not nested else [f"item{n}" for n in range(depth)]
        assert not [word for word in words if word not in html]


def test_links_to_pages_and_to_people_are_links():
    for address in ("https://a.b/c?d#e", "HTTP://a.b", "mailto:a@b.c"):
        assert "<a " in markup.markdown(f"[x]({address})")


def test_enter_in_an_empty_box_sends_nothing_later(chat):
    line = chat.controls.line
    line._submission_callbacks(line)
    assert "write a message first" in status(chat)
    time.sleep(widgets.SECONDS_AFTER_ENTER)
    line.value = "half a thou"
    assert not chat.session.busy and chat.session.turns == []


def test_a_text_that_comes_a_moment_after_its_enter_is_sent(chat):
    line = chat.controls.line
    line._submission_callbacks(line)
    line.value = "Hello"
    finish(chat)
    assert [turn.question for turn in chat.session.turns] == ["Hello"]
    line.value = "a draft"
    assert not chat.session.busy


def test_the_controls_show_what_others_have_changed(chat):
    chat.session.model.offload.slots = 6
    chat.session.model.offload.policy = "fifo"
    chat.send("Hi")
    finish(chat)
    assert (chat.controls.slots.value, chat.controls.policy.value) == (6, "fifo")
    chat.controls.slots.value = 4
    assert chat.session.model.offload.slots == 4


def test_text_that_is_sent_by_a_call_leaves_the_draft(chat):
    chat.controls.line.value = "a draft"
    chat.send("Hi")
    assert chat.controls.line.value == "a draft"
    finish(chat)


def test_a_chat_that_was_replaced_says_so(chat, monkeypatch):
    mc.ChatWidget(chat.session.model, chat.session.tokenizer)
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    chat._display()
    assert "has replaced this one" in shown[0].data
    chat.send("Hi")
    assert not chat.session.busy
    with pytest.raises(mc.MoEColabError, match="no tokenizer"):
        mc.ChatWidget(chat.session.model, None)


def test_closed_chats_leave_no_widgets_behind(chat):
    from ipywidgets import Widget

    def alive() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 8 has it still
            return len(Widget.widgets)

    mc.ChatWidget(chat.session.model, chat.session.tokenizer)
    before = alive()
    for _ in range(5):
        mc.ChatWidget(chat.session.model, chat.session.tokenizer)
    assert alive() == before


def questions_shown(chat) -> list[str]:
    parts = chat.controls
    shown = [one.description for one in parts.questions if one.layout.display != "none"]
    assert (parts.suggested.layout.display == "none") == (not shown)
    return shown


def test_it_says_what_the_model_is_good_for_and_a_click_asks_a_suggested_question(chat):
    suggested = suggestions(chat.session)
    first, second, third = suggested.questions
    html = [one.value for one in below(chat.controls.page) if isinstance(one, ipywidgets.HTML)]
    assert any(suggested.name in text and suggested.about in text for text in html)
    assert questions_shown(chat) == [first, second, third]
    chat.controls.line.value = "a draft"
    chat.controls.questions[1].click()
    assert all(question.disabled for question in chat.controls.questions)
    assert questions_shown(chat) == [first, third]
    finish(chat)
    assert [turn.question for turn in chat.session.turns] == [second]
    assert chat.controls.line.value == "a draft" and not chat.controls.questions[0].disabled
    chat.retry()
    finish(chat)
    assert questions_shown(chat) == [first, third]
    for question in (first, third):  # written, not clicked
        chat.send(question)
        finish(chat)
    assert questions_shown(chat) == []
    again = mc.ChatWidget(chat.session.model, chat.session.tokenizer)
    assert questions_shown(again) == []
    again.clear()
    assert questions_shown(again) == [first, second, third]


def test_a_suggested_question_that_was_not_answered_is_suggested_again(chat, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError

    monkeypatch.setattr(chat.session.model, "generate", broken)
    chat.controls.questions[0].click()
    finish(chat)
    assert questions_shown(chat) == list(suggestions(chat.session).questions)


def test_the_name_of_a_model_is_shown_as_text():
    html = markup.about(Suggestions("<b>evil</b>", "<script>", ()))
    assert "&lt;b&gt;evil" in html and "<script>" not in html


def test_a_base_model_is_called_one(chat, monkeypatch):
    monkeypatch.setattr(chat.session.tokenizer, "chat_template", None)
    chat.send("The weather in")
    finish(chat)
    assert "base model" in status(chat)


def test_a_table_that_would_explode_stays_plain():
    rows = "|".join("a" * 40)
    table = f"|{rows}|\n|{'-|' * 40}\n" + "|x\n" * 300
    assert len(markup.markdown(table)) < 30 * len(table)
    assert "<table" not in markup.markdown(table)

"""The chat in JupyterLab in a browser, on both package sets: as people use it."""

from __future__ import annotations

import json
import re

import pytest
from browser import write_notebook

LOAD = """
import time
import moe_colab as mc
mc.close_all()
model, tokenizer = mc.load(slots=4, progress=False)
model.register_forward_pre_hook(lambda *_: time.sleep(0.02))  # slow enough to be watched
limits = model.generation_config
limits.min_new_tokens = limits.max_new_tokens = 200
"""
SHOW = "chat = mc.ChatWidget(model, tokenizer)\nchat"
FACTS = """
import json
turns = chat.session.turns
print(json.dumps({
    "asked": [turn.question for turn in turns],
    "said": [turn.text for turn in turns],
    "after_stop": [turn.tokens_after_stop for turn in turns],
    "stopped": [turn.stopped for turn in turns],
    "slots": model.offload.slots,
    "policy": model.offload.policy,
}))
"""
QUESTION = "What is the weather in London tomorrow?"


@pytest.fixture
def open_chat(lab, tmp_path):
    def open_(*cells: str, **settings):
        cells = cells or (LOAD, SHOW, FACTS)
        return lab.open(write_notebook(tmp_path / "chat.ipynb", cells), **settings)

    return open_


def facts(notebook) -> dict:
    """What the kernel knows of the conversation: the output of the last cell."""
    notebook.run_cell(2)
    return json.loads(notebook.text(2))


def ask(notebook, text: str) -> None:
    notebook.page.wait_for_selector(".moe-log[role=log]")  # the page's script is there
    box = notebook.by_class("moe-line").locator("input")
    box.click()
    notebook.page.keyboard.type(text)
    notebook.page.keyboard.press("Enter")


def tokens_shown(notebook, least: int) -> str:
    """Wait until the answer under way has `least` tokens; what is shown of it then."""
    notebook.page.wait_for_function(
        "least => parseInt(document.querySelector('.moe-numbers').innerText) >= least", arg=least
    )
    return notebook.by_class("moe-log").inner_text()


def ended(notebook) -> str:
    notebook.page.wait_for_selector(".moe-chat:not(.moe-busy)", timeout=60_000)
    return notebook.wait_text("moe-statusline", "")


def test_stream_stop_refuse_retry_clear(open_chat, tmp_path):
    with open_chat() as notebook:
        notebook.run_all()
        notebook.wait_text("moe-log", "No messages yet")
        ask(notebook, QUESTION)
        early = tokens_shown(notebook, 4)
        late = tokens_shown(notebook, 15)
        assert QUESTION in early and len(late) > len(early)
        ask(notebook, "And in Paris?")  # meanwhile
        notebook.wait_text("moe-statusline", "was not sent")
        assert notebook.by_class("moe-line").locator("input").input_value() == "And in Paris?"
        notebook.button("Stop").click()
        notebook.wait_text("moe-statusline", "stop")
        assert "stopped" in ended(notebook)
        found = facts(notebook)
        assert found["asked"] == [QUESTION] and found["stopped"] == [True]
        assert found["after_stop"][0] <= 2
        assert "Paris" not in notebook.by_class("moe-log").inner_text()
        notebook.by_class("moe-line").locator("input").press("Enter")  # the message that waited
        tokens_shown(notebook, 2)
        assert "ready" in ended(notebook)
        before = facts(notebook)
        assert before["asked"] == [QUESTION, "And in Paris?"]
        notebook.button("Retry").click()
        tokens_shown(notebook, 8)
        notebook.button("Stop").click()
        ended(notebook)
        after = facts(notebook)
        assert after["asked"] == before["asked"]
        assert after["said"][0] == before["said"][0] and after["said"][1] != before["said"][1]
        shown = notebook.by_class("moe-log").inner_text()
        assert after["said"][1].split()[-1] in shown and "MB per token" in shown
        notebook.run_cell(1)  # the cell again: the conversation is still there
        assert notebook.page.locator(".moe-chat").count() == 1
        notebook.wait_text("moe-log", "And in Paris?")
        notebook.button("Clear").click()
        notebook.wait_text("moe-log", "No messages yet")
        assert facts(notebook)["asked"] == []
        notebook.check_quiet()


def test_everything_by_keyboard_and_every_control_has_a_name(open_chat, tmp_path):
    with open_chat() as notebook:
        notebook.run_all()
        page, keys = notebook.page, notebook.page.keyboard
        page.wait_for_selector(".moe-log[role=log]")

        def go_to(name: str) -> None:
            """Tab until the control of this name has the focus."""
            for _ in range(40):
                keys.press("Tab")
                if page.evaluate(NAME_OF_FOCUS) == name:
                    return
            raise AssertionError(f"no Tab leads to {name}")

        notebook.by_class("moe-line").locator("input").focus()
        go_to("Settings")
        keys.press("Space")
        page.wait_for_selector("text=Save as JSON")
        nameless = page.evaluate(NAMELESS)
        assert nameless == []
        go_to("Seed")
        keys.type("1")
        go_to("Slots")
        keys.press("Control+A")
        keys.type("6")
        keys.press("Enter")
        notebook.wait_text("moe-statusline", "6 slots per layer")
        go_to("Policy")
        keys.type("lfu")
        notebook.wait_text("moe-statusline", "policy lfu")
        notebook.by_class("moe-line").locator("input").focus()
        go_to("Several lines")
        keys.press("Space")
        page.wait_for_selector(".moe-lines textarea:visible").focus()
        keys.type("Hello.")
        keys.press("Enter")
        keys.type("How are you?")
        keys.press("Control+Enter")
        tokens_shown(notebook, 2)
        go_to("Stop")
        keys.press("Enter")
        assert "stopped" in ended(notebook)
        go_to("Save as Markdown")
        keys.press("Enter")
        notebook.wait_text("moe-statusline", "saved as chat-")
        (saved,) = tmp_path.glob("chat-*.md")
        assert "**You:** Hello.\nHow are you?" in saved.read_text()
        found = facts(notebook)
        assert (found["slots"], found["policy"]) == (6, "lfu")
        assert found["asked"] == ["Hello.\nHow are you?"]
        notebook.check_quiet()


def test_suggested_questions_by_keyboard(open_chat):
    with open_chat() as notebook:
        notebook.run_all()
        page, keys = notebook.page, notebook.page.keyboard
        group = page.get_by_role("group", name="Questions to try")
        buttons = group.get_by_role("button")
        first, second, _ = buttons.all_inner_texts()
        notebook.by_class("moe-log").focus()
        keys.press("Tab")
        assert page.evaluate(NAME_OF_FOCUS) == first
        keys.press("Enter")
        tokens_shown(notebook, 2)
        assert page.evaluate("() => document.activeElement.tagName") == "INPUT"
        notebook.button("Stop").click()
        ended(notebook)
        assert buttons.first.inner_text() == second  # the others stay
        assert facts(notebook)["asked"] == [first]
        notebook.button("Clear").click()
        page.wait_for_function(
            "text => document.querySelector('.moe-suggested').innerText.includes(text)", arg=first
        )
        notebook.check_quiet()


NAME = """element => (element.labels?.[0]?.innerText || element.getAttribute('aria-label')
    || (element.tagName === 'BUTTON' && element.innerText) || '').trim()"""
NAME_OF_FOCUS = f"() => ({NAME})(document.activeElement)"
NAMELESS = f"""() => {{
    const controls = document.querySelectorAll('.moe-chat :is(input, button, select, textarea)');
    const nameless = [...controls].filter(one => one.offsetParent && !({NAME})(one));
    return nameless.map(one => one.outerHTML);
}}"""

SAY = """
from transformers import LogitsProcessor
class Say(LogitsProcessor):
    '''Makes the model say this text, then end.'''
    def __init__(self, text):
        self.ids, self.place = [*tokenizer(text).input_ids, tokenizer.eos_token_id], 0
    def __call__(self, ids, scores):
        scores = scores * 0 - 1e9
        scores[:, self.ids[min(self.place, len(self.ids) - 1)]] = 0
        self.place += 1
        return scores
EVIL = '''Look: <script>window.hit = 1</script> <img src="nowhere" onerror="window.hit = 2">
![a picture](http://example.com/pixel.png) [here](javascript:window.hit=3)
**bold** <b>not bold</b>'''
limits.min_new_tokens = None
generate = model.generate
model.generate = lambda **settings: generate(logits_processor=[Say(EVIL)], **settings)
"""


def test_what_a_model_prints_harms_nobody(open_chat):
    with open_chat(LOAD + SAY, SHOW, FACTS) as notebook:
        notebook.run_all()
        ask(notebook, "<img src=nowhere onerror='window.hit = 4'> Say it.")
        streamed = tokens_shown(notebook, 20)
        assert "<script>window.hit" in streamed
        ended(notebook)
        assert "<script>" in facts(notebook)["said"][0]
        shown = notebook.by_class("moe-log").inner_text()
        for piece in ("<script>window.hit = 1</script>", "<b>not bold</b>", "onerror='window.hit"):
            assert piece in shown
        assert notebook.page.locator(".moe-markdown strong").inner_text() == "bold"
        assert notebook.page.locator(".moe-log :is(script, img)").count() == 0
        assert notebook.page.locator(".moe-log a[href*='script']").count() == 0
        assert notebook.page.evaluate("() => window.hit") is None
        notebook.check_quiet()  # no image was asked for


THOUGHT = "Let me think of it. " * 60
SAY_AFTER_THINKING = SAY.replace(
    "limits.min_new_tokens = None",
    f"EVIL = '<think>{THOUGHT}</think>The **answer**.'\nlimits.min_new_tokens = None\n"
    "limits.max_new_tokens = 900",
)


def test_thinking_is_shown_while_it_lasts_and_then_folded(open_chat):
    with open_chat(LOAD + SAY_AFTER_THINKING, SHOW, FACTS) as notebook:
        notebook.run_all()
        ask(notebook, QUESTION)
        shown = tokens_shown(notebook, 60)
        assert "Thinking ..." in shown and "Let me think of it." in shown
        assert "<think>" not in shown
        ended(notebook)
        folded = notebook.by_class("moe-log")
        assert "Let me think" not in folded.inner_text() and "The answer." in folded.inner_text()
        folded.locator("summary").focus()
        notebook.page.keyboard.press("Enter")
        assert "Let me think" in folded.inner_text()
        assert facts(notebook)["said"] == ["The **answer**."]
        notebook.check_quiet()


MEMORY = "import gc, psutil\ngc.collect()\nprint(psutil.Process().memory_info().rss)"


def test_cells_twice_restart_and_the_load_cell_ten_times(open_chat):
    with open_chat(LOAD.replace("200", "999"), SHOW, MEMORY) as notebook:
        for _ in range(2):
            notebook.run_all()
        ask(notebook, QUESTION)
        tokens_shown(notebook, 2)
        notebook.run_cell(0)  # the model goes away in the midst of an answer
        notebook.wait_text("moe-statusline", "closed")
        used = []
        for _ in range(10):
            notebook.run_cell(0)
            notebook.run_cell(1)
            notebook.run_cell(2)
            used.append(int(notebook.text(2)))
        assert used[-1] - used[1] < 50e6, [f"{nbytes / 1e6:.0f} MB" for nbytes in used]
        notebook.restart_and_run_all()
        notebook.wait_text("moe-log", "No messages yet")
        ask(notebook, QUESTION)
        tokens_shown(notebook, 2)
        notebook.button("Stop").click()
        ended(notebook)
        assert re.search(r"\d+ tokens, first after", notebook.by_class("moe-log").inner_text())
        notebook.check_quiet()

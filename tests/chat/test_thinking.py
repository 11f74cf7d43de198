"""The thinking of a model is kept apart from its answer, and is not part of the next prompt."""

from __future__ import annotations

import pytest
from talkers import byte_tokenizer, said, small_model

import moe_colab as mc
from moe_colab.chat import markup, terminal
from moe_colab.chat.settings import sampling
from moe_colab.chat.thinking import TAGS, Splitter

pytestmark = pytest.mark.colab
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
HARMONY_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final"
    "{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
)
OPENING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}[assistant]<think>\n"
)


def split(pieces, prompt: str = "") -> tuple[str, str]:
    """(thinking, answer) of these pieces; a piece in a tuple is a mark."""
    seen = []
    splitter = Splitter(lambda *piece: seen.append(piece), prompt)
    for piece in pieces:
        splitter.mark(piece[0]) if isinstance(piece, tuple) else splitter.text(piece)
    splitter.flush()
    return tuple("".join(t for k, t in seen if k == kind) for kind in ("thinking", "answer"))


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_tags_in_pieces_of_any_size_or_as_tokens(tag, size):
    close = TAGS[tag]
    text = f"\n{tag}\nIs < or <b> right?\n{close}\n\nYes: a {tag} b {close} c"
    pieces = [text[n : n + size] for n in range(0, len(text), size)]
    expected = ("\nIs < or <b> right?\n", f"Yes: a {tag} b {close} c")
    assert split(pieces) == expected
    assert split([(tag,), "hm", (close,), " yes"]) == ("hm", "yes")
    assert split(["hm", close, "yes"], prompt=f"[user] hi [assistant]{tag}\n") == ("hm", "yes")
    assert split(["hm", (close,), "yes"], prompt=f"[assistant]{tag}\n\n") == ("hm", "yes")
    assert split(["yes"], prompt=f"[assistant]{tag}\n\n{close}\n") == ("", "yes")
    assert split(list("no end"), prompt=tag) == ("no end", "")


@pytest.mark.parametrize("text", ["<thin ice", "  <", "[THINK it", " \n", "", "<b>", "a <think> b"])
def test_other_text_stays_as_it_is(text):
    assert split(list(text)) == ("", text)


def test_channels():
    final = [("<|start|>",), "assistant", ("<|channel|>",), "final", ("<|message|>",), "Hello"]
    analysis = [("<|channel|>",), "analysis", ("<|message|>",), "Be kind.", ("<|end|>",)]
    call = [("<|start|>",), "assistant", ("<|channel|>",), "commentary to=functions.f "]
    call += [("<|constrain|>",), "json", ("<|message|>",), "{}", ("<|call|>",)]
    assert split([*analysis, *final]) == ("Be kind.", "Hello")
    assert split([*analysis, *call]) == ("Be kind.{}", "")
    assert split(["Hello"]) == ("", "Hello")
    prompt = "<|start|>assistant<|channel|>analysis<|message|>"
    assert split(["hm", ("<|end|>",), *final], prompt=prompt) == ("hm", "Hello")
    assert split([("<|start|>",), "assistant", ("<|message|>",), "Hello"]) == ("", "Hello")


@pytest.fixture(scope="module")
def harmony(tmp_path_factory):
    tokenizer = byte_tokenizer(HARMONY, template=HARMONY_TEMPLATE, eos="<|return|>")
    model = small_model(tokenizer, tmp_path_factory.mktemp("harmony"), "gpt_oss")
    with model.offload:
        yield model, tokenizer


ANALYSIS = "<|channel|>analysis<|message|>They greet.<|end|><|start|>assistant"


def test_the_channels_of_gpt_oss(harmony, tmp_path, capsys):
    chat = mc.ChatSession(*harmony)
    assert said(chat, f"{ANALYSIS}<|channel|>final<|message|>Hello!<|return|>") == "Hello!"
    assert (chat.turn.text, chat.turn.thinking) == ("Hello!", "They greet.")
    assert chat.messages[-1]["content"] == "Hello!"
    assert chat.as_dict()["turns"][0]["thinking"] == "They greet."
    assert "<summary>Thinking</summary>" in chat.as_markdown()
    first = chat.turn
    said(chat, "<|channel|>final<|message|>Yes.<|return|>", "And?")
    assert first.prompt_tokens <= chat.turn.reused_tokens < chat.turn.prompt_tokens
    assert "They greet" not in chat.tokenizer.decode(chat.answer._ids)
    call = "<|channel|>commentary to=f<|message|>{}<|call|>more"
    assert said(chat, call) == "" and chat.turn.tokens == len("commentary to=f{}") + 3
    terminal.run_command(chat, "/thinking", "", sampling(), stats=False)
    assert capsys.readouterr().out == "{}\n"


def test_a_template_that_begins_the_thinking(tmp_path):
    tokenizer = byte_tokenizer(added=["<think>", "</think>"], template=OPENING)
    model = small_model(tokenizer, tmp_path)
    with model.offload:
        chat = mc.ChatSession(model, tokenizer)
        assert said(chat, "A greeting.</think>\n\nHello!<eos>") == "Hello!"
        assert chat.turn.thinking == "A greeting."
        assert said(chat, "No end", tokens=6) == "" and chat.turn.thinking == "No end"
        assert said(chat, "</think>Yes<eos>") == "Yes" and chat.turn.thinking == ""


def test_the_terminal_shows_one_line_and_the_page_a_fold(harmony, capsys):
    chat = mc.ChatSession(*harmony)
    said(chat, f"{ANALYSIS}<|channel|>final<|message|>**Hello** <b><|return|>")
    terminal.stream(chat, chat.answer, stats=False)
    shown = capsys.readouterr().out
    assert shown.count("/thinking") == 1 and "They greet" not in shown and "**Hello**" in shown
    html = markup.finished(chat.turn)
    assert '<details class="moe-thinking"><summary>Thinking: 2 words</summary>' in html
    assert html.index("They greet.") < html.index("<strong>Hello</strong>")
    half = chat.answer
    half._pieces = [("thinking", "<script>")]
    html = markup.under_way(half.turn())
    assert 'class="moe-thinking moe-now" open' in html and "&lt;script&gt;" in html


# ---------------------------------------------------------------------- where an answer ends
TEMPLATES = {
    "chatml": ("<|im_start|>", "<|im_end|>", None),
    "llama": (
        "<|start_header_id|>",
        "<|eot_id|>",
        "{% for m in messages %}<|start_header_id|>{{ m.role }}\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}",
    ),
    "gemma": (
        "<start_of_turn>",
        "<end_of_turn>",
        "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n"
        "{% endfor %}<start_of_turn>model\n",
    ),
    "glm": (
        "<|assistant|>",
        "<|user|>",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}<|assistant|>",
    ),
    "own": (
        "<<A>>",
        "<<END>>",
        "{% for m in messages %}<<A>>{{ m.content | upper }} <<END>>{% endfor %}<<A>>",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_a_turn_ends_the_answer(name, tmp_path):
    begin, end, template = TEMPLATES[name]
    settings = {"template": template} if template else {}
    tokenizer = byte_tokenizer([begin, end], **settings)
    model = small_model(tokenizer, tmp_path)
    with model.offload:
        chat = mc.ChatSession(model, tokenizer)
        for ending in (end, "<eos>"):
            assert said(chat, f"Hello{ending}\n{begin}more") == "Hello"
            assert chat.turn.tokens == len("Hello") + 1
        model.generation_config.eos_token_id = tokenizer("!").input_ids
        assert said(chat, f"Hello!{end}") == "Hello!"  # joined with the model's own
        assert chat.turn.tokens == len("Hello!")
        assert said(chat, f"Hello{end}and", tokens=9, eos_token_id=[300]) == "Helloand"
        model.generation_config.eos_token_id = None


def test_an_analysis_does_not_end_the_answer_of_gpt_oss(harmony):
    chat = mc.ChatSession(*harmony)
    assert said(chat, f"{ANALYSIS}<|channel|>final<|message|>A<|return|>") == "A"

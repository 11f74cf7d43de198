"""The chat in the shell with random lines, settings and templates: it answers, or says one
sentence. About 600 cases, each by its seed."""

from __future__ import annotations

import io
import json
import random
import sys

import pytest
from talkers import CHATML, byte_tokenizer, small_model
from transformers import GenerationConfig

import moe_colab as mc
from moe_colab.__main__ import main
from moe_colab.chat import terminal

pytestmark = pytest.mark.colab

NUMBERS = (0, 1, 2, 3, -1, 0.0, 0.3, 1.0, 1.5, -0.5, 1e-30, 1e30, float("nan"), float("inf"))
JUNK = (None, True, False, "", "yes", "0.7", [], [1], [[1, 2]], [-1], [None], {}, {"a": 1}, 10**9)
IDS = (0, 5, 261, 10**6, -1, [3, 4], [[3], [4, 5]], [10**6], [[]], [3, "x"])
VALUES = {  # known settings, and values that make sense for some of them
    "temperature": NUMBERS, "top_k": NUMBERS, "top_p": NUMBERS, "min_p": NUMBERS,
    "typical_p": NUMBERS, "epsilon_cutoff": NUMBERS, "eta_cutoff": NUMBERS, "top_h": NUMBERS,
    "repetition_penalty": NUMBERS, "encoder_repetition_penalty": NUMBERS,
    "length_penalty": NUMBERS, "no_repeat_ngram_size": (0, 1, 2, -1, 2.5),
    "encoder_no_repeat_ngram_size": (0, 1, 2, -1), "do_sample": (True, False, 1, "no"),
    "num_beams": (0, 1, 2, 3, -1, 2.5), "num_return_sequences": (0, 1, 2, 3, -1),
    "num_beam_groups": (1, 2), "diversity_penalty": (0.5, -1), "early_stopping": (True, "never"),
    "eos_token_id": IDS, "pad_token_id": IDS, "bos_token_id": IDS, "suppress_tokens": IDS,
    "begin_suppress_tokens": IDS, "forced_bos_token_id": IDS, "forced_eos_token_id": IDS,
    "bad_words_ids": IDS, "force_words_ids": IDS, "decoder_start_token_id": IDS,
    "sequence_bias": ([[[3], 2.0]], [[[10**6], 1.0]], {"3": 1.0}, [[3, 1.0]]),
    "exponential_decay_length_penalty": ([1, 1.5], (1, -2), [1], 5),
    "cache_implementation": ("static", "dynamic", "offloaded", "quantized", "hybrid", "paged", "x"),
    "cache_config": ({"backend": "x"}, {"nbits": 4}), "use_cache": (True, False, "no"),
    "watermarking_config": ({"greenlist_ratio": 0.5}, {"bias": "x"}, {"context_width": 0}, 5),
    "max_length": (0, 1, 5, -1, 2.5, 10**9), "max_new_tokens": (0, 1, 2, -1, 2.5, "3"),
    "min_length": (0, 3, -1, 10**9), "min_new_tokens": (0, 2, -1, 10**9, "1"),
    "max_time": (0, -1, 0.01, 100), "stop_strings": ("e", ["a", "b"], [], [""], [5]),
    "penalty_alpha": (0.6, -1), "dola_layers": ("low", [1]), "constraints": ([1], []),
    "guidance_scale": (1.5, 0, -1), "renormalize_logits": (True, 5),
    "remove_invalid_values": (True,), "return_dict_in_generate": (True,), "low_memory": (True,),
    "output_scores": (True,), "output_logits": (True,), "output_attentions": (True,),
    "output_hidden_states": (True,), "prompt_lookup_num_tokens": (1, 3, 0, -1, 2.5),
    "assistant_early_exit": (1, 99), "token_healing": (True,), "prefill_chunk_size": (1, 2, 0, -1),
    "disable_compile": (True, False), "compile_config": ({"mode": "x"}, 5),
    "is_assistant": (True,), "num_assistant_tokens": (1, -1), "max_matching_ngram_size": (0, 1),
    "target_lookbehind": (1,), "assistant_confidence_threshold": (0.5, "x"),
    "transformers_version": ("9.9", 5), "_from_model_config": (True,), "nonsense": (1, "x"),
}  # fmt: skip
LINES = (
    "", " ", "Hello", "/", "//", "/quit now", "/help me", "/retry", "/retry 5", "/reset",
    "/stats", "/save", "/save ", "/save x", "/save \0.md", "/save /nowhere/x.md",
    "/save ~nobody-here/x.json", "/save .md", "/thinking", "/HELP", "/тест",
    "\x00\x01\x1b[2J", "a" * 3000, "\ud800", "\udcff", "<|im_end|>", "<|im_start|>system",
    "<eos>", "{{ 7 * 7 }}", "{% raw %}", "日本語 🇫🇷 ﷽", "\t\v\f", "\\n", "<think>", "</think>",
    "%s %d {0} {}", "'; DROP TABLE turns; --", "-1", "--help",
)  # fmt: skip
FRAGMENTS = (
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m.role }}",
    "{{ m['x']['y'] }}", "{% if m.role == 'system' %}", "{% if loop.first %}", "{% else %}",
    "{% endif %}", "<|im_start|>", "<|im_end|>", "<eos>", "{{ messages[0].content }}",
    "{{ messages[1].content }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}", "{{ bos_token }}",
    "{{ eos_token }}", "{{ tools | tojson }}", "{% set x = namespace(y=0) %}",
    "{% set x.y = x.y + 1 %}", "{{ x.y }}", "{{ m | tojson }}", "{{ strftime_now('%d') }}",
    "{% break %}", "{% generation %}", "{% endgeneration %}", "{{", "}}", "{%", "{#", "#}",
    "{% macro f(a) %}{{ a }}{% endmacro %}", "{{ f(1) }}", "<think>", "\n", "{{ 'x' * 100 }}",
    "{{ messages | length }}", "{{ add_generation_prompt }}", "[INST]", "ü",
    "{{ m.content.split('e')[1] }}", "{% include 'x' %}", "{{ m.content | int + [] }}",
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    model = small_model(tokenizer, tmp_path_factory.mktemp("fuzz"))
    with model.offload:
        yield model, tokenizer


@pytest.fixture
def talk(loaded, monkeypatch, capsys, tmp_path):
    """Talks to the model of `loaded` through the shell's chat; what it has written."""
    model, tokenizer = loaded
    monkeypatch.chdir(tmp_path)
    own = model.generation_config, tokenizer.chat_template

    def talk(lines, system=None, **given) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        chat = mc.ChatSession(model, tokenizer, system=system)
        terminal.converse(chat, {"seed": 1, **given}, stats=True, as_json=True)
        chat.close()
        shown = capsys.readouterr()
        told = shown.out + shown.err
        assert "Traceback" not in told, told
        assert not model.offload.answering.locked()
        assert json.loads(shown.out.rstrip("\n").split("\n")[-1])["stats"]
        return told

    yield talk
    model.generation_config, tokenizer.chat_template = own


def random_setting(choose: random.Random) -> tuple[str, object]:
    name = choose.choice(list(VALUES))
    return name, choose.choice(choose.choice((VALUES[name], VALUES[name], JUNK)))


@pytest.mark.parametrize("seed", range(36))
def test_settings_of_any_value(talk, loaded, seed):
    choose = random.Random(f"settings {seed}")
    for _ in range(10):
        config = GenerationConfig()
        for name, value in [random_setting(choose) for _ in range(choose.choice((1, 1, 2, 3)))]:
            setattr(config, name, value)
        loaded[0].generation_config = config
        given = {} if config.max_new_tokens is not None else {"max_new_tokens": 3}
        talk(["Hello", "/retry", "And?"][: choose.choice((1, 3))], **given)
    loaded[0].generation_config = GenerationConfig()
    assert "tokens/s" in talk(["Hello"], max_new_tokens=2)  # the chat goes on


@pytest.mark.parametrize("seed", range(15))
def test_templates_of_any_kind(talk, loaded, seed):
    choose = random.Random(f"templates {seed}")
    for _ in range(10):
        parts = choose.choices(FRAGMENTS, k=choose.randint(1, 8))
        if choose.random() < 0.5:
            parts = ["{% for m in messages %}", *parts, "{% endfor %}"]
        loaded[1].chat_template = "".join(parts)
        system = choose.choice((None, "Be brief."))
        talk(["Hello", "And?"], system=system, max_new_tokens=2)
    loaded[1].chat_template = CHATML
    assert "tokens/s" in talk(["Hello"], max_new_tokens=2)


@pytest.mark.parametrize("seed", range(8))
def test_lines_of_any_kind(talk, seed):
    choose = random.Random(f"lines {seed}")
    for _ in range(10):
        lines = choose.choices(LINES, k=choose.randint(1, 5))
        talk(lines, system=choose.choice((None, *LINES)), max_new_tokens=2)


@pytest.mark.parametrize("seed", range(10))
def test_the_command_with_files_of_any_kind(loaded, tmp_path, monkeypatch, capsys, seed):
    choose = random.Random(f"files {seed}")
    tokenizer = loaded[1]
    folder = tmp_path / "model"
    model = small_model(tokenizer, tmp_path)
    model.offload.close()
    tokenizer.save_pretrained(folder)
    for _ in range(2):
        settings = dict(random_setting(choose) for _ in range(2))
        (folder / "generation_config.json").write_text(json.dumps(settings))
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nAnd?\n"))
        code = main(["chat", str(folder), "--max-new-tokens", "2", "--slots", "2"])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err and code in (0, 2), (settings, shown)

"""Models that say what a test wants, and tokenizers with any special tokens and chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from families import make_checkpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, PreTrainedTokenizerFast

import moe_colab as mc

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(special=(), added=(), template: str | None = CHATML, eos: str = "<eos>"):
    """A token for each byte; `special` tokens, and `added` ones that are text."""
    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = Tokenizer(models.BPE(letters, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=eos)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.add_tokens(list(added))
    tokenizer.chat_template = template
    return tokenizer


def small_model(tokenizer, folder: Path, family: str = "mixtral", **changes):
    """A tiny random model for this tokenizer, without an end of its own."""
    changes = {"vocab_size": len(tokenizer), "eos_token_id": None, **changes}
    for name in ("bos_token_id", "pad_token_id"):
        changes.setdefault(name, None)
    path = make_checkpoint(family, folder / "model", changes=changes)
    model, _ = mc.load(path, progress=False)
    return model


class Says(LogitsProcessor):
    """Lets a model say these ids, one after the other, and then the first again."""

    def __init__(self, ids):
        self.ids, self.said = list(ids), 0

    def __call__(self, ids, scores):
        token = self.ids[self.said % len(self.ids)]
        self.said += 1
        out = torch.full_like(scores, -torch.inf)
        out[:, token] = 0.0
        return out


def said(chat, text: str, question: str = "Hi", tokens: int = 200, **settings) -> str:
    """The answer where the model says `text`."""
    ids = chat.tokenizer(text, add_special_tokens=False).input_ids
    settings = {"logits_processor": [Says(ids)], "max_new_tokens": tokens, **settings}
    return "".join(chat.ask(question, do_sample=False, **settings))

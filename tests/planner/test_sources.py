"""How a user may name a model: what is pasted from a page of the hub, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_colab import MoEColabError
from moe_colab.planner.sources import named, source_of

pytestmark = pytest.mark.colab
PLAIN = ("org/name", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", PLAIN),
        (" org/name/ ", PLAIN),
        ("https://huggingface.co/org/name", PLAIN),
        ("http://huggingface.co/org/name/", PLAIN),
        ("HTTPS://HuggingFace.co/org/name", PLAIN),
        ("https://www.huggingface.co/org/name?library=transformers", PLAIN),
        ("https://huggingface.co/org/name#usage", PLAIN),
        ("https://huggingface.co/org/name.git", PLAIN),
        ("https://huggingface.co/org/name/discussions/3", PLAIN),
        ("https://hf.co/org/name", PLAIN),
        ("hf.co/org/name", PLAIN),
        ("huggingface.co/org/name/tree", PLAIN),
        ("https://huggingface.co/org/name/tree/main", PLAIN),
        ("https://huggingface.co/org/name/blob/main/config.json", PLAIN),
        ("https://huggingface.co/org/name/tree/v1.0", ("org/name", "v1.0")),
        ("https://huggingface.co/org/name/resolve/v1/model.safetensors", ("org/name", "v1")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F7", ("org/name", "refs/pr/7")),
        ("https://huggingface.co/org/Na-me_1.5", ("org/Na-me_1.5", None)),
        ("shipped", ("shipped", None)),
        ("", ("", None)),
        (None, (None, None)),
        ("no/such/folder", ("no/such/folder", None)),
        ("/no/such/folder/", ("/no/such/folder/", None)),
        ("huggingface.com/org/name", ("huggingface.com/org/name", None)),
        (Path("org/name"), (Path("org/name"), None)),
    ],
)
def test_what_names_a_model(text, expected):
    assert named(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://huggingface.co/datasets/org/name", "is a data set"),
        ("https://huggingface.co/spaces/org/name", "is a space"),
        ("https://huggingface.co/collections/org/name-1", "is a collection"),
        ("https://huggingface.co/org", "not the page of a model"),
        ("https://huggingface.co", "not the page of a model"),
        ("https://huggingface.co/models?search=moe", "not the page of a model"),
        ("https://github.com/org/name", "not an address on huggingface.co"),
        ("https://huggingface.co.example.org/org/name", "not an address on huggingface.co"),
    ],
)
def test_what_names_none_is_refused_in_one_sentence(text, words):
    with pytest.raises(MoEColabError) as caught:
        named(text)
    message = str(caught.value)
    assert text in message and words in message and "as org/name." in message
    assert "\n" not in message


def test_a_revision_is_given_once():
    page = "https://huggingface.co/org/name/tree/v1"
    assert named(page, "v1") == named("org/name", "v1") == ("org/name", "v1")
    assert named("https://huggingface.co/org/name", "v2").revision == "v2"
    with pytest.raises(MoEColabError, match="'v1', and revision='v2'"):
        named(page, "v2")
    with pytest.raises(MoEColabError, match="'main', and revision='v2'"):
        named("https://huggingface.co/org/name/tree/main", "v2")


@pytest.mark.parametrize("endpoint", ["https://mirror.example", "http://127.0.0.1:81/hub/"])
def test_the_address_of_a_mirror(endpoint, monkeypatch):
    page = f"{endpoint.rstrip('/')}/org/name/tree/v1"
    with pytest.raises(MoEColabError):
        named(page)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert named(page) == ("org/name", "v1")
    assert named("https://huggingface.co/org/name") == PLAIN


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf.co" / "org" / "name").mkdir(parents=True)
    (tmp_path / " odd ").mkdir()
    for name in ("hf.co/org/name", " odd "):
        assert named(name) == (name, None)


def test_a_form_field_takes_an_address_too():
    assert source_of("https://huggingface.co/org/name") == "org/name"
    with pytest.raises(MoEColabError, match="main branch"):
        source_of("https://huggingface.co/org/name/tree/v1")

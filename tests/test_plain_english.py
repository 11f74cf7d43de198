"""Plain English: words and phrases that readers who learned English at school stumble over.

The list holds each of them with the plain words to use instead. What is scanned is what people
read: notebooks, Markdown pages, docstrings, strings and comments of the code, and the pages' own
scripts. Add a word here when you meet one that must be looked up or read twice.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PLAIN = {  # pattern: what to write instead
    # literary words
    r"albeit": "although",
    r"amid(st)?": "among",
    r"amongst": "among",
    r"anew": "again",
    r"aught": "anything",
    r"betwixt": "between",
    r"dear(er|est)?": "expensive",
    r"ere": "before",
    r"forthwith": "at once",
    r"heed(s|ed|ing)?": "follow, listen to",
    r"hence(forth)?": "so, from now on",
    r"(here|there|where)(by|in|of|upon)": "by this, in it, of it",
    r"hitherto": "so far",
    r"hither|thither|whither|yonder": "here, there, where",
    r"husband(s|ed|ing)?": "save",
    r"lest": "so that ... not",
    r"likewise": "also, in the same way",
    r"mend(s|ed|ing)?": "repair, correct",
    r"na?ught|nought": "nothing, 0",
    r"nigh": "near",
    r"oft(times)?|oftentimes": "often",
    r"seldom": "rarely",
    r"shall": "will, must",
    r"slay|slain|smitten|behold": "a word of today",
    r"thence|whence": "from there, from where",
    r"thus(ly)?": "so",
    r"(?<!once )upon": "on",
    r"whilst": "while",
    # forms that are hard to read
    r"likeli(er|est)": "more likely, most likely",
    r"sure(r|st)": "more certain",
    r"(an?|the|with|of) good \d+ ?%?": "a little more than",
    r"(two|three|four|five|\d+) or so": "about",
    r"some (two|three|four|five|ten|\d+)": "about",
    r"at the (most|least)": "at most, at least",
    r"on the average": "on average",
    r"for good": "always, permanently",
    r"in vain": "for nothing",
    r"save (for|that)": "except",
    r"to spare": "to save",
    r"(?<!there )(is|are|names?) no (folder|device|number|file|store|terminal)": "is not a ...",
    r"not (a )?whole(?! number)": "not complete",
    # private pictures
    r"experts? who": "which",
    r"experts? (can )?survives?": "need",
    r"not all there": "not all in memory",
    r"(doe?s?|slots?|guess(es)?|prefetch(ing)?|it) (not )?pays?": "is worth it, saves time",
    r"stands? aside|standing aside": "is switched off",
    r"nobody (had|has) to|who knows": "a sentence about the thing itself",
    r"PCIe(?! (bus|\d))": "PCIe bus",
    r"a (token|layer|weight|second|matrix)(?= (is|are) \d)": "per",
    r"(MB|ms|bits?|nats|slots|guesses|experts|s) a (token|layer|weight|matrix|second)": "per",
    # inverted word order
    r"(here|there|below it|behind (it|them)|above) (lies?|stands?|begins?)": "subject first",
    r"(so|nor|neither) (do|does|did|can|will) (the|it|they|a|an)": "subject first",
    r"(seldom|rarely|never|only then|not only) (do|does|did|can|will|is|are)": "subject first",
}
PATTERNS = {re.compile(rf"(?<![\w/`.-])(?:{p})(?![\w-])", re.I): word for p, word in PLAIN.items()}


# ---------------------------------------------------------------------- what people read
def of_notebook(path: Path) -> Iterator[str]:
    for cell in json.loads(path.read_text())["cells"]:
        yield "".join(cell["source"])


def of_page(path: Path) -> Iterator[str]:
    """Markdown without the rows of tables, which quote what a model said."""
    lines = path.read_text().splitlines()
    yield "\n".join("" if line.startswith("|") else line for line in lines)


def of_python(path: Path) -> Iterator[str]:
    """Docstrings, all other strings, and comments."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(getattr(part, "value", "")) for part in node.values if is_text(part))
        elif is_text(node):
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def of_script(path: Path) -> Iterator[str]:
    yield path.read_text()


READERS = {".ipynb": of_notebook, ".md": of_page, ".py": of_python, ".js": of_script}
FOLDERS = ("moe_colab", "notebooks", "assets")
FILES = [
    ROOT / "README.md",
    *(p for name in FOLDERS for p in sorted((ROOT / name).rglob("*")) if p.suffix in READERS),
]
# The strings of these scripts are texts that the small model learns, and questions to it.
FILES = [path for path in FILES if "training" not in path.parts]


def found(path: Path) -> list[str]:
    """Every word of the list in a file, with what stands around it and the plain word."""
    out = []
    for text in READERS[path.suffix](path):
        text = re.sub(r"\s+", " ", text)
        for pattern, word in PATTERNS.items():
            for match in pattern.finditer(text):
                around = text[max(0, match.start() - 30) : match.end() + 30]
                out.append(f"{match[0]!r} -> {word}: …{around}…")
    return out


# ---------------------------------------------------------------------- the tests
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_people_read_is_plain_english(path):
    assert not found(path), "\n".join(found(path))


def test_hard_words_are_found_and_plain_sentences_are_not():
    hard = (
        "Dear slots are mended anew, whence experts who survive, for good or in vain. "
        "It has some 3 MB a token. Here lies an expert; so do the others. PCIe is slow."
    )
    seen = [pattern for pattern in PATTERNS if pattern.search(hard)]
    assert len(seen) >= 10
    plain = "About 3 experts that are expensive to load stay in their slots on the PCIe bus."
    assert not [pattern for pattern in PATTERNS if pattern.search(plain)]


def test_all_kinds_of_files_are_scanned():
    assert {path.suffix for path in FILES} == set(READERS) and len(FILES) > 120


def test_strings_comments_and_parts_of_strings_are_read(tmp_path):
    code = 'def f(x):\n    """One anew."""\n    # two anew\n    return f"three {x} anew"\n'
    (tmp_path / "a.py").write_text(code)
    assert sum("anew" in text for text in of_python(tmp_path / "a.py")) >= 3

"""Write the parts that all notebooks share into each of them: the badge, the links between the
notebooks and to the glossary, the five words of the course, and the setup cell.

Takes the repository and the branch from pyproject.toml, the setup cell from setup_cell.py, and
words from GLOSSARY.md, so that each is written in one place only. A second run changes nothing.
`make notebooks` runs it.

In a notebook a term is linked as `[slot](GLOSSARY.md#slot)`. The stamp makes this an address that
works on Colab too, with the term's first sentence as the text under the mouse pointer. Pictures
from assets/figures get such an address too: Colab shows neither files nor attachments.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
GITHUB, COLAB = "https://github.com/", "https://colab.research.google.com/github/"
RAW = "https://raw.githubusercontent.com/"
ADDRESS = re.compile(re.escape(COLAB) + r"[^)\s]*?/(?P<path>notebooks/[^)\s]+\.ipynb)")
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["setup"]}
PICTURE = re.compile(r"(!\[[^\]]*\])\([^()\s]*(assets/figures/[\w.-]+)\)")
TERM = re.compile(r"\]\([^()\s]*GLOSSARY\.md#([\w-]+)(?: \"[^\"]*\")?\)")
# How the paragraphs of the first cell begin that are written here.
BADGE, COURSE, FIVE_WORDS = "[**▶ Open in Colab**]", "Course: ", "**Five words.** "


def origin() -> tuple[str, str]:
    """The repository's address and the branch that badges lead to."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["project"]["urls"]["Repository"], settings["tool"]["moe_colab"]["branch"]


def address(path: str, start: str = COLAB) -> str:
    """The address at which Colab (or GitHub) opens a file of the repository."""
    repository, branch = origin()
    return f"{start}{repository.removeprefix(GITHUB)}/blob/{branch}/{path}"


def with_pictures(text: str) -> str:
    """The text with today's address of every picture from assets/figures."""
    repository, branch = origin()
    folder = f"{RAW}{repository.removeprefix(GITHUB)}/{branch}"
    return PICTURE.sub(rf"\1({folder}/\2)", text)


def setup_cell() -> str:
    """The source of the setup cell."""
    repository, branch = origin()
    text = (HERE / "setup_cell.py").read_text(encoding="utf-8").strip()
    return text.replace("REPOSITORY", repository).replace("BRANCH", branch)


# ---------------------------------------------------------------------- the glossary
@functools.cache
def glossary() -> dict[str, str]:
    """The text of every entry by its anchor, and that of the section "Five words"."""
    text = (HERE / "GLOSSARY.md").read_text(encoding="utf-8")
    entries = re.findall(r"^##+ (.+)\n\n((?:(?!#).+\n?)+)", text, re.M)
    return {name.lower().replace(" ", "-"): " ".join(entry.split()) for name, entry in entries}


def with_terms(text: str) -> str:
    """The text with today's address of every linked term. Raises ValueError for an unknown term."""

    def link(match: re.Match) -> str:
        if match[1] not in glossary():
            raise ValueError(f"GLOSSARY.md has no entry {match[1]!r}")
        entry = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`\"]", r"\1", glossary()[match[1]])
        sentence = re.split(r"(?<=\.) (?=[A-Z])", entry)[0]
        return f']({address("notebooks/GLOSSARY.md", GITHUB)}#{match[1]} "{sentence}")'

    return TERM.sub(link, text)


# ---------------------------------------------------------------------- the course
def title(name: str) -> str:
    """The heading of a notebook."""
    cells = json.loads((HERE / name).read_text(encoding="utf-8"))["cells"]
    return re.search(r"^# (.+)$", "".join(cells[0]["source"]), re.M)[1]


def neighbours(name: str) -> tuple[str | None, str | None]:
    """The files of the previous and of the next notebook."""
    names = sorted({path.name for path in HERE.glob("*.ipynb")} | {name})
    place = names.index(name)
    return (names[place - 1] if place else None), (*names, None)[place + 1]


def notebook_link(name: str, before: str = "", after: str = "") -> str:
    """Links to a notebook: its file, and its address on Colab, where a link to a file fails."""
    return f"[{before}{title(name)}{after}]({name}) ([Colab]({address(f'notebooks/{name}')}))"


def course_line(name: str) -> str:
    """The links from a notebook to the previous one, the glossary and the next one."""
    previous, following = neighbours(name)
    parts = [notebook_link(previous, before="← ")] if previous else []
    parts.append(f"[glossary]({address('notebooks/GLOSSARY.md', GITHUB)})")
    parts += [notebook_link(following, after=" →")] if following else []
    return COURSE + " · ".join(parts)


def last_line(name: str) -> str:
    """What a notebook ends with: the link to the next one."""
    if following := neighbours(name)[1]:
        return f"**Next:** {notebook_link(following)}"
    return f"This is the last notebook. [All notebooks]({address('README.md', GITHUB)}#notebooks)"


# ---------------------------------------------------------------------- one notebook
def stamped(text: str, name: str) -> str:
    """The text of a notebook's file, with today's shared parts."""
    notebook = json.loads(text)
    cells = notebook["cells"]
    if not cells or cells[0]["cell_type"] != "markdown":
        cells.insert(0, markdown_cell("badge"))
    if cells[-1].get("id") != "next":
        cells.append(markdown_cell("next"))
    for cell in cells:
        if cell["cell_type"] == "markdown":
            set_source(cell, with_pictures(with_terms("".join(cell["source"]))))
    set_source(cells[0], "\n\n".join(first_cell("".join(cells[0]["source"]).split("\n\n"), name)))
    set_source(cells[-1], last_line(name))

    setup = next((cell for cell in cells if is_setup(cell)), None)
    if setup is None:
        setup = {"cell_type": "code", "execution_count": None, "id": "setup"}
        setup |= {"metadata": {}, "outputs": [], "source": []}
        cells.insert(1, setup)
    tags = setup["metadata"].get("tags", [])
    folded = FOLDED | {"tags": [*tags, *(tag for tag in FOLDED["tags"] if tag not in tags)]}
    setup["metadata"] = dict(sorted({**setup["metadata"], **folded}.items()))
    set_source(setup, setup_cell())
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def first_cell(paragraphs: Sequence[str], name: str) -> list[str]:
    """The paragraphs of the first cell: the badge, the course line, and the notebook's own ones,
    among which that of the five words is written again."""
    own = [part for part in paragraphs if part and not part.startswith((BADGE, COURSE))]
    words = with_terms(FIVE_WORDS + glossary()["five-words"].replace("](#", "](GLOSSARY.md#"))
    own = [words if part.startswith(FIVE_WORDS.strip()) else part for part in own]
    return [f"{BADGE}({address(f'notebooks/{name}')})", course_line(name), *own]


def markdown_cell(name: str) -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": []}


def set_source(cell: dict, text: str) -> None:
    cell["source"] = text.splitlines(keepends=True)


def is_setup(cell: dict) -> bool:
    return cell["cell_type"] == "code" and "setup" in cell["metadata"].get("tags", [])


def main() -> list[Path]:
    """Stamp every notebook and the README. Returns the files that changed."""
    wanted = {
        path: stamped(path.read_text(encoding="utf-8"), path.name)
        for path in sorted(HERE.glob("*.ipynb"))
    }
    readme = ROOT / "README.md"
    wanted[readme] = ADDRESS.sub(
        lambda match: address(match["path"]), readme.read_text(encoding="utf-8")
    )
    changed = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")
    return changed


if __name__ == "__main__":
    for path in main():
        print(f"stamped {path.relative_to(ROOT)}")

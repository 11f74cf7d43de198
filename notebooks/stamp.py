"""Write the parts that all notebooks share into each of them: the badge and the setup cell.

Takes the repository and the branch from pyproject.toml, and the setup cell from setup_cell.py, so
that each is written in one place only. A second run changes nothing. `make notebooks` runs it.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
COLAB = "https://colab.research.google.com/github/"
ADDRESS = re.compile(re.escape(COLAB) + r"[^)\s]*?/(?P<path>notebooks/[^)\s]+\.ipynb)")
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["setup"]}


def origin() -> tuple[str, str]:
    """The repository's address and the branch that badges lead to."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["project"]["urls"]["Repository"], settings["tool"]["moe_colab"]["branch"]


def address(path: str) -> str:
    """The address at which Colab opens a file of the repository."""
    repository, branch = origin()
    return f"{COLAB}{repository.removeprefix('https://github.com/')}/blob/{branch}/{path}"


def setup_cell() -> str:
    """The source of the setup cell."""
    repository, branch = origin()
    text = (HERE / "setup_cell.py").read_text(encoding="utf-8").strip()
    return text.replace("REPOSITORY", repository).replace("BRANCH", branch)


def stamped(text: str, name: str) -> str:
    """The text of a notebook's file, with today's badge and setup cell."""
    notebook = json.loads(text)
    cells = notebook["cells"]
    badge = f"[**▶ Open in Colab**]({address(f'notebooks/{name}')})"
    first = "".join(cells[0]["source"]) if cells and cells[0]["cell_type"] == "markdown" else None
    if first is None:
        cells.insert(0, {"cell_type": "markdown", "id": "badge", "metadata": {}, "source": []})
        first = ""
    lines = first.split("\n")
    if COLAB in lines[0]:
        lines[0] = badge
    else:
        lines = [badge, "", *lines] if first else [badge]
    cells[0]["source"] = "\n".join(lines).splitlines(keepends=True)

    setup = next((cell for cell in cells if is_setup(cell)), None)
    if setup is None:
        setup = {"cell_type": "code", "execution_count": None, "id": "setup"}
        setup |= {"metadata": {}, "outputs": [], "source": []}
        cells.insert(1, setup)
    tags = setup["metadata"].get("tags", [])
    folded = FOLDED | {"tags": [*tags, *(tag for tag in FOLDED["tags"] if tag not in tags)]}
    setup["metadata"] = dict(sorted({**setup["metadata"], **folded}.items()))
    setup["source"] = setup_cell().splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


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

"""Code on the hub that a configuration names is neither fetched nor run: a package `kernels` that
only notes what it is asked for stands in for the real one, in a process of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import ROOT, python
from families import make_checkpoint
from transformers.utils import import_utils

pytestmark = pytest.mark.colab
PACKAGE = """
import os

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    if name.startswith("use_kernel"):
        return lambda *args, **kwargs: (lambda thing: thing)
    if name in ("get_kernel", "kernelize", "get_local_kernel", "load_kernel", "has_kernel"):
        def asked(*args, **kwargs):
            with open(os.environ["ASKED"], "a") as file:
                file.write(f"{name} {args} {kwargs}\\n")
            raise FileNotFoundError(name)
        return asked
    return type(name, (), {"__init__": lambda self, *args, **kwargs: None})
"""
CODE = """
import sys, torch, transformers
from transformers.utils.import_utils import is_kernels_available
assert is_kernels_available()
import moe_colab as mc
from families import reference
ids = torch.arange(3, 40)[None]
for folder, plain in zip(sys.argv[1::2], sys.argv[2::2]):
    model, _ = mc.load(folder, progress=False)
    with torch.no_grad():
        print(torch.equal(model(ids).logits, reference(plain)(ids).logits))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder of packages with `kernels` in a version that transformers takes."""
    folder, version = tmp_path_factory.mktemp("packages"), import_utils.KERNELS_MIN_VERSION
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").write_text(f'__version__ = "{version}"\n{PACKAGE}')
    (folder / f"kernels-{version}.dist-info").mkdir()
    (folder / f"kernels-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n"
    )
    (folder / f"kernels-{version}.dist-info" / "top_level.txt").write_text("kernels\n")
    return folder


def asked_by(code: str, package: Path, *arguments: Path) -> tuple[str, str]:
    """(what the code prints, what was asked of `kernels`)."""
    asked = package / "asked"
    asked.write_text("")
    paths = os.pathsep.join(map(str, (package, ROOT, ROOT / "tests")))
    code = f"import sys; sys.argv[1:] = {list(map(str, arguments))}\n{code}"
    said = python(code, env={**os.environ, "PYTHONPATH": paths, "ASKED": str(asked)})
    return said, asked.read_text()


def configured(folder: Path, **words) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | words))
    return folder


CASES = {
    "mixtral": {"attn_implementation": "kernels-community/flash-attn2"},
    "qwen3_moe": {"attn_implementation": "someone/attention@main:forward"},
    "lfm2_moe": {"attn_implementation": "flash_attention_2"},
    "olmoe": {"_attn_implementation": "someone/attention"},
    "granitemoe": {"attn_implementation": {"": "someone/attention"}},
    "glm4_moe": {"experts_implementation": "sonicmoe"},
    "nemotron_h": {"experts_implementation": "someone/experts", "use_kernels": True},
    "jamba": {"use_kernels": True, "kernel_config": {"kernel_mapping": {"RMSNorm": "a/b:C"}}},
}


@pytest.mark.slow
def test_nothing_is_fetched_that_the_user_did_not_ask_for(package, tmp_path):
    """And the logits are those of the plain model without these words."""
    folders = []
    for family, words in CASES.items():
        plain = make_checkpoint(family, tmp_path / "plain" / family)
        folder = configured(make_checkpoint(family, tmp_path / family), **words)
        folders += [folder, plain]
    said, asked = asked_by(CODE, package, *folders)
    assert asked == "" and said.split() == ["True"] * len(CASES)


@pytest.mark.slow
def test_transformers_alone_would_fetch_it(package, tmp_path):
    folder = configured(make_checkpoint("mixtral", tmp_path / "model"), **CASES["mixtral"])
    code = (
        "import sys, transformers\n"
        "try: transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "except Exception as error: print(error)"
    )
    assert "get_kernel" in asked_by(code, package, folder)[1]

"""About a thousand mutants of every kind of file: each gives what the whole file gives, or what
plain transformers gives, or one MoEColabError; never a wrong result, nor any other error."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from families import make_checkpoint, reference

import moe_colab as mc
from moe_colab.bench import mutants
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.quantization.pack import pack
from moe_colab.store import StoreWriter
from moe_colab.store.journal import JOURNAL
from moe_colab.store.manifest import NAME, REPORT
from moe_colab.store.safetensors import INDEX, SINGLE

IDS = torch.arange(3, 20)[None]
SMALL = {"num_hidden_layers": 1, "intermediate_size": 32}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(family: str, folder: Path, **save) -> Path:
    more = {"layer_types": ["full_attention"]} if family == "gpt_oss" else {}
    return make_checkpoint(family, folder, changes=SMALL | more, **save)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make("mixtral", tmp_path_factory.mktemp("mutants") / "model")


@pytest.fixture(scope="module")
def store(checkpoint, tmp_path_factory) -> Path:
    folder, source = tmp_path_factory.mktemp("mutants") / "store", Checkpoint(checkpoint)
    pack(source, folder, source.dtype(), progress=False)
    return folder


@pytest.fixture(scope="module")
def quantized(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutants") / "quantized"
    mc.quantize(checkpoint, folder, expert_bits=4, attention_bits=8, progress=False)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_COLAB_CACHE", str(tmp_path / "cache"))


def logits(folder: Path) -> torch.Tensor | None:
    """None where transformers' own code cannot compute."""
    model, _ = mc.load(folder, progress=False, speculate=0)
    with model.offload, torch.no_grad():
        try:
            return model(IDS).logits
        except mc.MoEColabError:
            raise
        except Exception:
            return None


def plain_logits(folder: Path) -> torch.Tensor | None:
    """The plain model's, None where it does not load, or not all of it comes from the files."""
    try:
        model = reference(folder)
        with torch.no_grad():
            return model(IDS).logits
    except Exception:
        return None


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.nan_to_num(7), other.nan_to_num(7))


def run(
    path: Path,
    mutate: mutants.Mutator,
    count: int,
    use: Callable[[], object],
    right: Callable[[object], bool],
    least: int = 1,
) -> None:
    """`use` each of `count` mutants of the file; at least `least` of them must be refused."""
    whole, refused, wrong = path.read_bytes(), 0, []
    for seed in range(count):
        path.unlink(missing_ok=True)
        path.write_bytes(mutate(whole, Random(seed)))
        try:
            result = use()
        except mc.MoEColabError as error:
            refused += 1
            if "\n" in str(error):
                wrong.append((seed, f"two lines: {error}"))
        except Exception as error:
            wrong.append((seed, f"{type(error).__name__}: {error}"[:200]))
        else:
            if not right(result):
                wrong.append((seed, f"a wrong result: {str(result)[:100]}"))
    path.write_bytes(whole)
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:5]}"
    assert refused >= least


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("kind", ["store", "quantized"])
def test_mutants_of_a_manifest(kind, request, tmp_path):
    folder = copied(request.getfixturevalue(kind), tmp_path)
    right = partial(same, logits(folder))
    run(folder / NAME, mutants.of_manifest, 120, lambda: logits(folder), right, 60)


def test_mutants_of_a_manifest_inspected_and_verified(quantized, tmp_path):
    folder = copied(quantized, tmp_path)
    run(
        *(folder / NAME, mutants.of_manifest, 100),
        lambda: (
            mc.inspect(folder).text(),
            mc.verify(folder).as_dict(),
            mc.inspect(folder).frame(),
        ),
        lambda seen: True,
        50,
    )


def listed(folder: Path, name: str) -> None:
    """Let the manifest have the digests of a file as it is."""
    from moe_colab.store.files import file_entry

    entry, body = file_entry(folder, name), json.loads((folder / NAME).read_bytes())
    body["files"] = [vars(entry) if e["name"] == name else e for e in body["files"]]
    (folder / NAME).write_text(mutants.sealed(body))


def test_mutants_of_a_report(quantized, tmp_path):
    folder = copied(quantized, tmp_path)
    right = partial(same, logits(folder))

    def use():
        listed(folder, REPORT)
        mc.inspect(folder).text()
        mc.inspect(folder).frame()
        return logits(folder)

    run(folder / REPORT, mutants.of_json, 60, use, right)


@pytest.mark.parametrize("name", ["dense.safetensors", "experts-00000.safetensors"])
def test_mutants_of_a_stores_weights(store, tmp_path, name):
    folder = copied(store, tmp_path)
    right = partial(same, logits(folder))
    run(folder / name, mutants.of_safetensors, 60, lambda: logits(folder), right, 40)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_mutants_of_a_checkpoints_weights(family, tmp_path):
    folder = make(family, tmp_path / "model")
    run(
        *(folder / SINGLE, mutants.of_safetensors, 60, lambda: logits(folder)),
        lambda result: same(plain_logits(folder), result),
        20,
    )


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "deepseek_v3"])
def test_mutants_of_a_configuration(family, tmp_path):
    folder = make_checkpoint(family, tmp_path / "model", changes={"num_hidden_layers": 2})
    run(
        *(folder / "config.json", mutants.of_json, 60, lambda: logits(folder)),
        lambda result: same(plain_logits(folder), result),
        10,
    )


def test_mutants_of_an_index(tmp_path):
    """Where transformers wants more of an index than the names of the files, ours still loads."""
    folder = make("mixtral", tmp_path / "model", max_shard_size="20kB")
    whole = logits(folder)
    run(
        *(folder / INDEX, mutants.of_json, 80, lambda: logits(folder)),
        lambda result: same(plain_logits(folder), result) or same(whole, result),
        20,
    )


def test_mutants_of_a_journal(checkpoint, store, tmp_path):
    """A packing that goes on with it ends with the same store."""
    half, source = tmp_path / "half", Checkpoint(checkpoint)

    def stop(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(StoreWriter, "finish", stop)
        pack(source, half, source.dtype(), progress=False)
    copy = tmp_path / "copy"

    def use():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(half, copy)
        pack(source, copy, source.dtype(), progress=False)
        return contents(copy)

    run(half / JOURNAL, mutants.of_journal, 100, use, contents(store).__eq__, 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_whole(trace: mc.Trace) -> object:
    """Everything that a reader asks of a trace."""
    trace.frame()
    trace.guess_frame()
    mc.replay(trace, slots=2)
    return repr(trace)


@pytest.mark.parametrize("mutate", [mutants.of_archive, mutants.claims])
def test_mutants_of_a_trace(tmp_path, mutate):
    path = mc.Trace.load().between(0, 3).save(tmp_path / "trace.npz")
    run(path, mutate, 120, lambda: read_whole(mc.Trace.load(path)), lambda text: True, 40)


CSV = "\n".join(
    (
        "# route_trace v1",
        "# model=/models/x.gguf n_layer=2 n_expert=4 n_expert_used=2",
        *(f"# layer={layer} expert_bytes=100" for layer in range(2)),
        "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes",
        *(
            f"0,{int(step > 1)},{step},{layer},{slot},{(step + slot) % 4},0.5,1,{100 * slot}"
            for step in range(4)
            for layer in range(2)
            for slot in range(2)
        ),
    )
)


def test_mutants_of_a_csv(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(CSV)
    read_whole(mc.Trace.from_csv(path))
    run(
        *(path, mutants.of_lines, 150, lambda: read_whole(mc.Trace.from_csv(path))),
        lambda text: True,
        40,
    )


@pytest.mark.parametrize(
    "mutate",
    [mutants.of_bytes, mutants.of_json, mutants.of_manifest, mutants.of_lines, mutants.of_journal],
)
def test_a_mutant_depends_on_the_bytes_and_the_dice_alone(mutate):
    data = b'00000000 {"format": 2, "a": [1, {"b": "text"}], "c": 5}\n'
    data = data if mutate in (mutants.of_lines, mutants.of_journal) else data[9:]
    made = [mutate(data, Random(seed)) for seed in range(40)]
    assert made == [mutate(data, Random(seed)) for seed in range(40)]
    assert len({*made}) > 20 and os.sep

"""The files of a checkpoint, delivered: from a folder, and off a hub that is slow, breaks and lies.

The hub's model is a handful of small files; what a job does is read its tensors. Disk is counted
by the hub before every piece it sends, and by every job.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fake_hub
import pytest
import torch
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from moe_colab import MoEColabError
from moe_colab.checkpoint import hub as hub_module
from moe_colab.checkpoint.hub import PART, fetch
from moe_colab.checkpoint.shards import (
    MAX_FILES,
    FolderShards,
    HubShards,
    files_on_disk,
    refuse_quantized,
)
from moe_colab.checkpoint.tensors import read_tensor
from moe_colab.store.safetensors import INDEX, TensorEntry, read_header

pytestmark = pytest.mark.colab
REPO = "someone/sharded"
SIZES = (9000, 15000, 6000, 12000, 3000, 11000)  # numbers of four bytes in each file
NAMES = [f"model-{number}.safetensors" for number in range(len(SIZES))]


@dataclass(frozen=True)
class Work:
    """A job: reads tensor `part` of each of these files."""

    files: frozenset[str]
    part: str = "a"


def jobs_for(*files: str) -> list[Work]:
    """Two jobs for each: `"02"` for one that needs the files 0 and 2."""
    return [
        Work(frozenset(NAMES[int(digit)] for digit in one), part) for part in "ab" for one in files
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "config.json").write_text("{}")
    torch.manual_seed(0)
    weight_map = {}
    for name, size in zip(NAMES, SIZES, strict=True):
        tensors = {f"{name}.a": torch.randn(size - 1000), f"{name}.b": torch.randn(10, 100)}
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def hub(source, monkeypatch, tmp_path):
    hub = FakeHub()
    hub.models[REPO] = source
    with hub.reachable(monkeypatch, tmp_path):
        monkeypatch.setattr(hub_module, "PAUSE", 0.01)
        monkeypatch.setattr(hub_module, "PIECE", 1000)  # so much is lost of what is cut
        yield hub


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "store" / "shards"


def on_disk(place: Path) -> dict[str, int]:
    """Bytes by file, those that are on their way among them."""
    found = {}
    for path in place.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # deleted just now
            if path.is_file():
                found[path.name.removesuffix(PART)] = path.stat().st_size
    return found


def watched(hub: FakeHub, place: Path) -> list[dict[str, int]]:
    seen = []
    hub.watch = lambda: seen.append(on_disk(place))
    return seen


def shards(**settings) -> HubShards:
    return HubShards(fetch(REPO, progress=False), progress=False, **settings)


def run(delivering: HubShards, jobs: list[Work], place: Path, source: Path) -> list[Work]:
    """Does every job, and looks whether what it reads is what was sent."""
    done, entries = [], delivering.entries()
    for job in delivering.deliver(jobs, place):
        for name in job.files:
            entry = entries[f"{name}.{job.part}"]
            assert entry.path.name == name
            whole = read_header(source / name)[entry.name]
            assert torch.equal(read_tensor(entry), read_tensor(whole))
        done.append(job)
    return done


def no_thread_is_left() -> bool:
    end = time.monotonic() + 5
    while any(thread.name.startswith("shards") for thread in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# ---------------------------------------------------------------------- a folder
def test_a_folders_files_are_there(source, tmp_path):
    shards, jobs = FolderShards(source), jobs_for("3", "1", "02")
    assert shards.entries() == {
        k: e for name in NAMES for k, e in read_header(source / name).items()
    }
    assert list(shards.deliver(jobs, tmp_path / "nothing")) == jobs
    assert shards.extra_disk() == 0 and not (tmp_path / "nothing").exists()


# ---------------------------------------------------------------------- the hub
def test_every_tensor_is_known_before_any_weights_move(hub, source):
    known, real = shards().entries(), FolderShards(source).entries()
    assert list(known) == list(real)
    for name, entry in known.items():
        assert (entry.dtype, entry.shape) == (real[name].dtype, real[name].shape)
        assert entry.end - entry.start == real[name].end - real[name].start
        assert entry.path.name == real[name].path.name
    assert not hub.sent.keys() & set(NAMES)


def test_every_file_comes_once_and_goes(hub, source, place):
    disk, streamed = watched(hub, place), shards()
    jobs = jobs_for("5", "0", "1", "2", "3", "4")
    done = run(streamed, jobs, place, source)
    assert sorted(done, key=jobs.index) == jobs
    assert [min(job.files) for job in done[::2]] == NAMES
    whole = {name: (source / name).stat().st_size for name in NAMES}
    assert {name: hub.sent[name] for name in NAMES} == whole
    assert not place.exists() and no_thread_is_left()
    assert max(len(held) for held in disk) <= 2
    two = sorted(whole.values())[-2:]
    assert max(sum(held.values()) for held in disk) <= sum(two) == streamed.extra_disk()


def test_the_next_file_comes_while_a_job_works(hub, place):
    streamed = shards()
    for job in streamed.deliver(jobs_for("0", "1", "2"), place):
        if job.files == {NAMES[1]}:
            end = time.monotonic() + 10
            while not (place / COMMIT / NAMES[2]).exists() and time.monotonic() < end:
                time.sleep(0.01)
            assert set(on_disk(place)) == {NAMES[1], NAMES[2]}


def test_files_that_no_job_reads_are_not_downloaded(hub, source, place):
    run(shards(), jobs_for("1"), place, source)
    assert hub.sent.keys() & set(NAMES) == {NAMES[1]}
    assert list(shards().deliver([], place)) == []


@pytest.mark.parametrize("seed", range(12))
def test_any_way_of_scattering_work_over_files(hub, source, place, seed):
    """Every job once with its files there, never more than two files, or than one job needs."""
    dice = random.Random(seed)
    digits = "".join(str(number) for number in range(len(NAMES)))
    picks = ["".join(dice.sample(digits, dice.choice((1, 1, 2, 2, 2)))) for _ in range(12)]
    disk, jobs = watched(hub, place), jobs_for(*picks)
    done = run(shards(), jobs, place, source)
    assert len(done) == len(jobs) and set(done) == set(jobs)
    assert max(len(held) for held in disk) <= 2
    assert all(sum(held.values()) <= 4 * (15000 + 12000) + 1000 for held in disk)


def test_a_job_that_needs_three_files_gets_them(hub, source, place):
    disk = watched(hub, place)
    run(shards(), jobs_for("012", "3", "4", "05"), place, source)
    assert max(len(held) for held in disk) == 3


# ---------------------------------------------------------------------- trouble
@pytest.mark.parametrize("seed", range(4))
def test_a_connection_that_breaks_anywhere_goes_on_there(hub, source, place, seed):
    dice = random.Random(seed)
    for name in NAMES:
        size = (source / name).stat().st_size
        hub.break_at[name] = [dice.randrange(1, size) for _ in range(3)]
    disk = watched(hub, place)
    run(shards(), jobs_for("0", "1", "2", "3", "4", "5"), place, source)
    for name in NAMES:
        size = (source / name).stat().st_size
        lost = 3 * hub_module.PIECE
        assert size <= hub.sent[name] <= size + lost
    assert max(len(held) for held in disk) <= 2


def test_a_hub_that_gives_no_parts_gives_the_rest_all_the_same(hub, source, place):
    hub.parts, hub.break_at[NAMES[1]] = False, [20_500]
    run(shards(), jobs_for("1"), place, source)
    assert hub.begun[NAMES[1]] == [0, 0]


def test_where_the_hub_sends_us_to_is_not_shown_the_token(hub, source, place, monkeypatch):
    hub.gated.add(REPO)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    storage = FakeHub()
    storage.models = hub.models
    with storage.serving() as hub.elsewhere:
        run(shards(), jobs_for("0", "1"), place, source)
    assert storage.tokens == {None} and f"Bearer {hub.token}" in hub.tokens
    assert storage.sent.keys() == {NAMES[0], NAMES[1]} and storage.peeked.keys() == set(NAMES)


@pytest.mark.parametrize("leave", ["close", "an error", "Ctrl-C"])
def test_whoever_leaves_in_the_middle_can_go_on(hub, source, place, leave):
    hub.pause = 0.02
    jobs = jobs_for("0", "1", "2", "3")
    streamed = shards()
    streaming = streamed.deliver(jobs, place)
    done = [next(streaming) for _ in range(3)]
    time.sleep(0.1)
    if leave == "close":
        streaming.close()
    else:
        error = ValueError if leave == "an error" else KeyboardInterrupt
        with pytest.raises(error):
            streaming.throw(error())
    assert no_thread_is_left()
    left = on_disk(place)
    assert set(left) == {NAMES[1], NAMES[2]}
    hub.pause, disk = 0, watched(hub, place)
    before = dict(hub.sent)
    rest = run(shards(), [job for job in jobs if job not in done], place, source)
    assert set(rest) | set(done) == set(jobs) and len(rest) + len(done) == len(jobs)
    assert hub.sent[NAMES[1]] == before[NAMES[1]]  # it was whole
    if left[NAMES[2]]:
        assert hub.begun[NAMES[2]][-1] == left[NAMES[2]]
    assert max(len(held) for held in disk) <= 2 and not place.exists()


def test_what_nobody_needs_any_more_is_deleted_first(hub, source, place):
    for name in (NAMES[0], NAMES[1], NAMES[3] + PART):
        (place / COMMIT).mkdir(parents=True, exist_ok=True)
        (place / COMMIT / name).write_bytes(b"x" * 100)
    (place / ("0" * 40)).mkdir()
    (place / ("0" * 40) / NAMES[2]).write_bytes(b"of another revision")
    (place / COMMIT / NAMES[1]).write_bytes((source / NAMES[1]).read_bytes())
    streamed, disk = shards(), watched(hub, place)
    run(streamed, jobs_for("1", "2"), place, source)
    assert all(set(held) <= {NAMES[1], NAMES[2]} for held in disk)
    assert NAMES[1] not in hub.sent


def test_a_hub_that_goes_away_is_one_sentence_and_the_next_try_goes_on(hub, source, place):
    jobs, done = jobs_for("0", "1", "2"), []
    hub.break_at[NAMES[1]] = [5000, *[0] * hub_module.TRIES]
    streaming = shards().deliver(jobs, place)
    with pytest.raises(MoEColabError) as caught:
        for job in streaming:
            done.append(job)
    message = str(caught.value)
    assert REPO in message and "continues where it stopped" in message and "\n" not in message
    assert len(done) == 2 and no_thread_is_left()
    run(shards(), [job for job in jobs if job not in done], place, source)
    assert hub.begun[NAMES[1]][-1] >= 5000 - hub_module.PIECE


@pytest.mark.parametrize("lie", ["other tensors", "garbage", "shorter"])
def test_a_file_that_is_not_what_was_announced_is_refused_and_not_kept(hub, source, place, lie):
    data = (source / NAMES[0]).read_bytes()
    hub.instead[NAMES[0]] = {
        "other tensors": data.replace(b"F32", b"I32", 1),
        "garbage": b"\xff" * len(data),
        "shorter": data[:-4],
    }[lie]
    jobs = jobs_for("0")
    with pytest.raises(MoEColabError) as caught:
        run(shards(), jobs, place, source)
    assert NAMES[0] in str(caught.value) and "\n" not in str(caught.value)
    hub.instead.clear()
    run(shards(), jobs, place, source)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


@pytest.mark.parametrize("way", ["at once", "in two parts", "by a hub without parts"])
@pytest.mark.parametrize("at", [-1, 20_000, 30_000])
def test_a_flipped_bit_is_refused_and_not_kept(hub, source, place, way, at):
    """The header is as announced, and so is the size; only the hub's sha256 tells."""
    hub.instead[NAMES[1]] = flipped((source / NAMES[1]).read_bytes(), at % 60_000)
    if way != "at once":
        hub.break_at[NAMES[1]] = [25_000]
    hub.parts = way != "by a hub without parts"
    with pytest.raises(MoEColabError, match=f"{NAMES[1]} of {REPO} was damaged") as caught:
        run(shards(), jobs_for("1"), place, source)
    assert "\n" not in str(caught.value) and not on_disk(place)
    hub.instead.clear()
    run(shards(), jobs_for("1"), place, source)


def test_a_part_that_was_damaged_on_the_disk_is_not_gone_on_with(hub, source, place):
    data = (source / NAMES[1]).read_bytes()
    (place / COMMIT).mkdir(parents=True)
    (place / COMMIT / (NAMES[1] + PART)).write_bytes(flipped(data[:30_000], 29_000))
    with pytest.raises(MoEColabError, match="was damaged"):
        run(shards(), jobs_for("1"), place, source)
    run(shards(), jobs_for("1"), place, source)


@pytest.mark.parametrize("kind", ["hub", "folder", "folder, offline"])
def test_a_damaged_file_in_the_hubs_cache_folder_is_named(hub, source, place, kind, monkeypatch):
    """It is named after its sha256 there."""
    access = fetch(REPO, progress=False).access
    paths = [Path(access.hf_hub_download(REPO, name)) for name in NAMES]
    folder = paths[1].parent
    data = paths[1].read_bytes()
    paths[1].resolve().write_bytes(flipped(data, len(data) - 10))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", "offline" in kind)
    delivering = shards() if kind == "hub" else FolderShards(folder)
    done = []
    with pytest.raises(MoEColabError, match=r"is damaged: its sha256 .* Delete ") as caught:
        done.extend(delivering.deliver(jobs_for("0", "1"), place))
    assert NAMES[1] in str(caught.value) and "\n" not in str(caught.value)
    paths[1].resolve().write_bytes(data)
    assert list(delivering.deliver(jobs_for("0", "1"), place)) == jobs_for("0", "1")


def test_a_file_of_which_the_hub_tells_no_digest_is_taken_as_it_is(hub, source, place, monkeypatch):
    monkeypatch.setattr(fake_hub, "large", lambda path: {})
    run(shards(), jobs_for("1"), place, source)


def test_a_damaged_small_file_is_named(hub, tmp_path):
    folder = Path(shutil.copytree(hub.models[REPO], tmp_path / "other"))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    hub.models["someone/other"] = folder
    hub.instead["tokenizer.json"] = b'{"version": "1.1"}'
    with pytest.raises(MoEColabError, match=r"tokenizer\.json is damaged"):
        fetch("someone/other", progress=False)


def with_header(change, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def tensors_of(header: dict) -> list[dict]:
    return [entry for name, entry in header.items() if name != "__metadata__"]


WRONG_HEADERS = {
    "a hole": lambda h: tensors_of(h)[0].update(data_offsets=[4, 4004]),
    "an overlap": lambda h: tensors_of(h)[1].update(tensors_of(h)[0]),
    "a negative offset": lambda h: tensors_of(h)[0].update(data_offsets=[-4000, 0]),
    "offsets that are no integers": lambda h: [
        t.update(data_offsets=[float(n) for n in t["data_offsets"]]) for t in tensors_of(h)
    ],
    "a negative shape": lambda h: tensors_of(h)[0].update(shape=[-1, -1000]),
    "no offsets": lambda h: tensors_of(h)[0].pop("data_offsets"),
    "a shape that is text": lambda h: tensors_of(h)[0].update(shape="8"),
    "more than the file": lambda h: tensors_of(h)[1].update(data_offsets=[32000, 10**15]),
    "an offset of many digits": lambda h: tensors_of(h)[1].update(data_offsets=[0, 10**30]),
    "a tensor that is a list": lambda h: h.update(x=[]),
}


@pytest.mark.parametrize("kind", WRONG_HEADERS)
@pytest.mark.parametrize("where", ["here", "on the hub"])
def test_headers_that_the_library_refuses_are_refused(hub, tmp_path, kind, where):
    folder = Path(shutil.copytree(hub.models[REPO], tmp_path / "wrong"))
    path = folder / NAMES[0]
    path.write_bytes(with_header(WRONG_HEADERS[kind], path.read_bytes()))
    with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
        pass
    hub.models["someone/wrong"] = folder
    wrong = FolderShards(folder)
    if where == "on the hub":
        wrong = HubShards(fetch("someone/wrong", progress=False), progress=False)
    with pytest.raises(MoEColabError) as caught:
        wrong.entries()
    assert "\n" not in str(caught.value) and not hub.sent.keys() & {*NAMES}


def test_a_folder_that_cannot_be_written_is_named(hub, place):
    place.parent.mkdir()
    place.write_text("a file")
    with pytest.raises(MoEColabError, match=str(place.parent)):
        list(shards().deliver(jobs_for("0"), place))


# ---------------------------------------------------------------------- what is here already
def test_what_another_tool_has_downloaded_is_read_there_and_stays(hub, source, place):
    access = fetch(REPO, progress=False).access
    paths = [Path(access.hf_hub_download(REPO, NAMES[number])) for number in (0, 1)]
    hub.sent.clear()
    disk, streamed = watched(hub, place), shards()
    run(streamed, jobs_for("0", "1", "2", "02"), place, source)
    assert hub.sent.keys() & set(NAMES) == {NAMES[2]}
    assert all(set(held) <= {NAMES[2]} for held in disk)
    away = [(source / name).stat().st_size for name in NAMES[2:]]
    assert streamed.extra_disk() == sum(sorted(away)[-2:])
    assert all(path.is_file() for path in paths)
    for name in NAMES:
        access.hf_hub_download(REPO, name)
    assert shards().extra_disk() == 0


def test_offline_only_what_is_here_is_delivered(hub, source, place, monkeypatch):
    snapshot = fetch(REPO, progress=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (fetch(REPO).revision, fetch(REPO).folder) == (COMMIT, snapshot.folder)
    with pytest.raises(MoEColabError, match="offline mode is on"):
        shards().entries()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in NAMES:
        snapshot.access.hf_hub_download(REPO, name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    run(shards(), jobs_for("0", "3"), place, source)
    assert not hub.asked


# ---------------------------------------------------------------------- the plan
@given(
    st.lists(st.frozensets(st.sampled_from("abcde"), max_size=3), max_size=7),
    st.frozensets(st.sampled_from("abcdef"), max_size=2),
)
def test_a_plan_keeps_the_bound_and_downloads_no_more_than_needed(needs, here):
    disk, downloads = set(here), 0
    for done, (names, files) in enumerate(zip(needs, files_on_disk(needs, here), strict=True)):
        downloads += len(set(files) - disk)
        disk = set(files)
        assert len(disk) == len(files) and set(files[: len(names)]) == names
        assert len(disk) <= max(MAX_FILES, len(names))
        assert disk <= set().union(*needs[done:])  # what has no use is not there
    assert downloads == fewest_downloads(tuple(needs), here)


def fewest_downloads(needs: tuple[frozenset[str], ...], here: frozenset[str]) -> int:
    @cache
    def fewest(now: int, held: frozenset[str]) -> int:
        if now == len(needs):
            return 0
        names = needs[now]
        rest, room = held - names, max(MAX_FILES, len(names)) - len(names)
        kept = itertools.combinations(sorted(rest), min(room, len(rest)))
        return len(names - held) + min(fewest(now + 1, names | set(keep)) for keep in kept)

    return fewest(0, here)


# ---------------------------------------------------------------------- codes
QUANTIZED = {
    "fp8": ("model.layers.0.mlp.experts.0.up_proj.weight", "F8_E4M3"),
    "fp8, its scales": ("model.layers.0.mlp.experts.0.up_proj.weight_scale_inv", "F32"),
    "GPTQ": ("model.layers.0.mlp.experts.0.up_proj.qweight", "I32"),
    "AWQ": ("model.layers.0.mlp.experts.0.up_proj.qzeros", "I32"),
    "MXFP4": ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8"),
    "MXFP4, its scales": ("model.layers.0.mlp.experts.gate_up_proj_scales", "U8"),
    "bitsandbytes, 4 bits": ("model.layers.0.mlp.experts.0.up_proj.weight", "U8"),
    "bitsandbytes, 8 bits": ("model.layers.0.mlp.experts.0.up_proj.weight", "I8"),
    "bitsandbytes, its scales": ("model.layers.0.mlp.experts.0.up_proj.weight.absmax", "F32"),
    "experts in one tensor": ("model.layers.0.mlp.experts.down_proj", "U8"),
    "HQQ": ("model.layers.0.mlp.shared_expert.up_proj.W_q", "U8"),
    "compressed-tensors": ("model.layers.0.mlp.experts.0.up_proj.weight_packed", "I32"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_codes_are_refused_by_the_name_of_their_tensor(kind):
    name, dtype = QUANTIZED[kind]
    plain = TensorEntry(Path("x.safetensors"), "model.norm.weight", "BF16", (4,), 0, 8)
    codes = TensorEntry(Path("x.safetensors"), name, dtype, (4, 4), 8, 24)
    with pytest.raises(MoEColabError, match="use the original weights") as caught:
        refuse_quantized({plain.name: plain, name: codes})
    assert name in str(caught.value)


def test_plain_numbers_are_not_taken_for_codes():
    plain = {
        "model.layers.0.mlp.experts.0.up_proj.weight": "BF16",
        "model.layers.0.mlp.gate.e_score_correction_bias": "F32",
        "model.position_ids": "I64",
        "model.layers.0.attn.bias": "U8",
        "model.layers.0.mlp.moe_statics.counts": "I32",
        "model.layers.0.block_scale": "F16",
    }
    refuse_quantized({k: TensorEntry(Path("x"), k, d, (1,), 0, 8) for k, d in plain.items()})

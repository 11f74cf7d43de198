"""What else a process may do with a model: other default devices, autocast, other implementations
of experts, threads, forks, and files that change under it."""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
from collections import Counter

import pytest
import torch
from conftest import TINY_MOE, python
from families import make_checkpoint, reference

import moe_colab as mc
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.machine.memory import FORWARD_RESERVE
from moe_colab.offload import forwards, placement
from moe_colab.quantization.pack import pack

IDS = torch.arange(5, 25)[None]
pytestmark = pytest.mark.colab


@pytest.fixture
def own_store(tmp_path):
    """A store of the small model that a test may damage."""
    checkpoint = Checkpoint(TINY_MOE)
    pack(checkpoint, tmp_path / "store", checkpoint.dtype(), progress=False)
    return tmp_path / "store"


def written(model, tokens: int = 12) -> list[int]:
    return model.generate(IDS, max_new_tokens=tokens, do_sample=False)[0].tolist()


# ---------------------------------------------------------------------- settings of torch
@pytest.mark.slow
def test_another_default_device_changes_nothing(tmp_path):
    """A tensor that were made on it would have no values."""
    code = f"""
import torch, moe_colab as mc
ids, lines = torch.arange(5, 25)[None], []
for device in (None, "meta"):
    torch.set_default_device(device)
    store = f"{tmp_path}/{{device}}"
    mc.quantize("shipped", store, expert_bits=3, attention_bits=4, embedding_bits=8, progress=False)
    model, tokenizer = mc.load(store, slots=3, policy="lfu", speculate=2, progress=False)
    line = [model(ids).logits.sum().item()]
    model.offload.slots = 2
    model.offload.guess_from = "layer_output"
    plain, _ = mc.load("shipped", slots=3, kernels="plain", progress=False)
    line += [model(ids).logits.sum().item(), plain(ids).logits.sum().item()]
    lines.append(line)
assert lines[0] == lines[1], lines
"""
    python(code)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize(
    ("own", "cast"),
    [
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
    ],
    ids=str,
)
def test_autocast_gives_what_the_plain_model_gives(tmp_path, family, own, cast):
    source = make_checkpoint(family, tmp_path / "model", dtype=own)
    model, plain = mc.load(source, slots=2, progress=False)[0], reference(source, dtype=own)
    with torch.no_grad(), torch.autocast("cpu", dtype=cast):
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert torch.equal(model(IDS).logits, plain(IDS).logits), "and without it again"


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "qwen3_next"])
def test_other_implementations_of_experts_change_nothing(tmp_path, family):
    """`set_experts_implementation`, or the setting itself."""
    source = make_checkpoint(family, tmp_path / "model")
    model, logits = mc.load(source, slots=2, progress=False)[0], reference(source)(IDS).logits
    for name in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(name)
        assert torch.equal(model(IDS).logits, logits)
        model.config._experts_implementation = name
        assert torch.equal(model(IDS).logits, logits)
    assert written(model) == written(reference(source))


# ---------------------------------------------------------------------- threads
@pytest.mark.slow
def test_threads_may_load_at_once(own_store):
    said, before = Counter(), torch.get_default_dtype()
    want = written(mc.load(own_store, progress=False)[0])

    def load() -> None:
        try:
            said[written(mc.load(own_store, slots=2, progress=False)[0]) == want] += 1
        except Exception as error:
            said[repr(error)] += 1

    for _ in range(3):
        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == {True: 12}
    assert torch.get_default_dtype() is before


@pytest.mark.slow
def test_closed_by_another_thread_a_generation_ends_with_one_sentence():
    said = Counter()
    for number in range(12):
        model, _ = mc.load(slots=2, progress=False)
        timer = threading.Timer(0.005 + 0.004 * number, model.offload.close)
        timer.start()
        with pytest.raises(mc.MoEColabError, match="was closed"):
            model.generate(IDS, min_new_tokens=2000, max_new_tokens=2000, do_sample=False)
        timer.join()
        said[sum(p.numel() for p in model.parameters())] += 1
    assert said == {0: 12}, "all weights are freed"


def test_close_does_not_wait_for_ever(monkeypatch):
    """The thread whose forward ends last frees the weights then."""
    monkeypatch.setattr(forwards, "PATIENCE", 0.05)
    model, _ = mc.load(slots=2, progress=False)
    inside, go_on = threading.Event(), threading.Event()

    def hold(*_) -> None:
        inside.set()
        go_on.wait(30)

    hook = model.model.embed_tokens.register_forward_hook(hold)

    def run() -> None:
        with pytest.raises(mc.MoEColabError, match="was closed"):
            model(IDS)

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(30)
    model.offload.close()
    assert model.offload.closed and model.lm_head.weight.numel() > 0
    go_on.set()
    thread.join()
    hook.remove()
    assert model.lm_head.weight.numel() == 0


# ---------------------------------------------------------------------- forks
@pytest.mark.parametrize("used", [False, True], ids=["not used before", "used before"])
@pytest.mark.parametrize("settings", [{"slots": 2}, {"slots": 3, "resident": {0: [1, 2]}}], ids=str)
def test_a_forked_process_answers_as_its_parent(used, settings):
    """As servers do that load a model first and then fork their workers."""
    code = f"""
import os, signal
os.environ["OMP_NUM_THREADS"] = "2"
import torch, moe_colab as mc
model, _ = mc.load(progress=False, **{settings!r})
ids = torch.arange(5, 25)[None]
write = lambda: model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()
if {used}:
    write()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    want = mc.load(progress=False)[0].generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()
    right = write() == want
    model.offload.slots = 4
    right = right and write() == want and model.offload.stats().accesses > 0
    model.offload.close()
    os._exit(0 if right else 1)
assert os.waitpid(pid, 0)[1] == 0
before = write()
assert len(before) == 28
"""
    python(code)


def test_a_fork_in_the_middle_of_an_answer(tmp_path):
    """Other threads held locks then; the child has a model all the same."""
    code = """
import os, signal, threading, time, torch, moe_colab as mc
model, _ = mc.load(slots=2, progress=False)
ids = torch.arange(5, 25)[None]
write = lambda n: model.generate(ids, min_new_tokens=n, max_new_tokens=n, do_sample=False)
thread = threading.Thread(target=write, args=(150,), daemon=True)
thread.start()
for _ in range(5):
    time.sleep(0.03)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os._exit(0 if write(4).shape[1] == 24 else 1)
    assert os.waitpid(pid, 0)[1] == 0
thread.join()
"""
    python(code)


# ---------------------------------------------------------------------- files and memory
def test_the_file_of_the_dense_weights_may_change_while_the_model_lives(own_store):
    model, _ = mc.load(own_store, slots=2, progress=False)
    before, path = written(model), own_store / "dense.safetensors"
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    assert written(model) == before
    os.truncate(path, 4096)  # a mapped file would end the process here
    assert written(model) == before
    with pytest.raises(mc.MoEColabError, match=r"dense\.safetensors"):
        mc.load(own_store, progress=False)


def test_slots_that_leave_nothing_for_a_forward_are_refused_before_loading(monkeypatch, own_store):
    model, _ = mc.load(own_store, slots=8, progress=False)
    memory = model.offload._memory
    need = memory.dense + memory.beside_dense([8] * 8) + FORWARD_RESERVE
    loaded = []
    monkeypatch.setattr("moe_colab.offload.load.load_dense", lambda *_: loaded.append(1))
    for free in (need // 2, need - (1 << 20)):
        monkeypatch.setattr(placement, "free_memory", lambda device: free)  # noqa: B023
        with pytest.raises(mc.MoEColabError, match=r"these slots this model needs .*use fewer"):
            mc.load(own_store, slots=8, progress=False)
    monkeypatch.setattr(placement, "free_memory", lambda device: memory.dense)
    with pytest.raises(mc.MoEColabError, match=r"one slot in every layer .*fewer bits"):
        mc.load(own_store, progress=False)
    assert loaded == []


def test_slots_of_a_cpu_are_as_many_as_fit(monkeypatch, own_store):
    memory = mc.load(own_store, slots=1, progress=False)[0].offload._memory
    for wanted in (1, 2, 3, 4, 4):
        room = memory.beside_dense([wanted] * 8) + FORWARD_RESERVE + 1000
        monkeypatch.setattr(placement, "free_memory", lambda device: room)  # noqa: B023
        assert placement.fitting_slots(memory, None, 2, torch.device("cpu")) == [wanted] * 8
    monkeypatch.setattr(placement, "free_memory", lambda device: 1 << 40)
    assert placement.fitting_slots(memory, None, 2, torch.device("cpu")) == [4] * 8


# ---------------------------------------------------------------------- copies and the end
@pytest.mark.parametrize(
    "copy_it",
    [
        pickle.dumps,
        copy.deepcopy,
        lambda model: torch.save(model, io.BytesIO()),
        lambda model: pickle.dumps(model.offload),
        lambda model: copy.deepcopy(model.offload),
    ],
    ids=["pickle", "deepcopy", "torch.save", "pickle the handle", "deepcopy the handle"],
)
def test_a_copy_is_refused_in_one_sentence(copy_it):
    model, _ = mc.load(slots=2, progress=False)
    with pytest.raises(mc.MoEColabError, match="cannot be copied or pickled: load it a second"):
        copy_it(model)
    assert model(IDS).logits.isfinite().all()


def test_a_dropped_model_leaves_no_open_files():
    code = """
import gc, os, sys, warnings
sys.stderr = sys.stdout
warnings.simplefilter("error", ResourceWarning)
import torch, moe_colab as mc
model, _ = mc.load(slots=2, progress=False)
model(torch.arange(5, 9)[None])
del model, _
gc.collect()
open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd > "2"
              and os.path.lexists(f"/proc/self/fd/{fd}")]
assert not [name for name in open_files if "experts" in name], open_files
"""
    assert "ResourceWarning" not in python(code)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_is_computed_as_asked(tmp_path, name):
    source = make_checkpoint("mixtral", tmp_path / "model")
    model, _ = mc.load(source, slots=2, attn_implementation=name, progress=False)
    assert model.config._attn_implementation == name
    plain = reference(source, attn_implementation=name)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("name", ["nonsense", "flash_attention_2", 5])
def test_attention_that_this_machine_lacks_is_one_sentence(name):
    with pytest.raises(mc.MoEColabError, match=r"attn_implementation|flash_attn|FlashAttention"):
        mc.load(attn_implementation=name, progress=False)

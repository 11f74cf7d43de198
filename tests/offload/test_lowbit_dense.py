"""Attention, embeddings and head in fewer bits: what a model says then, what it takes, what is
refused."""

from __future__ import annotations

import gc
import json
import math
import shutil
import weakref

import pandas as pd
import pytest
import torch
from conftest import TINY_MOE, alter
from families import make_checkpoint, reference, small_mixtral, weights_in, with_weights_of
from safetensors.torch import load_file, save_file
from torch import nn

import moe_colab as mc
from moe_colab.cache.spares import SPARES
from moe_colab.checkpoint import families
from moe_colab.offload import lowbit_modules, slots
from moe_colab.offload.lowbit_modules import LowBitEmbedding, LowBitLinear, low_bit_modules
from moe_colab.store import writer

pytestmark = pytest.mark.colab
WIDE = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 16}
SHARED = {  # without the head's size, which follows from others in deepseek_v3
    **{"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64},
    **{"shared_expert_intermediate_size": 32, "q_lora_rank": 32, "kv_lora_rank": 32},
}
IDS = torch.tensor([[5, 17, 3, 99, 41, 8, 77]])
KEEP = {"attention_bits": 16, "expert_bits": 16, "progress": False}
BLOBS = writer.LOW_BIT


def answer(model):
    return model.generate(IDS, max_new_tokens=24, min_new_tokens=24, do_sample=False)


def says_the_same(checkpoint, store, **load) -> list[LowBitLinear | LowBitEmbedding]:
    """As the plain model with the dequantized weights of everything; the modules in low bits."""
    plain = with_weights_of(store, reference(checkpoint))
    model, _ = mc.load(store, slots=3, kernels="plain", progress=False, **load)
    with model.offload:
        modules = low_bit_modules(model)
        assert torch.equal(answer(model), answer(plain))
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-4)
    return modules


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def checkpoint(family: str, **changes):
        key = family, str(changes)
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            made[key] = make_checkpoint(family, folder, changes=changes or WIDE)
        return made[key]

    return checkpoint


# ---------------------------------------------------------------------- what it says
@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("family", ("mixtral", "qwen3_moe", "gpt_oss", "granitemoe"))
def test_attention_says_what_the_plain_model_says_with_these_weights(
    family, bits, checkpoints, tmp_path
):
    folder, axis = checkpoints(family), bits % 2
    options = {"attention_bits": bits, "expert_bits": 4, "axis": axis, "progress": False}
    mc.quantize(folder, tmp_path / "s", **options)
    modules = says_the_same(folder, tmp_path / "s")
    assert len(modules) == 3 * 4 and {type(module) for module in modules} == {LowBitLinear}
    assert all(module.layout.matrices[0].bits == bits for module in modules)


@pytest.mark.parametrize("tied", (False, True), ids=("untied", "tied"))
@pytest.mark.parametrize("family, bits", [("mixtral", 8), ("mixtral", 4), ("granitemoe", 4)])
def test_so_do_embedding_and_head(family, bits, tied, checkpoints, tmp_path):
    folder = checkpoints(family, **WIDE, tie_word_embeddings=tied)
    mc.quantize(folder, tmp_path / "s", embedding_bits=bits, expert_bits=4, progress=False)
    modules = says_the_same(folder, tmp_path / "s")
    ends = [m for m in modules if m.shape == (128, 64)]
    assert [type(module) for module in ends] == [LowBitEmbedding, LowBitLinear]
    blobs = json.loads((tmp_path / "s" / "moe_colab.json").read_text())["low_bit"]["matrices"]
    names = [blob["modules"] for blob in blobs if blob["part"] == "embeddings"]
    if tied:
        assert names == [["model.embed_tokens", "lm_head"]]
    else:
        assert names == [["model.embed_tokens"], ["lm_head"]]


@pytest.mark.parametrize(
    "family, shared",
    [
        ("deepseek_v3", "shared_experts.down_proj"),
        ("qwen2_moe", "shared_expert.gate_proj"),
        ("glm4_moe", "shared_experts.up_proj"),
        ("hunyuan_v1_moe", "shared_mlp.up_proj"),
    ],
)
def test_shared_experts_and_dense_layers_get_the_bits_of_attention(
    family, shared, checkpoints, tmp_path
):
    folder = checkpoints(family, **SHARED)
    mc.quantize(folder, tmp_path / "s", attention_bits=3, expert_bits=4, progress=False)
    frame = mc.inspect(tmp_path / "s").frame()
    names = frame[frame.part == "dense"].matrix
    assert names.str.endswith(shared).sum() in (2, 3)
    assert not names.str.contains(r"\bgate\b|router|_gate$|norm").any()
    if family in ("deepseek_v3", "glm4_moe"):
        assert "model.layers.0.mlp.gate_proj" in set(names)  # a layer without experts
    says_the_same(folder, tmp_path / "s")


def test_a_tied_model_whose_head_is_stored_too(checkpoints, tmp_path):
    """transformers then ties nothing: each is a matrix of its own."""
    shutil.copytree(checkpoints("mixtral"), tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    mc.quantize(tmp_path / "c", tmp_path / "s", **KEEP | {"embedding_bits": 8})
    names = [m.modules for m in mc.Store(tmp_path / "s").manifest.low_bit.matrices]
    assert names == [("model.embed_tokens",), ("lm_head",)]
    says_the_same(tmp_path / "c", tmp_path / "s")


def test_a_head_alone(checkpoints, tmp_path):
    folder = checkpoints("mixtral")
    mc.quantize(folder, tmp_path / "s", **KEEP, overrides={"lm_head": mc.Format(8)})
    (head,) = says_the_same(folder, tmp_path / "s")
    assert isinstance(head, LowBitLinear) and head.out_features == 128


# ---------------------------------------------------------------------- what it is
@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The small model's, everything in few bits; embedding and head are tied."""
    folder = tmp_path_factory.mktemp("stores") / "small"
    mc.quantize(None, folder, embedding_bits=4, dtype="float32", progress=False)
    return folder


@pytest.fixture(scope="module")
def model(store):
    model, _ = mc.load(store, slots=2, kernels="plain", progress=False)
    yield model
    model.offload.close()


def test_real_bits_counted_from_the_files(store):
    """The small model: 8 layers of q, k, v, o, and an embedding; all again from the tensors."""
    summary, sizes = mc.inspect(store), {"dense": 0, "embeddings": 0}
    for name, tensor in load_file(store / BLOBS).items():
        sizes["embeddings" if name == "model.embed_tokens" else "dense"] += tensor.nbytes
    weights = 8 * (2 * 192 * 192 + 2 * 64 * 192)
    assert summary.parts["dense"].weights == weights
    for part, nbytes in sizes.items():
        assert summary.parts[part].nbytes == nbytes
        assert summary.parts[part].bits_per_weight == 8 * nbytes / summary.parts[part].weights
        # 4 bits, a scale and a zero of 8 bits for 64 weights, lines of 8 bytes for 192, padding
        assert 4 + 16 / 64 + 64 / 192 <= summary.parts[part].bits_per_weight < 4.7
    rest = (store / "dense.safetensors").stat().st_size
    assert summary.parts["rest"].nbytes == rest
    assert summary.dense_bytes == rest + sum(sizes.values())
    assert summary.total_bytes == summary.dense_bytes + summary.expert_bytes
    kept = load_file(store / "dense.safetensors")
    assert not [name for name in kept if "_proj" in name or "embed" in name]
    assert summary.parts["rest"].weights == sum(tensor.numel() for tensor in kept.values())
    assert set(summary.relative_error) == {
        *("gate_up_proj", "down_proj", "model.embed_tokens"),
        *(f"self_attn.{name}_proj" for name in "qkvo"),
    }
    assert "attention" in summary.text() and "embedding and head" in summary.text()


def test_the_report_as_a_frame(store):
    """Errors again, from the blobs and the checkpoint; every byte of a tensor has its row."""
    frame = mc.inspect(store).frame()
    assert list(frame.columns)[:4] == ["part", "layer", "expert", "matrix"]
    assert dict(frame.part.value_counts()) == {"experts": 128, "dense": 32, "embeddings": 1} | {
        "rest": len(load_file(store / "dense.safetensors"))
    }
    rows = frame[frame.part.isin(("dense", "embeddings"))].set_index("matrix")
    assert rows.layer.isna().all() and rows.expert.isna().all()
    opened, plain = mc.Store(store), reference(TINY_MOE)
    for matrix, home in zip(opened.manifest.low_bit.matrices, opened.dense_homes, strict=True):
        before = plain.get_submodule(matrix.modules[0]).weight.data.float()
        lost = (weights_in(home, matrix.layout)["weight"] - before).norm() / before.norm()
        row = rows.loc[matrix.modules[0]]
        assert row.relative_error == pytest.approx(lost.item(), rel=1e-4)
        groups = before.numel() / 64
        assert row.bytes == before.numel() / 2 + 2 * groups + 8 * len(before)
        assert (row.bits, row.group, row.axis, row.weights) == (4, 64, 1, before.numel())
    rest = frame[frame.part == "rest"]
    assert rest.relative_error.isna().all() and rest.group.isna().all()
    assert (rest.bits_per_weight == rest.bits).all()
    assert isinstance(frame.layer.dtype, pd.Int64Dtype)


def test_modules_hold_low_bits_only(store, model):
    """No weight in full anywhere, nothing that a checkpoint would hold, all of it counted."""
    names = {name for name, _ in model.named_parameters()}
    assert not [name for name in names if "_proj" in name or "embed" in name or "lm_head" in name]
    assert not [name for name in model.state_dict() if "blob" in name]
    nbytes = sum(buffer.nbytes for name, buffer in model.named_buffers() if "blob" in name)
    assert nbytes == mc.Store(store).manifest.low_bit.nbytes  # a tied head is there once
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert embedding.blob.data_ptr() == head.blob.data_ptr()
    assert not model.config.tie_word_embeddings
    for module in low_bit_modules(model):
        assert module.blob.data_ptr() % 256 == 0
        assert module.weight.shape == module.shape and module.weight.dtype == torch.float32
    assert "4 bits" in repr(head) and "4 bits" in repr(embedding)


def test_an_embedding_looks_up_rows(model, monkeypatch):
    embedding, made = model.get_input_embeddings(), []
    whole = embedding.weight
    ids = torch.tensor([[3, 200, 3], [0, 1, 2]])
    dequantize = lowbit_modules.LowBitWeight.rows

    def rows(self, numbers, dtype):
        made.append(len(numbers))
        return dequantize(self, numbers, dtype)

    monkeypatch.setattr(lowbit_modules.LowBitWeight, "rows", rows)
    for asked in (ids, ids.int(), ids[:0]):
        assert torch.equal(embedding(asked), whole[asked.long()])
    assert made == [6, 6, 0]
    for wrong in (-1, len(whole)):
        with pytest.raises(IndexError):
            embedding(torch.tensor([wrong]))


def test_it_stays_what_it_is(model, tmp_path):
    for change in (model.half, model.bfloat16, lambda: model.to(torch.float16), model.double):
        with pytest.raises((ValueError, mc.MoEColabError)):
            change()
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.to("cpu") is model
    assert torch.isfinite(model(IDS).logits).all()


def test_closing_frees_the_blobs(store, monkeypatch):
    alive, host_slab = [], slots.mmap.mmap

    def slab(*args):
        memory = host_slab(*args)
        alive.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(slots.mmap, "mmap", slab)
    model, _ = mc.load(store, slots=2, progress=False)
    model(IDS)
    assert sum(ref() is not None for ref in alive) >= 33
    model.offload.close()
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]
    assert sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) == 0
    with pytest.raises(mc.MoEColabError, match="closed"):
        model.get_output_embeddings()(torch.zeros(1, 192))


def test_low_bits_leave_room_for_slots(store, model):
    """Slots that a budget holds, reckoned again: blobs, one matrix in full, experts."""
    dense = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    vocabulary, hidden = model.get_output_embeddings().shape
    assert dense < mc.Store(store).manifest.low_bit.nbytes + 200_000
    block = mc.inspect(store).blob_bytes[0]
    for n in (2, 5):
        need = dense + 4 * vocabulary * hidden + (8 * n + SPARES) * block
        for room, expected in ((need, n), (need - 1, n - 1)):
            other, _ = mc.load(store, vram=room, kernels="plain", progress=False)
            assert other.offload.slots == expected
            other.offload.close()


def test_what_products_keep_beside_the_blobs_takes_room(model, monkeypatch):
    """Of the linear layers: an embedding is not multiplied with."""
    monkeypatch.setattr(lowbit_modules, "prepared_bytes", lambda layout, *rest: layout.nbytes)
    linear = [m for m in low_bit_modules(model) if isinstance(m, LowBitLinear)]
    assert len(linear) == 33
    largest = max(4 * math.prod(module.shape) for module in linear)
    expected = sum(module.layout.nbytes for module in linear) + largest
    assert lowbit_modules.working_bytes(model) == expected


# ---------------------------------------------------------------------- what is refused
def test_an_altered_blob_is_not_spoken(store, tmp_path):
    folder = shutil.copytree(store, tmp_path / "s")
    entry = mc.Store(folder).manifest.low_bit
    for number in (0, len(entry.matrices) - 1):
        name = entry.matrices[number].modules[0]
        for at in (0, entry.matrices[number].layout.nbytes - 1):
            alter(folder / BLOBS, entry.offset(number) + at)
            mc.Store(folder)  # opens: a blob is checked when it is read
            with pytest.raises(mc.MoEColabError, match=f"{name} in .*is damaged"):
                mc.load(folder, progress=False)
            with pytest.raises(mc.MoEColabError, match=f"damaged: {name} in {BLOBS}"):
                mc.verify(folder)
            alter(folder / BLOBS, entry.offset(number) + at)
    mc.verify(folder)
    alter(folder / BLOBS, entry.data_offset - 1)
    with pytest.raises(mc.MoEColabError, match=r"header of .* was altered"):
        mc.Store(folder)
    (folder / BLOBS).write_bytes((store / BLOBS).read_bytes()[:-1])
    with pytest.raises(mc.MoEColabError, match="bytes instead of"):
        mc.load(folder, progress=False)
    (folder / BLOBS).unlink()
    with pytest.raises(mc.MoEColabError, match="is missing"):
        mc.load(folder, progress=False)


def test_embeddings_that_cannot_be_kept_in_fewer_bits_are_told(tmp_path):
    """No group divides a hidden size of 48; attention just stays."""
    changes = {"hidden_size": 48, "head_dim": 12, "intermediate_size": 64}
    folder = make_checkpoint("mixtral", tmp_path / "c", changes=changes)
    with pytest.raises(mc.MoEColabError, match=r"embedding and head .* use embedding_bits=16"):
        mc.quantize(folder, tmp_path / "s", **KEEP | {"embedding_bits": 8})
    assert not (tmp_path / "s").exists()
    mc.quantize(folder, tmp_path / "s", **KEEP | {"attention_bits": 4})
    assert mc.Store(tmp_path / "s").manifest.low_bit is None
    assert not (tmp_path / "s" / BLOBS).exists()
    frame = mc.inspect(tmp_path / "s").frame()
    assert set(frame.part) == {"experts", "rest"}
    assert frame.matrix.str.endswith("q_proj.weight").sum() == 3
    says_the_same(folder, tmp_path / "s")


def test_an_embedding_of_its_own_class_is_left_alone():
    class Scaled(nn.Embedding):
        pass

    model = small_mixtral()
    assert set(families.vocabulary(model)) == {"model.embed_tokens", "lm_head"}
    model.set_input_embeddings(Scaled(128, 64))
    assert set(families.vocabulary(model)) == {"lm_head"}


def test_attention_weights_that_are_no_numbers_are_named(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints("mixtral"), tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"][3, 7] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(mc.MoEColabError, match=r"weight of model.layers.1.self_attn.v_proj holds"):
        mc.quantize(folder, tmp_path / "s", progress=False)


def test_a_weight_of_another_shape_is_named(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints("mixtral"), tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(96, 64)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(mc.MoEColabError, match=r"lm_head.weight in .* needs \(128, 64\)"):
        mc.quantize(folder, tmp_path / "s", progress=False)


@pytest.mark.parametrize("name", ("layers.0.self_attn.qkv_proj", "layers.0.input_layernorm"))
def test_a_model_built_otherwise_is_told(name):
    """As another version of transformers might."""
    with pytest.raises(mc.MoEColabError, match="no linear layer or embedding of that name"):
        lowbit_modules.swap(small_mixtral(), [f"model.{name}"])

"""mc.load: what is refused and in which words, what comes out, and how long it lives."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import psutil
import pytest
import torch
from census import census
from families import small_mixtral
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

import moe_colab as mc
from moe_colab.cache.policies import LRU
from moe_colab.cache.spares import SPARES
from moe_colab.checkpoint import source as source_module
from moe_colab.checkpoint.reader import Checkpoint
from moe_colab.machine.memory import FORWARD_RESERVE
from moe_colab.offload import placement
from moe_colab.quantization import devices
from moe_colab.quantization.pack import cached_store
from moe_colab.store import Manifest

pytestmark = pytest.mark.colab
LAYERS, EXPERTS = 2, 8
BLOB = 4 * (192 * 64 + 64 * 96)  # bytes of one expert in float32
IDS = torch.arange(40)[None]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny products are slower on several threads, above all where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_checkpoint(folder: Path, dtype: torch.dtype = torch.float32, **changes) -> Path:
    model = small_mixtral(**changes).to(dtype)
    model.generation_config.max_new_tokens = 7
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "mixtral")


@pytest.fixture(scope="session")
def store(source, cache_folder) -> Path:
    return cached_store(Checkpoint(source), None, progress=False).folder


@pytest.fixture(scope="session")
def plain(source) -> torch.nn.Module:
    """The same model as transformers loads it, its weights in memory of their own: products on a
    mapped file may differ in the last bit."""
    model = AutoModelForCausalLM.from_pretrained(source, experts_implementation="eager")
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def logits(plain) -> torch.Tensor:
    return plain(IDS).logits


@pytest.fixture
def folder(source, tmp_path) -> Path:
    """A copy of the checkpoint that a test may spoil."""
    return Path(shutil.copytree(source, tmp_path / "spoilt"))


@pytest.fixture
def model(store):
    model, _ = mc.load(store, slots=3)
    yield model
    model.offload.close()


def refusal(*args, **kwargs) -> str:
    """The one sentence or two with which mc.load refuses."""
    with pytest.raises(mc.MoEColabError) as error:
        mc.load(*args, progress=False, **kwargs)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


# ---------------------------------------------------------------------- no such source
def test_a_path_that_does_not_exist_is_named(tmp_path):
    assert f"{tmp_path}/nowhere does not exist" in refusal(tmp_path / "nowhere")


def test_a_name_that_no_file_can_have_is_as_any_other():
    assert "does not exist" in refusal("x" * 300)


def test_a_file_is_not_a_folder(source):
    assert "model.safetensors is a file" in refusal(source / "model.safetensors")


def test_an_empty_folder_is_called_empty(tmp_path):
    assert f"{tmp_path} is an empty folder" in refusal(tmp_path)


# ---------------------------------------------------------------------- spoilt checkpoints
def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def file(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def config(**changes) -> Callable[[Path], object]:
    """Change the configuration; None takes a key out."""

    def spoil(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        raw = {key: value for key, value in raw.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(raw))

    return spoil


def only(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def cut(nbytes: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "model.safetensors", nbytes)


def header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Rewrite the header of the weights; the bytes of the tensors that are left stay."""

    def spoil(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        tensors = json.loads(data[8 : 8 + length])
        change(tensors)
        left = sorted((t for t in tensors.values() if "shape" in t), key=itemgetter("data_offsets"))
        parts = []
        for tensor in left:
            start, end = (8 + length + offset for offset in tensor["data_offsets"])
            begin = sum(map(len, parts))
            parts.append(data[start:end])
            tensor["data_offsets"] = [begin, begin + end - start]
        text = json.dumps(tensors).encode()
        body = len(text).to_bytes(8, "little") + text + b"".join(parts)
        (folder / "model.safetensors").write_bytes(body)

    return spoil


def index(text: str) -> Callable[[Path], object]:
    """An index and no single file, which would count instead."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


EXPERT = "model.layers.1.mlp.experts"  # in the model; w1, w2, w3 in the checkpoint
TENSOR = "model.layers.1.block_sparse_moe.experts.5"
SPOILT = {
    "no config.json": (without("config.json"), "has no config.json"),
    "config.json is no JSON": (file("config.json", "{"), "config.json is not a model config"),
    "config.json is a list": (file("config.json", "[]"), "config.json is not a model config"),
    "no model_type": (config(model_type=None), "config.json names no model_type"),
    "an unknown family": (config(model_type="marvel"), "family 'marvel', which transformers"),
    "an unknown family with code of its own": (
        config(model_type="marvel", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}),
        "family 'marvel', which transformers",
    ),
    "a family that is no name": (config(model_type=5), "family 5, which transformers"),
    "a dense family": (lambda f: LlamaConfig().save_pretrained(f), "family 'llama' has no routed"),
    "no causal model": (
        lambda f: T5Config().save_pretrained(f),
        "family 't5' is not a causal language model",
    ),
    "a number that is text": (config(hidden_size="abc"), "'hidden_size' expected int"),
    "no heads": (config(num_attention_heads=0), "cannot build this model of the family 'mixtral'"),
    "an unknown activation": (config(hidden_act="nonsense"), "'nonsense'"),
    "fp8": (config(quantization_config={"quant_method": "fp8"}), "quantized with fp8"),
    "mxfp4": (config(quantization_config={"quant_method": "mxfp4"}), "quantized with mxfp4"),
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "with gptq"),
    "quantized somehow": (config(quantization_config="some"), "quantized with an unnamed method"),
    "no weights": (without("model.safetensors"), "it has none"),
    "only pytorch_model.bin": (only("pytorch_model.bin"), "it has only pytorch_model.bin"),
    "only GGUF": (only("model.gguf"), "it has only model.gguf"),
    "a missing shard": (index('{"weight_map": {"a": "model-00002.safetensors"}}'), "00002.safet"),
    "a shard that is a folder": (index('{"weight_map": {"a": "."}}'), "Is a directory"),
    "an index that is no JSON": (index("{"), "index.json is not an index of shards"),
    "an index that is a list": (index("[]"), "index.json is not an index of shards"),
    "an index of nothing": (index('{"weight_map": {}}'), "lacks the weights of"),
    "a number for a shard": (index('{"weight_map": {"a": [5]}}'), "is missing"),
    "weights cut short": (cut(500_000), "model.safetensors is cut short"),
    "weights cut in the header": (cut(100), "model.safetensors is not a complete safetensors file"),
    "weights of no byte": (cut(0), "model.safetensors is not a complete safetensors file"),
    "an expert's tensor is missing": (
        header(lambda h: h.pop(f"{TENSOR}.w2.weight")),
        f"7 tensors for the 8 experts of {EXPERT}.down_proj",
    ),
    "a layer's experts are missing": (config(num_hidden_layers=3), "model.layers.2.mlp.experts"),
    "a matrix of all experts is missing": (
        header(lambda h: [h.pop(k) for k in list(h) if "layers.1" in k and ".w3." in k]),
        f"{EXPERT}.gate_up_proj",
    ),
    "more experts than configured": (config(num_local_experts=7), "8 tensors for the 7 experts"),
    "fewer experts than configured": (config(num_local_experts=9), "8 tensors for the 9 experts"),
    "experts of another size": (config(intermediate_size=48), "the model needs (96, 64)"),
    "experts in codes": (
        header(lambda h: [h[k].update(dtype="I32") for k in h if ".experts." in k]),
        "is kept in torch.int32",
    ),
    "experts in codes, and no word of a dtype": (
        lambda f: (SPOILT["experts in codes"][0](f), config(dtype=None)(f)),
        "is kept in torch.int32",
    ),
    "experts in an unknown dtype": (
        header(lambda h: h[f"{TENSOR}.w2.weight"].update(dtype="F8_E4M3", shape=[64, 384])),
        f"{TENSOR}.w2.weight as F8_E4M3",
    ),
    "a shape that its bytes do not fill": (
        header(lambda h: h[f"{TENSOR}.w2.weight"].update(shape=[64, 95])),
        "model.safetensors is not a complete safetensors file",
    ),
    "a dtype to compute in that is none": (config(dtype="int8"), "dtype=torch.int8"),
    "a dense tensor is missing": (
        header(lambda h: h.pop("model.norm.weight")),
        "does not fill the model: model.norm.weight",
    ),
    "dense tensors of another size": (
        config(vocab_size=100),
        "does not fill the model: lm_head.weight, model.embed_tokens.weight",
    ),
    "a tokenizer that is none": (file("tokenizer.json", "garbage"), "tokenizer in"),
    "a tokenizer of another kind": (file("tokenizer.json", '{"version": "9"}'), "tokenizer in"),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_checkpoint_is_refused_by_name(folder, spoil, capfd):
    change, expected = SPOILT[spoil]
    change(folder)
    message = refusal(folder)
    assert expected in message
    assert capfd.readouterr() == ("", "")  # the error says it all


def test_a_checkpoint_that_was_repaired_is_loaded(folder, source, logits):
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_text("garbage")
        refusal(folder)
        (folder / name).unlink()
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
        model, tokenizer = mc.load(folder, slots=3)
        assert torch.equal(model(IDS).logits, logits)
        assert tokenizer is None


# ---------------------------------------------------------------------- spoilt arguments
ARGUMENTS = {
    "an unknown policy": ({"policy": "mru"}, "unknown policy 'mru'"),
    "a policy that is none": ({"policy": None}, "policy must be a name or a class, not None"),
    "a policy without methods": ({"policy": int}, "policy int has no method observe"),
    "no slots": ({"slots": 0}, "1 to 8, the experts of MoE layer 0, not 0"),
    "negative slots": ({"slots": -1}, "not -1"),
    "more slots than experts": ({"slots": 9}, "1 to 8, the experts of MoE layer 0, not 9"),
    "slots that are true": ({"slots": True}, "not True"),
    "many slots": ({"slots": "many"}, "not 'many'"),
    "slots of a fraction": ({"slots": 2.0}, "not 2.0"),
    "slots of nothing": ({"slots": None}, "not None"),
    "slots for one layer": ({"slots": [2]}, "1 numbers of slots were given for 2 MoE layers"),
    "slots for three layers": ({"slots": [2, 2, 2]}, "3 numbers of slots were given for 2"),
    "slots of which one is wrong": ({"slots": [2, 9]}, "the experts of MoE layer 1, not 9"),
    "an unknown device": ({"device": "tpu9"}, "'tpu9' is not a device"),
    "a device that is no name": ({"device": None}, "None is not a device"),
    "mps": ({"device": "mps"}, "not on mps"),
    "meta": ({"device": "meta"}, "not on meta"),
    "an integer dtype": ({"dtype": "int8"}, "cannot compute in int8"),
    "a torch dtype that is none to compute in": ({"dtype": torch.float64}, "in torch.float64"),
    "a dtype that is none": ({"dtype": "nonsense"}, "cannot compute in nonsense"),
    "a dtype of another store": ({"dtype": "float16"}, "holds torch.float32 experts"),
    "vram of words": ({"vram": "a lot"}, "'a lot' is not a size"),
    "ram of two numbers": ({"ram": "1.2.3GB"}, "'1.2.3GB' is not a size"),
    "ram of an unknown unit": ({"ram": "12 parsecs"}, "'12 parsecs' is not a size"),
    "ram of no number": ({"ram": float("nan")}, "nan is not a size"),
    "negative ram": ({"ram": -1}, "-1 is not a size"),
    "ram that is true": ({"ram": True}, "True is not a size"),
    "more ram than there is": ({"ram": "900TB"}, "ram=900000.0 GB was asked for"),
    "vram for less than a slot": ({"vram": 300_000}, "one slot a layer needs"),
    "an unknown resident expert": ({"resident": {1: [3, 8]}}, "experts [3, 8] of MoE layer 1"),
    "a resident of an unknown layer": ({"resident": {2: [0]}}, "experts [0] of MoE layer 2"),
    "a resident that is no list": ({"resident": {0: 3}}, "a list of its experts"),
    "residents without layers": ({"resident": [[0], [1]]}, "a list of its experts"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_argument_is_refused_by_name(store, name, capfd):
    arguments, expected = ARGUMENTS[name]
    assert expected in refusal(store, **arguments)
    assert capfd.readouterr() == ("", "")


def test_cuda_without_a_gpu_is_refused(store, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA GPU that torch can use" in refusal(store, device="cuda")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert devices.pick_device("auto") == devices.pick_device("cuda") == torch.device("cuda", 1)
    assert devices.pick_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(mc.MoEColabError, match=r"no cuda:2: this machine has 2 GPUs"):
        devices.pick_device("cuda:2")


def test_a_gpu_without_bfloat16_gets_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    t4, cpu, bf16 = torch.device("cuda", 0), torch.device("cpu"), torch.bfloat16
    assert devices.usable_dtype(bf16, None, t4) is torch.float16
    assert devices.usable_dtype(bf16, torch.float32, t4) is torch.float32
    assert devices.usable_dtype(torch.float32, None, t4) is torch.float32
    assert devices.usable_dtype(bf16, None, cpu) is bf16
    with pytest.raises(mc.MoEColabError, match="Tesla T4 cannot compute in bfloat16"):
        devices.usable_dtype(bf16, bf16, t4)


def test_a_wrong_setting_is_found_before_the_packing(tmp_path, cache_folder):
    source = make_checkpoint(tmp_path / "never-packed")
    for wrong in ({"slots": 9}, {"policy": "best"}, {"resident": {0: [8]}}, {"ram": "much"}):
        refusal(source, **wrong)
    assert not list(cache_folder.glob("never-packed*"))


def test_more_ram_than_the_machine_has_left_is_refused(store, monkeypatch):
    monkeypatch.setattr(placement, "available_memory", lambda: 1_500_000_000)
    assert "ram=2.0 GB was asked for, but 1.5 GB are free" in refusal(store, slots=2, ram="2GB")


def test_slots_that_do_not_fit_are_refused_with_what_would(store, monkeypatch):
    free = FORWARD_RESERVE + 8 * BLOB
    monkeypatch.setattr(placement, "available_memory", lambda: free + 173_312)  # beside the rest
    message = refusal(store, slots=4)  # and two spares
    assert "with these slots this model needs" in message
    assert "(173.3 kB without its experts, 147.5 kB for one slot in every layer)" in message
    assert "are free: use fewer slots" in message
    mc.load(store, slots=3)


# ---------------------------------------------------------------------- what comes out
def test_a_model_is_ready_to_run_and_not_to_train(model):
    assert isinstance(model, MixtralForCausalLM)
    assert not model.training
    parameters = dict(model.named_parameters())
    assert not any(parameter.requires_grad for parameter in parameters.values())
    assert not any("experts" in name for name in parameters)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in parameters.values())
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())


def test_weights_of_odd_sizes_lie_on_64_bytes_too(tmp_path):
    source = make_checkpoint(tmp_path / "odd", hidden_size=40)
    model, _ = mc.load(source, slots=2, progress=False)
    sizes = [parameter.nbytes % 64 for parameter in model.parameters()]
    assert sum(map(bool, sizes)) > 1
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_a_checkpoint_is_loaded_in_the_dtype_asked_for(source, dtype):
    model, _ = mc.load(source, slots=2, dtype=dtype, progress=False)
    wanted = devices.pick_dtype(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    plain = AutoModelForCausalLM.from_pretrained(
        source, dtype=wanted, experts_implementation="eager"
    )
    assert model(IDS).logits.dtype == wanted
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_the_generation_configuration_is_the_checkpoints(model, plain):
    assert model.generation_config.to_dict() == plain.generation_config.to_dict()
    assert model.generate(IDS).shape == (1, IDS.shape[1] + 7)


def test_no_tokenizer_is_none(store):
    model, tokenizer = mc.load(store)
    assert tokenizer is None


def test_a_tokenizer_is_loaded_with_its_model(folder):
    words = {"<unk>": 0, "one": 1, "two": 2}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), unk_token="<unk>"
    ).save_pretrained(folder)
    _, tokenizer = mc.load(folder, progress=False)
    assert tokenizer("two")["input_ids"] == [2]


def test_tied_weights_stay_tied(tmp_path):
    source = make_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    model, _ = mc.load(source, slots=2, progress=False)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    plain = AutoModelForCausalLM.from_pretrained(source, experts_implementation="eager")
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_nothing_leaks_into_other_models_of_the_same_folder(source, plain, logits):
    config = AutoConfig.from_pretrained(source)
    before = config.to_dict()
    model, _ = mc.load(source, slots=2)
    assert config.to_dict() == before
    later = AutoModelForCausalLM.from_pretrained(source, experts_implementation="eager")
    for other in (plain, later):
        assert not hasattr(other.config, "quantization_config")
        assert other.config._experts_implementation == "eager"
        assert torch.equal(other(IDS).logits, logits)
    assert not hasattr(AutoConfig.from_pretrained(source), "quantization_config")
    assert torch.equal(model(IDS).logits, logits)


def test_slots_are_half_the_experts_where_nothing_is_said(store):
    assert mc.load(store)[0].offload.slots == EXPERTS // 2


def test_vram_is_filled_with_slots(store):
    dense = sum(parameter.nbytes for parameter in mc.load(store)[0].parameters())
    for slots in (1, 5, 8):
        room = dense + 10_000 + (slots * LAYERS + SPARES) * BLOB
        assert mc.load(store, vram=room)[0].offload.slots == slots
    assert mc.load(store, vram="1GB")[0].offload.slots == EXPERTS


# ---------------------------------------------------------------------- what it refuses to become
def test_gradients_are_refused(model, logits):
    embeddings = model.get_input_embeddings()(IDS)
    with pytest.raises(mc.MoEColabError, match="cannot be trained"):
        model(inputs_embeds=embeddings.clone().requires_grad_())
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            out = model(inputs_embeds=embeddings.clone().requires_grad_()).logits
        assert torch.equal(out, logits)
    assert torch.equal(model(inputs_embeds=embeddings).logits, logits)


def test_a_trained_router_is_refused(model):
    model.model.layers[0].mlp.gate.weight.requires_grad_()
    with pytest.raises(mc.MoEColabError, match="cannot be trained"):
        model(IDS)


CASTS = {
    "to(dtype)": lambda model: model.to(torch.float16),
    "to(dtype=)": lambda model: model.to(dtype=torch.bfloat16),
    "to(device, dtype)": lambda model: model.to("cpu", torch.float16),
    "to(other tensor)": lambda model: model.to(torch.zeros(1, dtype=torch.float64)),
    "to(other device)": lambda model: model.to("meta"),
    "half": lambda model: model.half(),
    "float": lambda model: model.float(),
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "type": lambda model: model.type(torch.float16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_is_refused_and_changes_nothing(model, logits, cast):
    with pytest.raises((mc.MoEColabError, ValueError)):  # half and float: transformers' own words
        CASTS[cast](model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model(IDS).logits, logits)


def test_a_cast_of_a_part_is_met_when_it_is_used(model):
    model.model.to(torch.bfloat16)
    with pytest.raises(mc.MoEColabError, match="do not move or cast a loaded model"):
        model(IDS)


def test_a_move_to_where_it_is_changes_nothing(model, logits):
    assert model.to("cpu") is model
    assert model.to(torch.float32) is model
    assert model.to("cpu", torch.float32).cpu() is model
    assert torch.equal(model(IDS).logits, logits)


def test_it_cannot_be_saved_without_its_experts(model, tmp_path, logits):
    with pytest.raises((mc.MoEColabError, ValueError), match="not serializable"):
        model.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.glob("saved/*.safetensors"))
    assert torch.equal(model(IDS).logits, logits)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_compiled_model_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    source = make_checkpoint(tmp_path / "one layer", num_hidden_layers=1)
    model, _ = mc.load(source, slots=2, progress=False)
    expected = model(IDS).logits
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, dynamic=False)
        for _ in range(2):
            torch.testing.assert_close(compiled(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert model.offload.stats().forwards == 3
    torch._dynamo.reset()


# ---------------------------------------------------------------------- settings while it lives
def test_slots_and_policy_can_be_set_at_any_time(model, logits):
    handle = model.offload
    for slots in (1, [2, 8], 8, [3, 3], 2):
        handle.slots = slots
        assert handle.slots == (3 if slots == [3, 3] else slots)
        for policy in ("lfu", "fifo", "random", "none", LRU, "lru"):
            handle.policy = policy
            assert handle.policy == ("LRU" if policy is LRU else policy)
            assert torch.equal(model(IDS).logits, logits)


def test_settings_change_between_tokens(model, plain):
    settings = iter([("slots", 1), ("policy", "none"), ("slots", [8, 2]), ("policy", "lfu")] * 10)

    class Restless:
        def put(self, _tokens):
            setattr(model.offload, *next(settings))

        def end(self):
            self.ended = True

    out = model.generate(IDS, streamer=Restless(), max_new_tokens=20)
    assert torch.equal(out, plain.generate(IDS, max_new_tokens=20))


@pytest.mark.parametrize(
    ("name", "value"),
    [("slots", 0), ("slots", 9), ("slots", "auto"), ("slots", None), ("policy", "mru")],
)
def test_a_wrong_setting_is_refused_and_changes_nothing(model, logits, name, value):
    with pytest.raises(mc.MoEColabError):
        setattr(model.offload, name, value)
    assert (model.offload.slots, model.offload.policy) == (3, "lru")
    assert torch.equal(model(IDS).logits, logits)


def test_slots_that_do_not_fit_leave_the_old_ones(model, logits, monkeypatch):
    monkeypatch.setattr(placement, "available_memory", lambda: 10 * BLOB)
    with pytest.raises(mc.MoEColabError, match="use fewer slots"):
        model.offload.slots = 8
    assert model.offload.slots == 3
    assert torch.equal(model(IDS).logits, logits)


# ---------------------------------------------------------------------- homes
def homes(model) -> list[list[str]]:
    return [
        [model.offload.where(layer, expert).home for expert in range(EXPERTS)]
        for layer in range(LAYERS)
    ]


@pytest.mark.parametrize("policy", ["lru", "none"])
@pytest.mark.parametrize("resident", [{}, {0: [3]}, {1: [0, 5, 7]}, {0: range(8), 1: range(8)}])
@pytest.mark.parametrize("hosted", [0, 1, 5, 16])
def test_every_expert_has_one_home_and_outputs_do_not_change(
    store, plain, logits, policy, resident, hosted
):
    model, _ = mc.load(store, slots=2, policy=policy, resident=resident, ram=hosted * BLOB + 10)
    at_home = {(layer, expert) for layer, experts in resident.items() for expert in experts}
    found = homes(model)
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            assert (found[layer][expert] == "device") == ((layer, expert) in at_home)
    in_host = sum(layer.count("host") for layer in found)
    assert in_host == min(hosted, LAYERS * EXPERTS - len(at_home))  # no room is lost on residents
    for _ in range(2):
        assert torch.equal(model(IDS).logits, logits)
        counts = census(model.offload.pool)
        assert counts["home_device"] == len(at_home)
        assert counts["home_host"] == in_host
        assert counts["home_disk"] == LAYERS * EXPERTS - len(at_home) - in_host
        blocks = LAYERS * 2 + SPARES + len(at_home)
        assert counts["ready"] + counts["loading"] + counts["free"] == blocks
    memory = {(row["place"], row["part"]): row["bytes"] for row in model.offload.memory()}
    tensors = [*plain.named_parameters(), *plain.named_buffers()]
    dense = sum(tensor.nbytes for name, tensor in tensors if ".experts." not in name)
    assert memory.pop(("device", "all but the experts")) == dense
    assert memory == {
        place: count * BLOB
        for place, count in {
            ("device", "slots"): LAYERS * 2,
            ("device", "spares"): SPARES,
            ("device", "pinned experts"): len(at_home),
            ("host", "experts"): in_host,
            ("disk", "experts"): LAYERS * EXPERTS - len(at_home) - in_host,
        }.items()
        if count
    }
    model.offload.slots = 4  # homes are for the session
    assert homes(model) == found
    assert torch.equal(model(IDS).logits, logits)


def test_host_homes_are_spread_over_the_layers(store):
    model, _ = mc.load(store, slots=2, ram=5 * BLOB)
    assert sorted(layer.count("host") for layer in homes(model)) == [2, 3]


def test_nothing_is_read_from_disk_when_every_expert_has_a_home_in_memory(store, logits):
    model, _ = mc.load(store, slots=2, ram=LAYERS * EXPERTS * BLOB)
    assert torch.equal(model(IDS).logits, logits)
    stats = model.offload.stats()
    assert stats.disk_bytes == 0
    assert stats.bytes_loaded == stats.loads * BLOB > 0


def test_what_is_read_from_disk_is_counted(model):
    model(IDS)
    stats = model.offload.stats()
    assert stats.disk_bytes == stats.bytes_loaded == stats.loads * BLOB > 0


def test_residents_are_never_loaded(store, logits):
    everyone = {layer: range(EXPERTS) for layer in range(LAYERS)}
    model, _ = mc.load(store, slots=1, resident=everyone)
    assert torch.equal(model(IDS).logits, logits)
    assert (model.offload.stats().loads, model.offload.stats().hit_rate) == (0, 1.0)


# ---------------------------------------------------------------------- lives and their ends
def link_threads() -> set[threading.Thread]:
    gc.collect()
    return {thread for thread in threading.enumerate() if thread.name.startswith("moe_colab")}


def eventually(condition: Callable[[], bool]) -> bool:
    """A thread that was told to end needs a moment."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def open_files(folder: Path) -> list[str]:
    return [f.path for f in psutil.Process().open_files() if f.path.startswith(str(folder))]


def test_two_models_of_one_store_know_nothing_of_each_other(store, logits):
    first, _ = mc.load(store, slots=1)
    second, _ = mc.load(store, slots=[8, 2], policy="lfu")
    for model in (first, second, first):
        assert torch.equal(model(IDS).logits, logits)
    assert second.offload.stats().forwards == 1
    first.offload.close()
    assert torch.equal(second(IDS).logits, logits)


def test_a_closed_model_says_so(model):
    model(IDS)
    model.offload.close()
    model.offload.close()
    uses = (
        lambda: model(IDS),
        lambda: model.generate(IDS),
        lambda: setattr(model.offload, "slots", 2),
        lambda: setattr(model.offload, "policy", "lfu"),
        lambda: model.offload.where(0, 0),
    )
    for use in uses:
        with pytest.raises(mc.MoEColabError, match="was closed"):
            use()
    assert model.offload.stats().forwards >= 1  # what was counted can still be read
    assert set(census(model.offload.pool).values()) == {0}
    assert "closed" in repr(model.offload)


def test_closing_ends_the_thread_and_lets_go_of_the_files(folder):
    before = link_threads()
    model, _ = mc.load(folder, slots=2, progress=False)
    model(IDS)
    store = model.offload.store
    assert len(link_threads() - before) == 1
    assert len(open_files(store)) == LAYERS
    model.offload.close()
    assert link_threads() <= before
    assert open_files(store) == []


def test_leaving_the_context_closes_even_after_an_error(store, logits):
    model, _ = mc.load(store, slots=2)
    with contextlib.suppress(ZeroDivisionError), model.offload as handle:
        assert torch.equal(model(IDS).logits, logits)
        _ = 1 / 0
    assert handle is model.offload
    with pytest.raises(mc.MoEColabError, match="was closed"):
        model(IDS)


def test_a_model_that_is_forgotten_is_gone_with_its_thread(folder):
    before = link_threads()
    model, _ = mc.load(folder, slots=2, policy="lfu", progress=False)
    model.generate(IDS)
    model.offload.slots = 3
    model(IDS)
    store, gone = model.offload.store, weakref.ref(model)
    handle = weakref.ref(model.offload)
    del model
    assert eventually(lambda: link_threads() <= before)
    assert gone() is None and handle() is None
    assert open_files(store) == []


def test_a_load_that_fails_leaves_nothing_behind(folder):
    before = link_threads()
    store = cached_store(Checkpoint(folder), None, progress=False).folder
    entry = Manifest.load(store).layers[1]
    with open(store / entry.file, "r+b") as file:
        file.seek(entry.offset(6))
        file.write(b"not these")
    for arguments in ({"resident": {1: [6]}}, {"ram": "100MB"}):
        assert "expert 6 of MoE layer 1" in refusal(store, **arguments)
        assert eventually(lambda: link_threads() <= before)
        assert open_files(store) == []


class ReadsLogits(LRU):
    """LRU that asks to be shown what the routers said, and checks it."""

    needs_logits = True

    def observe(self, used, tokens=None):
        assert sorted({expert for experts, _ in tokens for expert in experts}) == list(used)
        for experts, logits in tokens:
            best = sorted(range(self.experts), key=logits.__getitem__)[-len(experts) :]
            assert set(best) == set(experts)
        super().observe(used)


@pytest.mark.parametrize("policy", ["lru", ReadsLogits])
def test_two_threads_may_generate_at_once(store, plain, policy):
    model, _ = mc.load(store, slots=2, policy=policy)
    prompts = [IDS[:, :9], IDS[:, 20:]]
    expected = [plain.generate(prompt, max_new_tokens=16) for prompt in prompts]
    out: list[list[torch.Tensor]] = [[], []]

    def speak(number: int) -> None:
        for _ in range(3):
            out[number].append(model.generate(prompts[number], max_new_tokens=16))

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert len(out[number]) == 3
        assert all(torch.equal(logits, expected[number]) for logits in out[number])


def test_the_shipped_model_is_the_default(monkeypatch, source, logits):
    monkeypatch.setattr(source_module, "shipped_model", lambda: source)
    assert torch.equal(mc.load(progress=False)[0](IDS).logits, logits)

"""One matrix quantized on the spot, the widget that shows it, the plan, and stores found again."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY_MOE
from hqq.core.quantize import Quantizer
from safetensors.torch import load_file, save_file

import moe_colab as mc
from moe_colab import MoEColabError, plots
from moe_colab.evaluation import quantize as quantize_module
from moe_colab.notebook.widgets import matrix_preview, panel
from moe_colab.notebook.widgets.matrix_preview import Matrices
from moe_colab.planner import catalogue
from moe_colab.planner.device_memory import DeviceMemory
from moe_colab.planner.sizes import Sizes
from moe_colab.quantization import forecast
from moe_colab.quantization.format import Format

pytestmark = pytest.mark.colab
NAMES = "model.layers.3.block_sparse_moe.experts.5.w2.weight", "model.layers.3.self_attn.k_proj"


@pytest.fixture(scope="module")
def weights():
    return load_file(TINY_MOE / "model.safetensors")


@pytest.fixture
def view():
    widget = mc.QuantizeWidget()
    yield widget
    widget.close()


# ---------------------------------------------------------------------- one matrix
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_sample_is_what_hqq_makes_of_that_matrix(weights, bits, group, axis):
    """By hqq's own formula, with float scales where ours have 8 bits."""
    matrices = Matrices()
    entry = matrices.experts[3, 5]["w2"]
    found = matrices.sample(entry, "w2", Format(bits, group, axis))
    weight = weights[NAMES[0]].float()
    assert (found.weights == weight.numpy()).all()
    codes, meta = Quantizer.quantize(
        weight, nbits=bits, group_size=group, axis=axis, bitpack=False, device="cpu"
    )
    back = Quantizer.dequantize(codes, meta).view(weight.shape).float()
    lost = (torch.linalg.norm(back - weight) / torch.linalg.norm(weight)).item()
    assert found.relative_error == pytest.approx(lost, rel=0.01)
    assert len(found.levels) == 2**bits
    first = weight[0, :group] if axis else weight[:: len(weight) // group, 0]
    assert (found.group == first.numpy()).all()
    nearest = np.abs(found.group[:, None] - found.levels).min(1)
    own = (back[0, :group] if axis else back[:: len(weight) // group, 0]).numpy()
    assert np.linalg.norm(nearest) <= 1.03 * np.linalg.norm(own - found.group)


def test_bits_and_bytes_are_counted(weights):
    matrices = Matrices()
    names = {name: tensor for name, tensor in weights.items() if tensor.ndim == 2}
    experts = [t for name, t in names.items() if ".experts." in name]
    attention = [t for name, t in names.items() if ".self_attn." in name]
    total = sum(t.numel() * t.element_size() for t in weights.values())

    def low(tensor, bits: int, group: int) -> float:
        """Codes, 8-bit scale and zero a group, 8 bytes a row."""
        return tensor.numel() * (bits / 8 + 2 / group) + 8 * len(tensor)

    parts = matrices.bytes_by_part(Format(2, 64), Format(3, 16))
    assert parts["experts"] == sum(low(t, 2, 64) for t in experts)
    assert parts["attention"] == sum(low(t, 3, 16) for t in attention)
    assert sum(matrices.bytes_by_part(None, None).values()) == total
    w2 = matrices.sample(matrices.experts[0, 0]["w2"], "w2", Format(2, 64))
    assert w2.bits_per_weight == 8 * low(weights[NAMES[0]], 2, 64) / weights[NAMES[0]].numel()
    assert matrices.groups() == [16, 32, 64]  # 128 does not divide rows of 192


def test_the_bytes_are_those_of_a_store(weights):
    """But for padding, and for what the matrices of the store are called."""
    parts = Matrices().bytes_by_part(Format(3, 32), None)
    frame = mc.quantized(None, expert_bits=3, group_size=32, progress=False).frame()
    if "part" in frame:
        frame = frame[frame["part"] == "experts"]
    assert parts["experts"] == frame["bytes"].sum()


def test_a_folder_of_other_things_is_refused(tmp_path):
    save_file({"a.weight": torch.zeros(32, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(MoEColabError, match="has no separate matrix for each expert"):
        Matrices(tmp_path)
    with pytest.raises(MoEColabError, match="missing"):
        Matrices(tmp_path / "nowhere")


# ---------------------------------------------------------------------- the widget
def shown(view) -> str:
    return view.facts.value.replace("&nbsp;", " ")


def test_what_is_chosen_is_quantized_and_shown(view):
    before = view.picture.value
    assert view.settings() == {"attention_bits": 4, "expert_bits": 2, "group_size": 64}
    view.layer.value, view.expert.value, view.matrix.value = 3, 5, "w2"
    view.expert_bits.value, view.group.value, view.attention_bits.value = 3, 16, 8
    assert view.settings() == {"attention_bits": 8, "expert_bits": 3, "group_size": 16}
    matrices = Matrices()
    name, entry = next(iter(matrices.attention[3].items()))
    found = [
        matrices.sample(matrices.experts[3, 5]["w2"], "expert 5, w2", Format(3, 16)),
        matrices.sample(entry, f"attention, {name}", Format(8, 16)),
    ]
    for one in found:
        assert f"{one.bits_per_weight:.2f} bits per weight" in shown(view)
        assert f"{one.relative_error:.1%} of its norm lost" in shown(view)
    assert view.picture.value == plots.levels([one.as_row() for one in found]).png() != before
    total = sum(matrices.bytes_by_part(Format(3, 16), Format(8, 16)).values())
    assert f"{total / 1e6:.1f} MB" in shown(view)
    assert view.status.value == "" and view.error is None


def test_attention_that_is_kept_has_no_panel(view):
    view.attention_bits.value = 16
    assert len(view.samples()) == 1 and "attention, " not in shown(view)
    kept = Matrices().bytes_by_part(None, None)["attention"]
    assert f"attention {kept / 1e6:.1f} MB" in shown(view)


def test_errors_are_told_and_go_away(view, monkeypatch):
    def broken(*_):
        raise MoEColabError("quantizing needs the hqq package")

    with monkeypatch.context() as patch:
        patch.setattr(matrix_preview, "choose_scales", broken)
        view.expert_bits.value = 3
        assert "needs the hqq package" in view.status.value and view.error is None
        patch.setattr(matrix_preview, "choose_scales", lambda *_: 1 / 0)
        view.expert_bits.value = 4
        assert "ZeroDivisionError" in view.status.value
        assert isinstance(view.error, ZeroDivisionError)
    view.expert_bits.value = 2
    assert view.status.value == ""


def test_it_shows_itself(view, monkeypatch):
    seen = []
    monkeypatch.setattr(panel, "display", seen.append)
    view._display()
    assert seen == [view.page]


# ---------------------------------------------------------------------- the plan
MIXTRAL_LIKE = Sizes(
    *(93_400_000_000, 90_194_313_216),
    DeviceMemory([352_321_536] * 32, [8] * 32, 3_210_000_000),
    shards=9_900_000_000,
)


@pytest.fixture
def machine(monkeypatch):
    """A machine with so much disk and memory, and a model of the hub that is Mixtral's size."""

    def set_up(disk: float = 70e9, memory: float = 11e9, **about) -> None:
        row = catalogue.describe("a/large", **{"sizes": MIXTRAL_LIKE, **about})
        monkeypatch.setattr(forecast, "info", lambda source, refresh: row)
        monkeypatch.setattr(forecast, "free_disk", lambda folder: int(disk))
        monkeypatch.setattr(forecast, "available_memory", lambda: int(memory))
        monkeypatch.setattr(forecast, "speed", lambda form, device: 20e6)

    return set_up


def test_the_plan_of_a_large_model(machine, tmp_path):
    machine()
    plan = forecast.forecast("a/large", tmp_path, expert_bits=2, group_size=64)
    weights = 90_194_313_216 // 2
    store = weights * (2 + 16 / 64 + 64 / 4096) / 8 + 3_210_000_000
    assert plan.store_bytes == int(store) and plan.disk_bytes == int(store) + 9_900_000_000
    assert plan.download_bytes == 93_400_000_000 and plan.weights == weights
    assert plan.seconds == max(93_400_000_000 / 50e6, weights / 20e6)
    assert plan.fits
    plan.check()
    html = plan._repr_html_().replace("&nbsp;", " ")
    for text in (repr(plan), html):
        assert "93.4 GB" in text and "16.0 GB" in text and "25.9 GB" in text
        assert f"~{plan.seconds / 60:.0f} min" in text and "20.0 million weights" in text
    assert "fits this machine" in html and "✓" in html


def test_a_plan_that_does_not_fit(machine, tmp_path):
    for short, kind in (({"disk": 25e9}, "disk"), ({"memory": 1e9}, "memory")):
        machine(**short)
        plan = forecast.forecast("a/large", tmp_path)
        assert not plan.fits and "does not fit" in repr(plan) and "✗" in plan._repr_html_()
        with pytest.raises(MoEColabError, match=f"of {kind}, and .* are free"):
            plan.check()
    machine(here=True)
    plan = forecast.forecast("a/large", tmp_path)
    assert plan.download_bytes == 0 and plan.disk_bytes == plan.store_bytes
    assert "it is here" in repr(plan)


def test_a_plan_of_what_is_not_known(machine, tmp_path):
    machine(sizes=None, problem="gated: log in")
    with pytest.raises(MoEColabError, match="not known: gated: log in"):
        forecast.forecast("a/large", tmp_path)
    with pytest.raises(MoEColabError, match="choose bits"):
        forecast.forecast(None, tmp_path, expert_bits=5)


def test_the_plan_of_the_small_model_holds(tmp_path):
    """The store is of the size that was told, and the speed is one that was measured."""
    plan = forecast.forecast(None, tmp_path, expert_bits=4, group_size=64)
    report = mc.quantized(None, expert_bits=4, group_size=64, progress=False)
    frame = report.frame()
    if "part" in frame:
        frame = frame[frame["part"] == "experts"]
    assert plan.store_bytes == pytest.approx(report.total_bytes, rel=0.1)
    assert plan.weights == frame["weights"].sum()
    assert plan.fits and 1e4 < plan.weights_a_second < 1e12 and plan.download_bytes == 0


# ---------------------------------------------------------------------- stores found again
def test_a_quantized_store_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_COLAB_CACHE", str(tmp_path / "cache"))
    model = shutil.copytree(TINY_MOE, tmp_path / "model")
    made = []
    quantize = quantize_module.quantize

    def counted(source, folder, **settings):
        made.append(settings)
        return quantize(source, folder, **settings)

    monkeypatch.setattr(quantize_module, "quantize", counted)
    first = mc.quantized(model, expert_bits=2, progress=False)
    assert mc.quantized(model, expert_bits=2, progress=False) == first and len(made) == 1
    assert mc.verify(first.store).experts == 64
    other = mc.quantized(model, expert_bits=8, progress=False)
    assert other.store != first.store and other.bits_per_weight > first.bits_per_weight
    config = model / "config.json"
    config.write_text(config.read_text() + "\n")  # another checkpoint now
    assert mc.quantized(model, expert_bits=2, progress=False).store != first.store
    assert len(made) == 3


def test_what_was_measured_comes_along():
    assert mc.benchmark("small_model")["bench"] == "small-model"
    assert math.isfinite(mc.benchmark("small_model")["parameters"])
    with pytest.raises(MoEColabError, match=r"no benchmark 'nothing': choose from .*small_model"):
        mc.benchmark("nothing")

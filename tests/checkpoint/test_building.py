"""A Ctrl-C while transformers builds a model leaves nothing changed in torch."""

from __future__ import annotations

import contextlib
import signal
import sys

import pytest
import torch
from families import make_checkpoint, tiny_config

import moe_colab as mc
from moe_colab.checkpoint.architecture import skeleton

FILES = ("torch/utils/_device.py", "torch/overrides.py")


class Interrupt:
    """Ctrl-C at the n-th call inside torch's switch of the default device, where Python handles
    signals: at the begin of a function of Python, and after one of C."""

    def __init__(self, n: int):
        self.n, self.seen = n, 0

    def __call__(self, frame, event, function):
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(FILES):
            self.seen += 1
            if self.seen == self.n + 1:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def interrupted(n: int):
    interrupt = Interrupt(n)
    sys.setprofile(interrupt)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield interrupt
    finally:
        sys.setprofile(None)


def modes() -> int:
    """How many switches of torch functions are on in this thread."""
    return torch._C._len_torch_function_stack()


@pytest.fixture
def restored():
    """Switches that a failed test leaves on would break all tests after it."""
    before = modes()
    yield before
    while modes() > before:
        torch._C._pop_torch_function_stack()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_skeleton(family, restored):
    config = tiny_config(family)
    with interrupted(-2) as counted:
        skeleton(config)
    assert counted.seen > 40
    for n in range(40):
        with interrupted(n):
            skeleton(config)
        assert modes() == restored and torch.empty(1).device.type == "cpu", n


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_model_that_is_loaded(family, restored, tmp_path):
    model, _ = mc.load(make_checkpoint(family, tmp_path / "model"), progress=False)
    store = model.offload.store
    model.offload.close()
    with interrupted(-2) as counted:
        mc.load(store, progress=False)
    assert counted.seen > 40
    for n in range(40):
        with interrupted(n):
            mc.load(store, progress=False)
        assert modes() == restored and torch.empty(1).dtype == torch.float32, n

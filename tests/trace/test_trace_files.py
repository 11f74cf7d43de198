"""Files of traces that say what no trace can: each is one sentence, and takes no memory."""

from __future__ import annotations

import io
import json
import resource
import signal
import zipfile

import numpy as np
import pytest

import moe_colab as mc

HEAD = "# route_trace v1\n# model=x n_layer={layers} n_expert={experts} n_expert_used={top_k}\n"
SIZES = "# layer=0 expert_bytes=10\n# layer=1 expert_bytes=10\n"
COLUMNS = "turn,phase,step,layer,slot,expert,expert_bytes\n"
ROW = "0,0,0,0,0,1,10\n0,0,0,1,0,2,0\n"


def csv(rows: str = ROW, layers: int = 2, experts: int = 4, top_k: int = 2) -> str:
    return HEAD.format(layers=layers, experts=experts, top_k=top_k) + SIZES + COLUMNS + rows


WRONG = {
    "a huge number": csv(f"0,0,0,0,0,1,1{'0' * 400}\n"),
    "a number that fits in no int64": csv("0,0,0,0,0,1,9223372036854775808\n"),
    "a float for an expert": csv("0,0,0,0,0,1.5,10\n"),
    "nothing for an expert": csv("0,0,0,0,0,,10\n"),
    "a layer before the first": csv("0,0,0,-1,0,1,10\n"),
    "a layer after the last": csv("0,0,0,2,0,1,10\n"),
    "a place before the first": csv("0,0,0,0,-1,1,10\n"),
    "a place after the last": csv("0,0,0,0,2,1,10\n"),
    "an expert after the last": csv("0,0,0,0,0,4,10\n"),
    "an expert before the first": csv("0,0,0,0,0,-1,10\n"),
    "an unknown phase": csv("0,2,0,0,0,1,10\n"),
    "a step past int32": csv("0,0,2147483648,0,0,1,10\n"),
    "negative bytes": csv("0,0,0,0,0,1,-10\n"),
    "a choice twice": csv("0,0,0,0,0,1,10\n0,0,0,0,0,2,10\n"),
    "very many layers": csv(layers=10**9),
    "very many experts": csv(experts=10**9),
    "no experts": csv(experts=0),
    "no layers": csv(layers=0),
    "more choices than experts": csv(top_k=5),
    "no choices": csv(top_k=0),
    "many digits": csv(layers="1" * 10_000),
    "other columns": csv().replace("slot,expert", "place,expert"),
    "no model": csv().replace("model=x ", ""),
    "another format": csv().replace("v1", "v2"),
    "nothing": "",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_csv_that_says_what_no_trace_can_is_one_sentence(tmp_path, kind):
    path = tmp_path / "trace.csv"
    path.write_text(WRONG[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(mc.MoEColabError, match=r"trace\.csv is not a complete") as caught:
        mc.Trace.from_csv(path)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"# route_trace v1\n\xff", b"\0" * 1000])
def test_a_csv_that_is_no_text_is_one_sentence(tmp_path, data):
    (tmp_path / "trace.csv").write_bytes(data)
    with pytest.raises(mc.MoEColabError, match=r"trace\.csv is not a complete"):
        mc.Trace.from_csv(tmp_path / "trace.csv")


def test_a_right_csv_is_read(tmp_path):
    (tmp_path / "trace.csv").write_text(csv())
    trace = mc.Trace.from_csv(tmp_path / "trace.csv")
    assert trace.routing.tolist() == [[[1, -1], [2, -1]]]
    assert trace.accesses["bytes"].tolist() == [10, 0]


HEADERS = {
    "model": [None, 5, []],
    "experts": [[], [0, 8], ["8"], [8.0], [True], "88", None, [10**30], [2**15], {}],
    "expert_bytes": [[], [1], [-1] * 4, ["x"] * 4, [10**30] * 4, None],
    "labels": [[], [5], "text", None],
    "sources": [[None], "text", 5],
    "texts": [[], {"x": "a"}, {"1": 5}, None],
    "settings": [[], None, "x"],
    "version": ["x", None, [], float("nan"), 10**30],
    "kind": [None, [], "another"],
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_no_trace_has_is_one_sentence(tmp_path, name):
    whole = mc.Trace.load().between(0, 2).save(tmp_path / "trace.npz").read_bytes()
    for value in HEADERS[name]:
        with np.load(io.BytesIO(whole)) as file:
            arrays = dict(file)
        header = json.loads(arrays["moe_colab"].tobytes()) | {name: value}
        arrays["moe_colab"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        np.savez(tmp_path / "trace.npz", **arrays)
        with pytest.raises(mc.MoEColabError) as caught:
            mc.Trace.load(tmp_path / "trace.npz")
        assert "\n" not in str(caught.value) and "trace.npz" in str(caught.value)


@pytest.mark.parametrize("member", range(3))
def test_ctrl_c_while_a_trace_is_saved_leaves_the_old_file(member, tmp_path, monkeypatch):
    """Not an error of zipfile, which has a member open then."""
    whole = mc.Trace.load()
    path = whole.between(0, 2).save(tmp_path / "trace.npz")
    old, opened, real = path.read_bytes(), [], zipfile.ZipFile.open

    def interrupted(self, *args, **kwargs):
        file = real(self, *args, **kwargs)
        opened.append(file)
        if len(opened) == member + 1:
            signal.raise_signal(signal.SIGINT)
        return file

    monkeypatch.setattr(zipfile.ZipFile, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        whole.between(0, 5).save(path)
    assert path.read_bytes() == old and [*tmp_path.iterdir()] == [path]

"""What a trace holds, shows and keeps: against the plain model, against tables made here by hand,
and through files that are cut, changed and not ours."""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict

import numpy as np
import pytest
import torch
from conftest import TINY_MOE
from families import make_checkpoint, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveLayer, RouterAverage
from traces import CSV

import moe_colab as mc
from moe_colab.machine.folders import shipped_trace
from moe_colab.offload.read_text import read
from moe_colab.trace import Builder, Trace
from moe_colab.trace.arrays import NAMES

pytestmark = pytest.mark.colab
ROWS, PROMPT, NEW = 2, 7, 6
IDS = torch.randint(5, 120, (ROWS, PROMPT), generator=torch.Generator().manual_seed(3))


def talk(model) -> torch.Tensor:
    """Two rows and their answers, then the first row again without them."""
    said = model.generate(IDS, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    with torch.no_grad():
        model(IDS[:1])
    return said


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_checkpoint("mixtral", tmp_path_factory.mktemp("trace") / "mixtral")
    model, _ = mc.load(folder, slots=3, speculate=0, progress=False)
    with model.offload:
        model.folder = folder
        yield model


@pytest.fixture(scope="module")
def recorded(model):
    model.offload.slots = 4
    model.offload.slots = 3  # and empty again
    model.offload.reset_stats()
    with mc.record(model) as trace:
        said = talk(model)
    return trace, said, model.offload.stats()


# ---------------------------------------------------------------------- what it says
def plain_choices(folder) -> list[dict]:
    """Step by step what the plain model's routers said: {layer: (index [T, K], logits [T, E])}."""
    plain, steps = reference(folder), []
    plain.register_forward_pre_hook(lambda *_: steps.append({}))
    for number, block in enumerate(plain.model.layers):
        block.mlp.gate.register_forward_hook(
            lambda _, args, out, number=number: steps[-1].update({number: (out[2], out[0])})
        )
    talk(plain)
    return steps


def test_a_frame_says_what_the_plain_model_did(model, recorded):
    trace, said, stats = recorded
    frame = trace.frame()
    caches = [NaiveLayer("lru", 3, layer) for layer in range(trace.layers)]
    expected = []
    for step, layers in enumerate(plain_choices(model.folder)):
        again = step == NEW  # the forward over the first row alone
        past = 0 if step in (0, NEW) else PROMPT + step - 1
        ids = IDS[:1] if again else said[:, past : PROMPT if step == 0 else past + 1]
        for layer, (index, logits) in sorted(layers.items()):
            inside, seen = set(caches[layer].inside), set()
            caches[layer].forward(sorted(set(index.flatten().tolist())))
            for place in range(len(index)):
                row, offset = divmod(place, ids.shape[1])
                for rank, expert in enumerate(index[place].tolist()):
                    hit, first = expert in inside, expert not in seen
                    seen.add(expert)
                    expected.append(
                        (
                            *(step, "prompt" if step in (0, NEW) else "decode", int(again), row),
                            *(past + offset, ids[row, offset].item(), layer, rank, expert),
                            *(logits[place, expert].half().item(), "hit" if hit else "miss", first),
                            0 if hit or not first else trace.expert_bytes[layer],
                        )
                    )
    columns = ["step", "phase", "sequence", "row", "position", "token", "layer", "rank", "expert"]
    columns += ["logit", "outcome", "first", "bytes"]
    assert list(frame[columns].itertuples(index=False, name=None)) == expected
    assert frame.bytes.sum() == stats.bytes_loaded
    assert frame.seconds.sum() == pytest.approx(stats.stall_seconds)
    assert frame[frame["first"]].outcome.value_counts()["hit"] == stats.hits
    assert frame.guessed.isna().all()
    assert frame.began.is_monotonic_increasing and frame.began.iloc[0] > 0


def test_texts_are_kept_for_those_who_have_a_tokenizer():
    model, tokenizer = mc.load(slots=3, progress=False)
    ids = tokenizer("I need a flight", return_tensors="pt").input_ids
    with model.offload, torch.no_grad(), mc.record(model, tokenizer, label="flight") as trace:
        model(ids)
    frame = trace.frame()
    tokens = frame[(frame["layer"] == 0) & (frame["rank"] == 0)]
    assert tokens.text.tolist() == [tokenizer.decode([token]) for token in ids[0].tolist()]
    assert set(frame.label) == {"flight"}


def test_guesses_stand_beside_what_came_true():
    builder = Builder({"model": "made up", "experts": (4, 4), "expert_bytes": (10, 10)})
    said = [[[0, 1]], [[2, 3]]], [[[1, 2]], [[0, 3]]]
    guessed = [
        (0, 1, [(3, 0.75), (0, 0.25)], "router_input"),
        (1, 0, [(2, 0.5), (3, 0.5)], "layer_output"),
    ]
    for step in range(2):
        forward = builder.begin("decode", 1, 1, 5 + step, None)
        for layer in range(2):
            forward.routed(layer, np.array(said[step][layer]), None)
            for guess in guessed if layer == 1 else ():
                forward.guessed(*guess)
        builder.end()
    trace = builder.trace()
    right = trace.guess_frame()
    columns = ["step", "at", "layer", "expert", "place", "source", "right"]
    assert list(right[columns].itertuples(index=False, name=None)) == [
        (0, 0, 1, 3, 0, "router_input", True),
        (0, 0, 1, 0, 1, "router_input", False),
        (0, 1, 0, 2, 0, "layer_output", True),  # of layer 0 in the next step
        (0, 1, 0, 3, 1, "layer_output", False),
        (1, 0, 1, 3, 0, "router_input", True),
        (1, 0, 1, 0, 1, "router_input", True),
    ]
    assert right.probability.tolist() == [0.75, 0.25, 0.5, 0.5, 0.75, 0.25]
    frame = trace.frame()
    named = frame[frame.guessed.notna()]
    assert list(named[["step", "layer", "expert", "guessed"]].itertuples(index=False)) == [
        (0, 1, 3, "router_input"),
        (1, 0, 2, "layer_output"),
        (1, 1, 0, "router_input"),
        (1, 1, 3, "router_input"),
    ]


# ---------------------------------------------------------------------- recording
def test_recording_changes_nothing_and_leaves_nothing_behind(model):
    hooks = len(model._forward_pre_hooks), len(model._forward_hooks)
    plain = talk(model)
    with mc.record(model) as trace:
        assert trace.steps == 0
        assert torch.equal(talk(model), plain)
    assert trace.steps == NEW + 1
    talk(model)
    assert trace.steps == NEW + 1
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == hooks
    assert model.offload.runtime.tracker.recording is None


def test_a_forward_that_fails_is_left_out_and_the_next_recording_works(model, monkeypatch):
    class Stop(Exception):
        pass

    layers = []

    def stop():
        layers.append(1)
        if len(layers) == 8:  # in the third of three forwards over three layers
            raise Stop

    monkeypatch.setattr(model.offload.runtime, "check_stop", stop)
    with pytest.raises(Stop), mc.record(model) as trace:
        talk(model)
    assert trace.steps == 2 and len(trace.needed(0)) == 2
    assert set(trace.accesses["step"]) == {0, 1}
    with mc.record(model) as again:
        talk(model)
    assert again.steps == NEW + 1


@pytest.mark.parametrize("how", ["model", "model.forward", "model.model"])
def test_a_forward_is_recorded_and_counted_however_it_is_called(model, how):
    ids = torch.tensor([[5, 6, 7]])
    call = {"model": model, "model.forward": model.forward, "model.model": model.model}[how]
    before = model.offload.stats().tokens
    with mc.record(model) as trace:
        call(ids)
    assert trace.tokens.tolist() == [5, 6, 7] and trace.steps == 1
    assert (trace.routing >= 0).all()
    assert model.offload.stats().tokens == before + 3


def test_one_recording_at_a_time(model):
    with mc.record(model) as trace:
        with pytest.raises(mc.MoEColabError, match="being recorded already"), mc.record(model):
            pass
        talk(model)
    assert trace.steps == NEW + 1


def test_what_cannot_be_recorded_is_refused(model, tmp_path):
    with pytest.raises(mc.MoEColabError, match=r"mc\.load"), mc.record(reference(model.folder)):
        pass
    other, _ = mc.load(model.offload.store, slots=1, progress=False)
    other.offload.close()
    with pytest.raises(mc.MoEColabError, match="closed"), mc.record(other):
        pass
    assert other.offload.runtime.tracker.recording is None


def test_an_answer_given_in_another_thread_is_recorded(model):
    with mc.record(model) as trace:
        thread = threading.Thread(target=talk, args=(model,))
        thread.start()
        thread.join()
    assert trace.steps == NEW + 1


def test_slots_and_policy_may_change_while_recording(model):
    with mc.record(model) as trace:
        model.offload.slots, model.offload.policy = 2, "lfu"
        talk(model)
        model.offload.slots, model.offload.policy = 3, "lru"
        talk(model)
    assert trace.steps == 2 * (NEW + 1) == len(set(trace.accesses["step"]))


def test_a_policy_is_shown_what_the_trace_keeps(model):
    seen = []

    class Watching(RouterAverage):
        def observe(self, used, tokens=None):
            seen.append(tokens)
            super().observe(used, tokens)

    model.offload.policy = Watching
    with mc.record(model) as trace:
        talk(model)
    model.offload.policy = "lru"
    assert seen[1 :: trace.layers] == list(trace.shown(1))


def test_recording_costs_one_transfer_a_layer(model, monkeypatch):
    """That of the routing, which there is anyway."""
    transfers = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: transfers.append(x.shape) or to_host(x))
    with torch.no_grad():
        model(IDS)
        alone = len(transfers)
        with mc.record(model):
            model(IDS)
            assert len(transfers) == 2 * alone == 2 * 3


# ---------------------------------------------------------------------- any trace
def made_up(seed: int, label: str = "", layers: int = 2, experts: int = 5) -> Trace:
    """A trace in which everything occurs that may."""
    dice = np.random.default_rng(seed)
    header = {
        "model": "made up",
        "experts": (experts,) * layers,
        "expert_bytes": tuple(range(100, 100 + layers)),
        "texts": {int(token): f"é{token}" for token in dice.integers(0, 50, 4)},
        "settings": {"slots": [1, 2]},
    }
    builder = Builder(header, label)
    top_k = int(dice.integers(1, 4))
    for step in range(dice.integers(0, 5)):
        rows, length = (int(n) for n in dice.integers(1, 4, 2))
        ids = dice.integers(0, 50, (rows, length)) if dice.random() < 0.8 else None
        phase = "decode" if step and length == 1 else "prompt"
        forward = builder.begin(phase, rows, length, int(dice.integers(0, 3)), ids)
        for layer in range(layers):
            if dice.random() < 0.1:
                continue  # this layer was not run
            index = np.stack([dice.permutation(experts + 1)[:top_k] for _ in range(rows * length)])
            logits = dice.normal(size=(rows * length, experts)) if dice.random() < 0.8 else None
            forward.routed(layer, index, logits)
            for expert in sorted(set(index.flatten().tolist()) - {experts}):
                outcome = str(dice.choice(["hit", "speculative_hit", "late", "miss"]))
                forward.accessed(layer, expert, outcome, 100 * (outcome == "miss"))
                forward.waited(layer, expert, float(dice.random()))
            source = str(dice.choice(["router_input", "layer_output"]))
            named = dice.permutation(experts)[: dice.integers(0, 3)].tolist()
            guess = [(expert, float(dice.random())) for expert in named]
            forward.guessed(layer, (layer + 1) % layers, guess, source)
        builder.end()
    return builder.trace()


def assert_same(one: Trace, other: Trace, but: tuple[str, ...] = ()) -> None:
    for name in ("model", "experts", "expert_bytes", "labels", "sources", "texts", "settings"):
        assert getattr(one, name) == getattr(other, name) or name in but
    for name in NAMES:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        if mine.dtype.names:
            assert (mine == theirs).all()
        else:
            np.testing.assert_array_equal(mine, theirs)


few = settings(max_examples=25, deadline=None)


@few
@given(seed=st.integers(0, 10**6))
def test_what_was_saved_is_loaded(seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "trace.npz"
    trace = made_up(seed, "a label")
    assert trace.save(path) == path
    assert_same(Trace.load(path), trace)
    assert [file.name for file in path.parent.iterdir()] == ["trace.npz"]


@few
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_merged_parts_are_found_again(seeds):
    parts = [made_up(seed, f"part {number}") for number, seed in enumerate(seeds)]
    whole = Trace.merge(*parts)
    assert whole.steps == sum(part.steps for part in parts)
    assert whole.labels == tuple(f"part {number}" for number in range(len(parts)))
    for layer in range(whole.layers):
        assert whole.needed(layer) == [step for part in parts for step in part.needed(layer)]
    for part in parts:
        if not part.steps:
            continue
        found = whole.only(part.labels[0])
        columns = ["phase", "label", "row", "position", "token", "layer", "rank", "expert"]
        columns += ["logit", "guessed", "outcome", "first", "bytes", "seconds"]
        mine, theirs = part.frame()[columns].astype(object), found.frame()[columns].astype(object)
        assert mine.fillna("?").values.tolist() == theirs.fillna("?").values.tolist()
        assert found.texts == {k: v for p in parts for k, v in p.texts.items()}
    steps = whole.frame().groupby("label", observed=True).step.agg(["min", "max"])
    assert (steps["min"].to_numpy()[1:] > steps["max"].to_numpy()[:-1]).all()
    assert (np.diff(whole.forwards["began"]) >= 0).all()


@few
@given(seeds=st.tuples(*[st.integers(0, 10**6)] * 3))
def test_merging_is_associative(seeds):
    a, b, c = (made_up(seed, label) for seed, label in zip(seeds, "aba", strict=True))
    assert_same(Trace.merge(a, b, c), Trace.merge(Trace.merge(a, b), c))
    assert_same(Trace.merge(a, b, c), Trace.merge(a, Trace.merge(b, c)))


@few
@given(seed=st.integers(0, 10**6), data=st.data())
def test_steps_are_taken_out_and_put_together_again(seed, data):
    trace = made_up(seed)
    cut = data.draw(st.integers(0, trace.steps))
    first, second = trace.between(0, cut), trace.between(cut, trace.steps)
    assert (first.steps, second.steps) == (cut, trace.steps - cut)
    for layer in range(trace.layers):
        assert first.needed(layer) + second.needed(layer) == trace.needed(layer)
    for name in ("accesses", "guesses"):
        whole = getattr(trace, name)
        late = getattr(second, name).copy()
        late["step"] += cut
        assert (np.concatenate([getattr(first, name), late]) == whole).all()


def test_only_traces_of_one_model_are_merged():
    with pytest.raises(mc.MoEColabError, match="differ"):
        Trace.merge(made_up(1), made_up(1, layers=3))
    with pytest.raises(mc.MoEColabError, match="merge needs at least one"):
        Trace.merge()
    with pytest.raises(mc.MoEColabError, match="no part 'prose'"):
        made_up(1, "code").only("prose")


@few
@given(seed=st.integers(0, 10**6))
def test_a_frame_has_a_row_for_every_choice_and_one_first_row_for_every_access(seed):
    trace = made_up(seed)
    frame = trace.frame()
    assert len(frame) == (trace.routing >= 0).sum()
    rows = defaultdict(list)
    for row in frame.itertuples():
        rows[row.step, row.layer, row.expert].append(row)
    for access in trace.accesses.tolist():
        step, layer, expert, outcome, nbytes, wait = access
        first, *others = rows.pop((step, layer, expert))
        assert first.first and (first.bytes, first.seconds) == (nbytes, pytest.approx(wait))
        assert not any(row.first or row.bytes or row.seconds for row in others)
        outcomes = {row.outcome for row in (first, *others)}
        assert outcomes == {("hit", "speculative_hit", "late", "miss")[outcome]}
    assert not rows


# ---------------------------------------------------------------------- files
def test_500_tokens_of_32_layers_take_less_than_2_mb(tmp_path):
    dice, layers, experts = np.random.default_rng(0), 32, 8
    header = {"model": "large", "experts": (experts,) * layers, "expert_bytes": (1,) * layers}
    builder = Builder(header)
    for step in range(500):
        forward = builder.begin("decode", 1, 1, step, dice.integers(0, 32000, (1, 1)))
        for layer in range(layers):
            logits = dice.normal(size=(1, experts))  # nothing is harder to compress
            index = np.argsort(-logits)[:, :2]
            forward.routed(layer, index, logits)
            for expert in sorted(index[0].tolist()):
                outcome = "hit" if dice.random() < 0.5 else "miss"
                forward.accessed(layer, expert, outcome, 68_000_000)
                forward.waited(layer, expert, float(dice.random()))
            guess = [(1, 0.6), (2, 0.3)]
            forward.guessed(layer, (layer + 1) % layers, guess, "router_input")
        builder.end()
    path = builder.trace().save(tmp_path / "large.npz")
    assert path.stat().st_size < 2_000_000


def test_a_file_that_was_cut_or_changed_is_refused_or_the_same(tmp_path):
    trace = made_up(4)
    whole = trace.save(tmp_path / "trace.npz").read_bytes()
    dice, refused = np.random.default_rng(0), 0
    changed = [whole[:length] for length in dice.integers(0, len(whole), 40)]
    for place in dice.integers(0, len(whole), 160):
        other = bytearray(whole)
        other[place] ^= 1 << dice.integers(0, 8)
        changed.append(bytes(other))
    for data in changed:
        (tmp_path / "trace.npz").write_bytes(data)
        try:
            found = Trace.load(tmp_path / "trace.npz")
        except mc.MoEColabError as error:
            assert "trace.npz" in str(error)
            refused += 1
        else:
            assert_same(found, trace)
    assert refused > 100


def save_changed(path, **changes) -> None:
    """A file whose checksums are right and whose content is not."""
    made_up(4).save(path)
    with np.load(path) as file:
        members = {name: file[name] for name in file.files}
    header = json.loads(members["moe_colab"].tobytes())
    for name, value in changes.items():
        if callable(value):
            member = name.replace("__", ".")
            members[member] = value(members[member])
        else:
            header[name] = value
    members["moe_colab"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **members)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"version": 99}, "version 99"),
        ({"kind": "plan"}, "is a plan"),
        ({"experts": [5]}, "record it again"),
        ({"experts": [5, 3]}, "record it again"),
        ({"experts": "five"}, "record it again"),
        ({"texts": {"x": "y"}}, "record it again"),
        ({"labels": []}, "record it again"),
        ({"routing": lambda array: array + 9}, "record it again"),
        ({"routing": lambda array: array[..., 0]}, "record it again"),
        ({"logits": lambda array: array.astype(np.float64)}, "record it again"),
        ({"tokens": lambda array: array[:-1]}, "record it again"),
        ({"accesses__step": lambda array: array + 1000}, "record it again"),
        ({"accesses__outcome": lambda array: array + 4}, "record it again"),
        ({"guesses__at": lambda array: array - 9}, "record it again"),
        ({"guesses__step": lambda array: array.astype(np.int64)}, "record it again"),
        ({"forwards__length": lambda array: array[1:]}, "not a complete trace"),
    ],
)
def test_a_whole_file_with_the_wrong_content_is_refused(tmp_path, changes, said):
    save_changed(tmp_path / "trace.npz", **changes)
    with pytest.raises(mc.MoEColabError, match=said):
        Trace.load(tmp_path / "trace.npz")


def test_what_is_no_trace_is_refused(tmp_path):
    (tmp_path / "text").write_text("nothing of the kind")
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    for name, said in (
        ("text", "not a complete trace"),
        ("other.npz", "not a complete"),
        ("no", "exist"),
    ):
        with pytest.raises(mc.MoEColabError, match=said):
            Trace.load(tmp_path / name)


def test_a_writing_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    trace, path = made_up(4), tmp_path / "trace.npz"
    trace.save(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(mc.MoEColabError, match="No space left"):
            made_up(5).save(path)
    assert_same(Trace.load(path), trace)
    assert os.listdir(tmp_path) == ["trace.npz"]
    with pytest.raises(mc.MoEColabError, match="cannot be written"):
        trace.save(tmp_path / "nowhere" / "trace.npz")


# ---------------------------------------------------------------------- other engines' traces


def test_a_trace_of_another_engine(tmp_path):
    """A prompt of two tokens, of which the last layer computed the second only; a token; another
    prompt."""
    (tmp_path / "route.csv").write_text(CSV)
    trace = Trace.from_csv(tmp_path / "route.csv")
    assert (trace.model, trace.experts, trace.expert_bytes) == ("some-moe-Q4", (9, 9), (100, 200))
    assert trace.needed(0) == [[3, 5, 8], [4, 5], [2, 5]]
    assert trace.needed(1) == [[0, 1], [0, 1], [0, 7]]
    frame = trace.frame()
    seen = frame[frame["layer"] == 0][["step", "phase", "sequence", "position", "rank", "expert"]]
    assert list(seen.itertuples(index=False, name=None)) == [
        (0, "prompt", 0, 0, 0, 8),
        (0, "prompt", 0, 0, 1, 3),
        (0, "prompt", 0, 1, 0, 3),
        (0, "prompt", 0, 1, 1, 5),
        (1, "decode", 0, 2, 0, 5),
        (1, "decode", 0, 2, 1, 4),
        (2, "prompt", 1, 0, 0, 2),
        (2, "prompt", 1, 0, 1, 5),
    ]
    assert frame.bytes.sum() == sum(int(line.split(",")[8]) for line in CSV.splitlines()[5:])
    replay = mc.replay(trace, "lru", slots=3)
    assert [layer.hits for layer in replay.layers] == [2, 3]
    assert replay.bytes_loaded == 5 * 100 + 3 * 200
    with pytest.raises(mc.MoEColabError, match="logits"):
        mc.replay(trace, RouterAverage, slots=3)
    assert_same(Trace.load(trace.save(tmp_path / "route.npz")), trace)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("route_trace v1", "route_trace v9"),
        lambda text: text.replace("n_expert=9", ""),
        lambda text: text.replace("layer=1 expert_bytes=200", ""),
        lambda text: text.replace(",expert,", ",who,"),
        lambda text: text.replace("0,0,0,0,0,8", "0,0,0,0,0,9"),
        lambda text: text.replace("0,0,1,1,0,1", "0,0,1,2,0,1"),
        lambda text: text.replace("0,0,0,0,0,8", "0,0,0,0,0,?"),
        lambda text: "",
    ],
)
def test_a_csv_that_is_no_such_trace_is_refused(tmp_path, change):
    (tmp_path / "route.csv").write_text(change(CSV))
    with pytest.raises(mc.MoEColabError, match="not a complete routing trace"):
        Trace.from_csv(tmp_path / "route.csv")
    with pytest.raises(mc.MoEColabError, match="cannot be read"):
        Trace.from_csv(tmp_path / "missing.csv")


# ---------------------------------------------------------------------- the one that ships
def test_the_shipped_trace_is_the_plain_models_routing():
    """One document forward by forward, as it was recorded; all in one pass each, where sums in
    another order may turn a near tie."""
    trace = Trace.load()
    assert trace.labels == ("chat", "code", "french", "prose") and trace.experts == (8,) * 8
    plain, said = reference(TINY_MOE, dtype=torch.float16), []
    for block in plain.model.layers:
        block.mlp.gate.register_forward_hook(lambda _, args, out: said.append(out))

    def compare(own) -> tuple[np.ndarray, np.ndarray]:
        """Where other experts are chosen [N, L], and how near the third choice was [N, L]."""
        index = np.concatenate([out[2].numpy()[:, None] for out in said], axis=1)
        ranked = np.sort(np.concatenate([out[0].float().numpy()[:, None] for out in said], axis=1))
        differs = (np.sort(index) != np.sort(trace.routing[own])).any(axis=-1)
        return differs, ranked[..., -2] - ranked[..., -3]

    agreed = []
    for sequence in range(trace.forwards["sequence"].max() + 1):
        own = np.repeat(trace.forwards["sequence"] == sequence, np.diff(trace.bounds))
        ids = torch.from_numpy(trace.tokens[own]).long()[None]
        said.clear()
        plain(ids)
        agreed.append(1 - compare(own)[0].mean())
    assert len(agreed) == 12 and min(agreed) > 0.97 and np.mean(agreed) > 0.99

    said.clear()
    read(plain, ids)
    layers = [said[layer::8] for layer in range(8)]
    said[:] = [tuple(torch.cat(parts) for parts in zip(*layer, strict=True)) for layer in layers]
    differs, margin = compare(own)
    assert not differs[margin > 0.02].any() and (margin > 0.02).mean() > 0.95


def test_the_shipped_trace_is_small_and_names_no_machine():
    path = shipped_trace()
    assert path.stat().st_size < 600_000
    with np.load(path) as file:
        header = json.loads(file["moe_colab"].tobytes())
    assert header["model"] == "tiny-moe" and "/" not in json.dumps(header["settings"])

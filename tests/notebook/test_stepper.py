"""The stepper's values: those of the plain model, of the recording, and of naive caches."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY_MOE, python
from families import experts_modules, make_checkpoint, reference, with_weights_of
from naive import NAIVE
from traces import made_up

import moe_colab as mc
from moe_colab.analysis.cache_history import replayed
from moe_colab.cache.policies import LRU
from moe_colab.notebook.views.view import LIMIT

pytestmark = pytest.mark.colab
TRACE = mc.Trace.load()
PROSE = TRACE.only("prose")
TEXT = "Old Tabitha Crewe kept the ferry"
EVERY_LAYER = range(8)


class Letters:
    """A tokenizer for models that have none: a token for each letter."""

    def __call__(self, text, return_tensors=None):
        ids = [3 + ord(letter) % 120 for letter in text]
        return Ids(torch.tensor([ids]) if return_tensors else ids)

    def decode(self, ids):
        return f"<{ids[0]}>"


class Ids:
    def __init__(self, input_ids):
        self.input_ids = input_ids


# ---------------------------------------------------------------------- of a trace
@pytest.mark.parametrize("slots", [2, 4, 7])
@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo"])
def test_slots_victims_and_reasons_are_those_of_a_dumb_list(policy, slots):
    code = TRACE.only("code")
    view = mc.stepper(code, policy=policy, slots=slots, first=32, tokens=40)
    for layer in (0, 7):
        naive, seen = NAIVE[policy](slots), 0
        for step, needed in enumerate(code.needed(layer)[:41]):
            before = sorted(naive.resident)
            left = {e: gone for e, _, gone, _ in naive.access(needed, None) if gone is not None}
            if step == 0:
                continue
            token_step = view.at(31 + step, layer)
            assert token_step.step == step and list(token_step.resident) == before
            for access in token_step.accesses:
                assert access.bytes == (access.expert not in before) * code.expert_bytes[layer]
                assert (access.eviction.victim if access.eviction else None) == left.get(
                    access.expert
                )
                if access.eviction and policy == "lfu":  # in numbers, too
                    uses = {e: naive.uses.count(e) for e in access.eviction.scores}
                    assert {e: score[0] for e, score in access.eviction.scores.items()} == uses
                seen += access.eviction is not None
        assert seen > 3


def test_the_router_is_the_traces():
    view = mc.stepper(PROSE, tokens=20)
    for token in (32, 40, 51):
        for layer in EVERY_LAYER:
            token_step = view.at(token, layer)
            logits = PROSE.logits[token, layer].astype(float)
            assert np.array_equal(token_step.logits, PROSE.logits[token, layer])
            shares = np.exp(logits) / np.exp(logits).sum()
            assert token_step.probabilities == pytest.approx(shares, rel=1e-5)
            assert token_step.experts == tuple(np.argsort(-logits, kind="stable")[:2])
            assert token_step.text == PROSE.texts[int(PROSE.tokens[token])]
            assert (token_step.phase, token_step.position, token_step.together) == (
                "decode",
                token,
                1,
            )
            assert token_step.computed is None


def test_outcomes_and_waits_are_the_recorded_ones():
    frame = TRACE.frame()
    frame = frame[(frame["step"] < 60) & (frame["phase"] == "decode")]
    view = mc.stepper(TRACE, first=32, tokens=59)
    assert view.token_steps.history.recorded
    for row in frame.itertuples():
        token_step = view.at(32 + row.step - 1, row.layer)
        access = token_step.accesses[row.rank]
        assert (access.expert, access.outcome) == (row.expert, row.outcome)
        assert access.wait is not None
        if row.first:
            assert access.wait == pytest.approx(row.seconds)
    assert set(frame["outcome"]) == {"hit", "speculative_hit", "late", "miss"}


@pytest.mark.parametrize("setting", [{"slots": 3}, {"policy": "lfu"}, {"policy": "none"}])
def test_another_cache_tells_nothing_of_the_recording(setting):
    view = mc.stepper(PROSE, **setting, tokens=30)
    accesses = [a for n in range(30) for a in view.at(32 + n, 1).accesses]
    assert {access.outcome for access in accesses} <= {"hit", "miss"}
    assert all(access.wait is None for access in accesses)
    history = view.token_steps.history
    assert not history.recorded and history.slots[1] == setting.get("slots", 4) * (
        setting.get("policy") != "none"
    )
    if setting.get("policy") == "none":
        assert not any(a.kept or a.eviction for a in accesses) and not view.at(40, 1).resident
    for step, snapshot in enumerate(history.snapshots[1][:31]):
        hits = set(PROSE.needed(1)[step]) & set(snapshot.resident)
        assert len(snapshot.resident) <= history.slots[1] and len(hits) <= len(
            PROSE.needed(1)[step]
        )
    counts = mc.replay(PROSE, setting.get("policy", "lru"), setting.get("slots", 4))
    whole = replayed(PROSE, **setting)
    hits = [
        len(set(PROSE.needed(layer)[step]) & set(snapshot.resident))
        for layer in EVERY_LAYER
        for step, snapshot in enumerate(whole.snapshots[layer])
    ]
    assert sum(hits) == counts.hits


def test_what_was_guessed_and_whether_it_came_true():
    view, right, seen = mc.stepper(PROSE, tokens=40), 0, 0
    frame = PROSE.guess_frame()
    frame = frame[(frame["source"] == "router_input") & (frame["layer"] == frame["at"] + 1)]
    for token in range(32, 72):
        for layer in EVERY_LAYER:
            guess, step = view.at(token, layer).guess, token - 31
            own = frame[(frame["step"] == step) & (frame["at"] == layer)].sort_values("place")
            assert (guess is None) == own.empty
            if guess is None:
                continue
            assert [g[0] for g in guess.experts] == own["expert"].tolist()
            assert [g[1] for g in guess.experts] == pytest.approx(own["probability"].tolist())
            assert [g[2] for g in guess.experts] == own["right"].tolist()
            assert list(guess.needed) == sorted(PROSE.routing[token, layer + 1].tolist())
            right, seen = right + sum(own["right"]), seen + len(own)
    assert view.at(40, 7).guess is None and 0 < right < seen


@pytest.mark.parametrize("policy", ["optimal", "optimal-bypass"])
def test_beladys_reasons_are_the_next_uses(policy):
    view, checked = mc.stepper(PROSE, policy=policy, slots=3, tokens=64), 0
    for layer in (0, 5):
        needed = PROSE.needed(layer)
        for token in range(32, 96):
            token_step = view.at(token, layer)
            for eviction in (access.eviction for access in token_step.accesses if access.eviction):
                for expert, (use,) in eviction.scores.items():
                    later = [
                        s for s in range(token_step.step + 1, PROSE.steps) if expert in needed[s]
                    ]
                    assert use == min(later, default=float("inf"))
                gone = {a.eviction.victim for a in token_step.accesses if a.eviction}
                stay = [use[0] for expert, use in eviction.scores.items() if expert not in gone]
                assert eviction.scores[eviction.victim][0] >= max(stay, default=0)
                checked += 1
    assert checked > 20


def test_tokens_that_came_at_once_share_an_access():
    view = mc.stepper(PROSE, first=0, tokens=40, slots=3)
    for layer in (0, 4):
        assert view.at(5, layer).together == 32 and view.at(32, layer).together == 1
        assert view.at(5, layer).resident == view.at(31, layer).resident == ()
        needed = set(PROSE.needed(layer)[0])
        assert {e for n in range(32) for e in view.at(n, layer).experts} == needed


def test_a_trace_that_knows_little(tmp_path):
    """No logits, texts, guesses or outcomes; layers of different sizes."""
    trace = made_up(4)
    blank = replace(
        trace,
        logits=np.full_like(trace.logits, np.nan),
        guesses=trace.guesses[:0],
        accesses=trace.accesses[:0],
    )
    view = mc.stepper(blank, first=0)
    token_step = view.at(1, trace.layers - 1)
    assert (
        token_step.logits is None and token_step.probabilities is None and token_step.guess is None
    )
    assert token_step.experts == tuple(e for e in trace.routing[1, -1].tolist() if e >= 0)
    assert view.save(tmp_path / "view.png").stat().st_size > 1000
    assert view.token_steps.history.policy == "lru"
    numbered = replace(blank, tokens=np.arange(len(blank.tokens), dtype=np.int32))
    assert mc.stepper(numbered, Letters(), first=0).at(1, 0).text == "<1>"


def test_a_trace_needs_no_torch():
    code = (
        "import moe_colab as mc, sys; v = mc.stepper(tokens=5); v.html; v.picture.png();"
        "print(*(m.split('.')[0] for m in sys.modules))"
    )
    assert not {"torch", "transformers", "pandas"} & set(python(code).split())


# ---------------------------------------------------------------------- of a model
class Plain:
    """The plain model, reading the same tokens one by one, and what its experts modules were given
    and answered."""

    def __init__(self, model, tokens):
        self.modules = [module for _, module in experts_modules(model)]
        self.calls = [[] for _ in self.modules]
        hooks = [
            module.register_forward_hook(self.hook(layer), with_kwargs=True)
            for layer, module in enumerate(self.modules)
        ]
        past = None
        with torch.no_grad():
            for token in tokens:
                ids = torch.tensor([[token]])
                past = model(ids, past_key_values=past, use_cache=True).past_key_values
        for hook in hooks:
            hook.remove()

    def hook(self, layer):
        names = ("hidden_states", "top_k_index", "top_k_weights")

        def keep(module, args, kwargs, output):
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            self.calls[layer].append([*(given[name].clone() for name in names), output.clone()])

        return keep

    def alone(self, layer: int, number: int, rank: int) -> torch.Tensor:
        """The output of one expert: eager's, the others of weight 0."""
        x, index, weights, _ = self.calls[layer][number]
        only = torch.zeros_like(weights)
        only[:, rank] = 1
        with torch.no_grad():
            return self.modules[layer](x, index, only)[0]


FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "glm4_moe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_vector_is_the_plain_models(family, tmp_path):
    folder = make_checkpoint(family, tmp_path / family)
    model, _ = mc.load(folder, slots=3, progress=False)
    with model.offload:
        check_vectors(mc.stepper(model, Letters(), "offload", more=5), reference(folder))


@pytest.mark.parametrize("bits", [2, 4])
def test_and_of_a_store_of_few_bits(bits, tmp_path):
    pytest.importorskip("hqq")
    changes = {"hidden_size": 64, "intermediate_size": 64}
    folder = make_checkpoint("mixtral", tmp_path / "mixtral", changes=changes)
    mc.quantize(folder, tmp_path / "store", attention_bits=16, expert_bits=bits, group_size=32)
    model, _ = mc.load(tmp_path / "store", slots=3, progress=False, kernels="plain")
    plain = with_weights_of(tmp_path / "store", reference(folder))
    with model.offload:
        check_vectors(mc.stepper(model, Letters(), "offload", more=5), plain)


def check_vectors(view, plain) -> None:
    trace = view.token_steps.trace
    heard = Plain(plain, trace.tokens.tolist())
    assert len(trace.tokens) == 12 and (trace.forwards["length"] == 1).all()
    for layer, calls in enumerate(heard.calls):
        for number, (x, index, weights, total) in enumerate(calls):
            token_step = view.at(number, layer)
            assert list(token_step.experts) == index[0].tolist()
            assert np.array_equal(token_step.computed.input, x[0])
            assert np.array_equal(token_step.computed.weights, weights[0].float())
            assert np.array_equal(token_step.computed.total, total[0])
            for rank, output in enumerate(token_step.computed.outputs):
                assert np.array_equal(output, heard.alone(layer, number, rank))
            weighed = (token_step.computed.weights[:, None] * token_step.computed.outputs).sum(0)
            assert weighed == pytest.approx(token_step.computed.total, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = mc.load(slots=3, speculate=2, progress=False)
    with model.offload:
        yield model, tokenizer


def test_a_warm_model_is_told_as_it_is(loaded):
    """Slots as they are, and every outcome is what the statistics count."""
    model, tokenizer = loaded
    model.generate(**tokenizer("Hello there", return_tensors="pt"), max_new_tokens=5)
    before = [sorted(table) for table in model.offload.pool.table]
    policies = [cache.policy for cache in model.offload.pool.caches]
    model.offload.reset_stats()
    view = mc.stepper(model, tokenizer, TEXT, more=3)
    stats = model.offload.stats()
    assert [list(view.at(0, layer).resident) for layer in EVERY_LAYER] == before
    token_steps = view.token_steps
    told = [
        access.outcome
        for token in range(token_steps.end)
        for layer in EVERY_LAYER
        for access in view.at(token, layer).accesses
    ]
    assert told.count("hit") == stats.hits and told.count("miss") == stats.misses
    assert told.count("speculative_hit") == stats.speculative_hits
    assert told.count("late") == stats.late and stats.accesses == len(told)
    for layer in EVERY_LAYER:
        use = 0
        for token in range(token_steps.end - 1):
            now, after = view.at(token, layer), set(view.at(token + 1, layer).resident)
            for access in now.accesses:
                assert (access.outcome == "hit") == (access.expert in now.resident)
                assert access.expert in after  # three slots, two experts
                if access.eviction:
                    use += 1
                    (lowest,) = {access.eviction.victim} - after
                    assert access.eviction.scores[lowest] == min(access.eviction.scores.values())
        assert use
    # all is as it was
    assert [cache.policy for cache in model.offload.pool.caches] == policies
    assert type(policies[0]) is LRU
    assert not any(m.moe_colab_layer.listener for _, m in experts_modules(model))


def test_a_recording_of_a_warm_model_is_told_from_empty_slots(loaded):
    """What its first steps found was there before: those of the replay are not called hits."""
    model, tokenizer = loaded
    model.generate(**tokenizer("Hello there", return_tensors="pt"), max_new_tokens=5)
    trace = mc.record_text(model, tokenizer, TEXT, prompt=1, tokens=5)
    recorded = {
        (row["step"], row["layer"], row["expert"]): row["outcome"] for row in trace.accesses
    }
    view = mc.stepper(trace, first=0)
    first = [access for layer in EVERY_LAYER for access in view.at(0, layer).accesses]
    assert not any(access.outcome == "hit" for access in first)
    warm = [
        access
        for layer in EVERY_LAYER
        for access in view.at(0, layer).accesses
        if recorded[0, layer, access.expert] == 0
    ]
    assert warm and all(access.outcome == "miss" and access.wait is None for access in warm)


def test_listening_changes_no_text(loaded):
    model, tokenizer = loaded
    view = mc.stepper(model, tokenizer, TEXT, more=6)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    plain = reference(TINY_MOE)
    with torch.no_grad():
        said = plain.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert view.token_steps.trace.tokens.tolist() == said[0].tolist()


def test_a_window_of_a_longer_text(loaded):
    model, tokenizer = loaded
    whole = mc.stepper(model, tokenizer, TEXT, more=0)
    part = mc.stepper(model, tokenizer, TEXT, first=4, tokens=3)
    assert (part.token_steps.first, part.token_steps.end) == (4, 7)
    for layer in EVERY_LAYER:
        one, other = part.at(5, layer), whole.at(5, layer)
        assert one.text == other.text and one.experts == other.experts
        assert np.array_equal(one.computed.total, other.computed.total)
    with pytest.raises(mc.MoEColabError, match="tokens 4 to 6"):
        part.at(3, 0)


def test_all_is_put_back_after_an_error(loaded):
    model, tokenizer = loaded
    with mc.record(model), pytest.raises(mc.MoEColabError, match="recorded already"):
        mc.stepper(model, tokenizer, TEXT)
    assert not any(m.moe_colab_layer.listener for _, m in experts_modules(model))
    assert all(type(cache.policy) is LRU for cache in model.offload.pool.caches)


def test_nobody_else_answers_meanwhile(loaded):
    model, tokenizer = loaded
    with model.offload.answering, pytest.raises(mc.MoEColabError, match="answering in a chat now"):
        mc.stepper(model, tokenizer, TEXT)
    assert mc.stepper(model, tokenizer, TEXT, tokens=2) and not model.offload.answering.locked()


@pytest.mark.parametrize(
    "setting", [{"resident": {0: [1, 5], 2: [0]}}, {"whole_layer": True}, {"policy": "none"}]
)
def test_experts_that_always_or_never_stay(setting):
    model, tokenizer = mc.load(slots=3, progress=False, **setting)
    always = setting.get("resident", {})
    with model.offload:
        view = mc.stepper(model, tokenizer, TEXT, more=0)
        hits = model.offload.stats().hits
    seen = [
        (token_step, access)
        for token in range(view.token_steps.end)
        for layer in EVERY_LAYER
        for token_step in [view.at(token, layer)]
        for access in token_step.accesses
    ]
    for token_step, access in seen:
        assert set(always.get(token_step.layer, ())) <= set(token_step.resident)
        if access.expert in always.get(token_step.layer, ()):
            assert access.outcome == "hit" and access.kept and access.bytes == 0
        if not always:
            assert not (token_step.resident or access.kept or access.eviction)
    assert hits >= sum(access.outcome == "hit" for _, access in seen)
    assert any(access.expert in always.get(m.layer, ()) for m, access in seen) == bool(always)


class NoReasons(LRU):
    """A user's own policy that was written before there were scores."""

    measures = ()
    scores = None


def test_a_policy_that_gives_no_reasons(loaded):
    model, tokenizer = loaded
    model.offload.policy = NoReasons
    try:
        view = mc.stepper(model, tokenizer, TEXT, more=0)
    finally:
        model.offload.policy = "lru"
    evictions = [a.eviction for n in range(5) for a in view.at(n, 0).accesses if a.eviction]
    assert evictions and not any(eviction.scores for eviction in evictions)
    assert view.token_steps.history.rule == "" and view.picture.png()


# ---------------------------------------------------------------------- the view
def test_a_view_is_small_and_says_what_does_not_fit():
    for trace in (TRACE, wide(TRACE)):
        view = mc.stepper(trace)
        count = view.token_steps.end - view.token_steps.first
        assert len(view.html.encode()) <= LIMIT and count == len(view.data["texts"])
        assert (count == 64) == (trace is TRACE) and count > 0
    with pytest.raises(mc.MoEColabError, match=r"ask for tokens=\d+") as error:
        mc.stepper(wide(TRACE), tokens=64)
    fits = int(re.search(r"tokens=(\d+)", str(error.value))[1])
    assert mc.stepper(wide(TRACE), tokens=fits)


def wide(trace):
    """The same with 160 experts in every layer."""
    logits = np.pad(trace.logits, ((0, 0), (0, 0), (0, 152)), constant_values=-9)
    return replace(trace, logits=logits, experts=(160,) * 8)


def test_the_json_is_what_javascript_reads():
    told = json.loads(re.search(r'application/json">(.*?)</script', mc.stepper().html, re.S)[1])
    assert told["logits"]["dtype"] == "uint16" and told["start"][0] >= told["first"]
    json.dumps(told, allow_nan=False)
    belady = mc.stepper(policy="optimal", slots=2).html
    assert "Infinity" not in re.search(r'application/json">(.*?)</script', belady, re.S)[1]


def test_bad_requests_are_one_sentence(loaded):
    model, tokenizer = loaded
    for ask in (
        lambda: mc.stepper(PROSE, text="other"),
        lambda: mc.stepper(PROSE, tokens=65),
        lambda: mc.stepper(PROSE, tokens=0),
        lambda: mc.stepper(PROSE, first=-1),
        lambda: mc.stepper(PROSE, first=10**6),
        lambda: mc.stepper(PROSE, more=1.5),
        lambda: mc.stepper(PROSE, slots=9),
        lambda: mc.stepper(PROSE, policy="best"),
        lambda: mc.stepper(PROSE, link="0GB/s"),
        lambda: mc.stepper(PROSE, link="fast"),
        lambda: mc.stepper(replace(PROSE, tokens=PROSE.tokens[:0])),
        lambda: mc.stepper(model),
        lambda: mc.stepper(model, tokenizer),
        lambda: mc.stepper(model, tokenizer, ""),
        lambda: mc.stepper(model, tokenizer, TEXT, policy="lfu"),
        lambda: mc.stepper(model, tokenizer, TEXT, first=60),
        lambda: mc.stepper("model", tokenizer, TEXT),
        lambda: mc.plots.step(TRACE),
        lambda: mc.stepper(PROSE).at(10**6, 0),
        lambda: mc.stepper(PROSE).at(40, 8),
    ):
        with pytest.raises(mc.MoEColabError) as error:
            ask()
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- the picture
def axes_of(token_step):
    picture = mc.plots.step(token_step)
    return picture, {axes.get_gid(): axes for axes in picture.axes}


def test_the_picture_shows_the_moment(loaded):
    model, tokenizer = loaded
    view = mc.stepper(model, tokenizer, TEXT)
    token_step = view.at(*view.start)
    picture, parts = axes_of(token_step)
    heights = [bar.get_height() for bar in parts["router"].patches]
    assert heights == pytest.approx(token_step.probabilities.tolist())
    signs = [line for line in parts["router"].lines if line.get_marker() in "oXD^"]
    assert {int(sign.get_xdata()[0]) for sign in signs} == set(token_step.experts)
    (goes,) = (bar for bar in parts["scores"].patches if bar.get_gid() == "evicted")
    eviction = max(
        (a.eviction for a in token_step.accesses if a.eviction), key=lambda c: len(c.scores)
    )
    assert goes.get_width() == eviction.scores[eviction.victim][0]
    assert goes.get_width() == min(bar.get_width() for bar in parts["scores"].patches)
    widths = [bar.get_width() for bar in parts["guesses"].patches]
    assert widths == pytest.approx([share for _, share, _ in token_step.guess.experts])
    rows = [
        token_step.computed.outputs[0],
        token_step.computed.outputs[1],
        token_step.computed.total,
    ]
    drawn = np.array([bar.get_height() for bar in parts["outputs"].patches]).reshape(3, 16)
    expected = -np.stack(rows)[:, :16]
    assert drawn / np.abs(drawn).max() == pytest.approx(expected / np.abs(expected).max(), abs=1e-5)
    misses = sum(access.outcome == "miss" for access in token_step.accesses)
    told = {0: "", 1: "1 miss", 2: "2 misses"}[misses]
    title = picture.get_suptitle()
    assert title.endswith(f" in MoE layer {token_step.layer}") and told in title
    assert len(picture.png()) < 300_000


def test_the_picture_of_a_trace_says_what_it_lacks_and_bears_any_token():
    strange = replace(PROSE, texts=dict.fromkeys(PROSE.texts, "$a_{\n" + "x" * 10_000))
    view = mc.stepper(strange)
    picture, parts = axes_of(view.at(*view.start))
    picture.draw_without_rendering()
    assert "a trace has none" in parts["outputs"].texts[0].get_text()
    assert picture._suptitle.get_window_extent().x1 <= picture.bbox.width
    used = {bar.get_hatch() for bar in parts["scores"].patches}
    assert len(used) == 2  # not by colour alone


def test_a_recording_of_a_warm_model_is_told_as_a_replay():
    """Its slots held experts that a replay from empty slots must load."""
    model, tokenizer = mc.load(slots=4, progress=False)
    with model.offload:
        cold, warm = (
            mc.record_text(model, tokenizer, TEXT, prompt=4, speculate=0) for _ in range(2)
        )
    assert warm.settings == cold.settings
    assert mc.stepper(cold, first=0, tokens=6).data["recorded"]
    assert not mc.stepper(warm, first=0, tokens=6).data["recorded"]

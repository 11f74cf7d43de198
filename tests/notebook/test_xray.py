"""What the x-ray is told and what it counts: its replays in a browser are mc.replay's. What it
draws: test_xray_page.py."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import plain_page

import moe_colab as mc
from moe_colab import plots
from moe_colab.analysis import tables
from moe_colab.notebook.views import xray
from moe_colab.notebook.views.excerpt import excerpts
from moe_colab.notebook.views.view import LIMIT, View, packed, web_asset
from moe_colab.trace import Trace, arrays

pytestmark = pytest.mark.colab
POLICIES = xray.POLICIES
COUNTED = ("accesses", "hits", "misses", "loads", "evictions", "bypasses", "bytes_loaded")
STATES = ["", "idle", "hit", "", "", "miss", "passing"]  # of replay.js, as mc.tables calls them
PROSE = Trace.load().only("prose")


# ---------------------------------------------------------------------- traces made up
def made_up(seed: int, **shape) -> Trace:
    """Random routing: several sequences, each a prompt of some tokens and decoded ones; batches,
    tokens that a layer leaves out, layers of different size; accesses are not known."""
    rng = np.random.default_rng(seed)
    layers = shape.get("layers", int(rng.integers(1, 5)))
    most = shape.get("experts", int(rng.integers(2, 14)))
    experts = shape.get("each") or tuple(
        int(n) for n in rng.integers(max(1, most - 2), most + 1, layers)
    )
    top_k = min(shape.get("top_k", int(rng.integers(1, 5))), min(experts))
    rows = shape.get("rows", int(rng.integers(1, 3)))
    forwards = []
    for sequence in range(shape.get("sequences", int(rng.integers(1, 4)))):
        past = 0
        decoded = shape.get("decoded", int(rng.integers(3, 25)))
        for length in [shape.get("prompt", int(rng.integers(2, 9))), *[1] * decoded]:
            forwards.append((int(past > 0), rows, length, past, sequence, 0, 0.0))
            past += length
    forwards = np.array(forwards, arrays.FORWARD)
    N = int((forwards["rows"] * forwards["length"]).sum())
    chance = rng.dirichlet(np.full(max(experts), 0.6), layers)  # some experts are liked
    routing = np.full((N, layers, top_k), arrays.NO_EXPERT, np.int16)
    for layer, count in enumerate(experts):
        liked = np.log(chance[layer, :count] + 1e-9) + rng.gumbel(size=(N, count))
        routing[:, layer] = np.argsort(-liked, axis=1)[:, :top_k]
    routing[rng.random((N, layers, top_k)) < shape.get("left_out", 0.05)] = arrays.NO_EXPERT
    logits = np.full((N, layers, max(experts)), np.nan, np.float16)
    if shape.get("logits"):
        for layer, count in enumerate(experts):
            logits[:, layer, :count] = rng.normal(size=(N, count))
    none = arrays.blank(0, 0, layers, top_k, max(experts))
    found = {"forwards": forwards, "routing": routing, "logits": logits}
    found["tokens"] = rng.integers(0, 50, N).astype(np.int32)
    found["spoke"] = np.full((len(forwards), layers), np.nan, np.float32)
    sizes = tuple(1000 + 37 * layer for layer in range(layers))
    return Trace("made up", experts, sizes, **{**none, **found})


def recorded(trace: Trace, seed: int = 0) -> Trace:
    """The same with an outcome for every access, drawn at random."""
    rng = np.random.default_rng(seed)
    rows = [
        (step, layer, expert, rng.integers(0, 4), 0, 0.0)
        for layer in range(trace.layers)
        for step, needed in enumerate(trace.needed(layer))
        for expert in needed
    ]
    accesses = np.array(rows, arrays.ACCESS)
    missed = accesses["outcome"] == 3
    accesses["bytes"] = np.where(missed, np.array(trace.expert_bytes)[accesses["layer"]], 0)
    return replace(trace, accesses=accesses)


def slots_of(trace: Trace, slots: int) -> list[int]:
    return [min(slots, count) for count in trace.experts]


def part_of(trace: Trace, view: View) -> Trace:
    """The steps that a view replays, by what it says of them."""
    steps = view.data["phases"].shape[0]
    last = np.searchsorted(trace.bounds, view.data["first"] + len(view.data["words"]) - 1, "right")
    return trace.between(int(last) - steps, int(last))


# ---------------------------------------------------------------------- the replay on the page
CODE = "\n".join(map(web_asset, ("view.js", "replay.js", "xray_state.js")))
REPLAY = f"""([told, wanted]) => {{
{CODE}
const root = document.createElement("div");
root.innerHTML = '<script type="application/json"></' + 'script>';
root.firstChild.textContent = told;
const data = unpack(root), needed = neededOf(data), phases = [...data.phases.values];
return wanted.map(([policy, slots]) => {{
    const made = replay(needed, phases, data.experts, data.bytes, policy, slots);
    return {{books: made.books, states: Array.from(made.states)}};
}});
}}"""


@pytest.mark.browser
def test_replays_on_the_page_are_those_of_python(chromium):
    """50 traces, every policy that is offered, from one slot to all: each count of each layer and
    phase; and who lies where after every step."""
    choice = random.Random(7)
    offered = re.findall(r'\["[^"]+", "([\w-]+)"\]', web_asset("replay.js"))
    assert tuple(offered) == POLICIES
    with plain_page(chromium, "<!doctype html><title>-</title>") as watched:
        for seed in range(50):
            trace = made_up(seed)
            if seed % 5 == 0:  # only some tokens are shown, of one row: the others count as well
                last = len(trace.tokens) // trace.forwards["rows"].max()
                view = mc.xray(trace, first=last // 3, tokens=max(1, last // 2))
                excerpt = next(excerpts(trace, 0, last // 3, max(1, last // 2), LIMIT))
                part = excerpt.trace
                assert view.data["begins"] and part.steps == len(view.data["phases"])
            else:
                view, part = mc.xray(trace, row=int(trace.forwards["rows"].max()) - 1), trace
            most = max(trace.experts)
            slots = {1, most, *choice.sample(range(1, most + 1), min(3, most))}
            wanted = [(policy, n) for policy in POLICIES for n in sorted(slots)]
            found = watched.page.evaluate(REPLAY, [packed(view.data), wanted])
            for (policy, slots), made in zip(wanted, found, strict=True):
                check_books(part, policy, slots, made["books"])
            (policy, slots), made = choice.choice(list(zip(wanted, found, strict=True)))
            check_states(part, policy, slots, made["states"])
        watched.check_quiet()


def check_books(trace: Trace, policy: str, slots: int, books: list) -> None:
    """Each phase over all layers, and each layer over both phases."""
    told = mc.replay(trace, policy, slots_of(trace, slots))
    for phase, layers in zip((told.prompt, told.decode), books, strict=True):
        for name in COUNTED:
            assert sum(book[name] for book in layers) == getattr(phase, name)
    for truth, prompt, decode in zip(told.layers, *books, strict=True):
        for name in COUNTED:
            assert prompt[name] + decode[name] == getattr(truth, name)


def check_states(trace: Trace, policy: str, slots: int, states: list[int]) -> None:
    states = np.array(states).reshape(trace.steps, trace.layers, max(trace.experts))
    for layer, own in enumerate(slots_of(trace, slots)):
        table = tables.residency(trace, layer, policy, own)
        truth = set(table[["step", "expert", "state"]].itertuples(index=False, name=None))
        found = zip(*np.nonzero(states[:, layer]), strict=True)
        assert {(s, e, STATES[states[s, layer, e]]) for s, e in found} == truth


# ---------------------------------------------------------------------- what the page is told
def words_of(view: View) -> list[str]:
    return view.data["words"]


def unpacked(view: View, name: str) -> np.ndarray:
    return np.asarray(view.data[name])


def test_choices_are_those_of_the_traces_frame():
    """Who pays, what it came to, and how probable it was, against the table that Trace.frame
    makes."""
    view = mc.xray(PROSE, first=20, tokens=40)
    flat = unpacked(view, "outcomes")
    outcomes = np.stack([flat & 15, flat >> 4], 1).reshape(40, 8, 2)
    frame, past = PROSE.frame(), PROSE.forwards["past"]
    frame["number"] = PROSE.bounds[frame["step"]] + frame["position"] - past[frame["step"]]
    probabilities = PROSE.logits.astype(np.float64)
    probabilities = np.exp(probabilities) / np.exp(probabilities).sum(-1, keepdims=True)
    own = frame[frame["number"].between(20, 59)]
    assert len(own) == 40 * 8 * 2
    for row in own.itertuples():
        place = row.number - 20, row.layer, row.rank
        assert unpacked(view, "routing")[place] == row.expert
        assert arrays.OUTCOMES[(outcomes[place] & 7) - 1] == row.outcome
        assert (outcomes[place] > 7) == row.first
        told = (unpacked(view, "probabilities")[place] - 1) / 254
        assert told == pytest.approx(probabilities[row.number, row.layer, row.expert], abs=0.0021)
    assert words_of(view) == [PROSE.texts[token] for token in PROSE.tokens[20:60].tolist()]


def test_what_was_recorded_is_summed_by_phase():
    view = mc.xray(PROSE)
    frame = PROSE.between(0, len(view.data["phases"])).frame()
    paid = frame[frame["first"]]
    for phase, book in zip(("prompt", "decode"), view.data["recorded"]["books"], strict=True):
        own = paid[paid["phase"] == phase]
        assert book["accesses"] == len(own) and book["bytes_loaded"] == own["bytes"].sum()
        for name, outcome in (
            *(("hits", "hit"), ("speculative_hits", "speculative_hit")),
            *(("late", "late"), ("misses", "miss"), ("loads", "miss")),
        ):
            assert book[name] == (own["outcome"] == outcome).sum()
    assert view.data["recorded"]["name"] == "LRU, 4 slots, with guesses"
    assert mc.xray(made_up(1)).data["recorded"] is None


@pytest.mark.parametrize(
    "experts, top_k, each", [(8, 2, ()), (128, 8, ()), (256, 8, ()), (300, 8, ()), (512, 10, ())]
)
def test_a_view_is_at_most_300_kB(experts, top_k, each):
    """All of 256 tokens, 32 layers and 8 experts to a token; where that is too much, fewer
    tokens."""
    shape = {"layers": 32, "rows": 1, "sequences": 1, "prompt": 40, "decoded": 216, "left_out": 0}
    trace = recorded(made_up(3, experts=experts, each=(experts,) * 32, top_k=top_k, **shape))
    trace.logits[:] = np.random.default_rng(0).normal(size=trace.logits.shape)
    texts = {token: f"{token} of these" for token in range(50)}
    view = mc.xray(replace(trace, texts=texts))
    assert len(view.html.encode()) <= LIMIT == 300_000
    whole = len(words_of(view)) == 256 and view.data["of"] == 256
    assert whole == (experts <= 255)
    assert len(words_of(view)) > 100 and unpacked(view, "probabilities").min() > 0
    assert unpacked(view, "routing").dtype == (np.uint8 if experts <= 255 else np.uint16)


def test_parts_windows_and_rows():
    trace = Trace.load()
    assert mc.xray(trace, label="code").data["of"] == 384
    end = mc.xray(trace, first=-10)
    assert len(words_of(end)) == 10 and end.data["begins"] and end.data["first"] == 1526
    assert len(end.data["phases"]) == trace.steps
    wide = made_up(5, layers=48, experts=256, top_k=2, rows=1, sequences=1, decoded=300)
    late = mc.xray(wide, first=-100)  # what came before does not fit
    assert not late.data["begins"] and len(late.data["phases"]) == 100
    assert len(late.html.encode()) <= LIMIT
    batch = made_up(6, rows=2, sequences=1, prompt=3, decoded=4, left_out=0)
    first, second = (mc.xray(batch, row=row) for row in (0, 1))
    assert (unpacked(first, "routing")[:3] == batch.routing[:3]).all()
    assert (unpacked(second, "routing")[:3] == batch.routing[3:6]).all()
    assert (unpacked(second, "routing")[3] == batch.routing[7]).all()


def test_texts_are_the_tokenizers_the_traces_or_numbers():
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return f"<{ids[0]}>" if ids[0] else "long " * 2000

    ids = PROSE.tokens[:5].tolist()
    assert words_of(mc.xray(PROSE, Tokenizer(), tokens=5)) == [f"<{token}>" for token in ids]
    assert words_of(mc.xray(replace(PROSE, texts={}), tokens=5)) == [f"[{t}]" for t in ids]
    unknown = replace(PROSE, tokens=np.zeros_like(PROSE.tokens))
    assert {len(word) for word in words_of(mc.xray(unknown, Tokenizer()))} == {xray.LONGEST}
    assert set(words_of(mc.xray(replace(PROSE, tokens=PROSE.tokens * 0 - 1)))) == {""}


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"label": "poems"}, "no part 'poems'"),
        ({"tokens": 257}, "1 to 256 tokens, not 257"),
        ({"tokens": 0}, "1 to 256"),
        ({"first": 384}, "0 to 383"),
        ({"first": -385}, "0 to 383"),
        ({"first": "x"}, "0 to 383"),
        ({"row": 1}, "row must be 0 to 0"),
        ({"tokenizer": 3}, "method decode"),
    ],
)
def test_errors_are_one_sentence(settings, told):
    with pytest.raises(mc.MoEColabError, match=told) as error:
        mc.xray(PROSE, **settings)
    assert "\n" not in str(error.value)


def test_an_empty_trace_is_refused():
    with pytest.raises(mc.MoEColabError, match="nothing in this trace"):
        mc.xray(PROSE.between(0, 0))


# ---------------------------------------------------------------------- the twin
@pytest.mark.parametrize("known", [True, False])
def test_the_twin_shows_the_same(known):
    trace = PROSE if known else replace(PROSE, accesses=PROSE.accesses[:0])
    view = mc.xray(trace)
    picture = view.picture
    axes, numbers = picture.axes[0], range(28, 52)  # the prompt's last tokens, and decoded ones
    experts = {
        (round(text.get_position()[0] + 0.17), text.get_position()[1]): int(text.get_text())
        for text in axes.texts
    }
    truth = {}
    for column, number in enumerate(numbers):
        for layer in range(8):
            for rank in (0, 1):
                place = column, pytest.approx(layer - 0.45 + 0.45 * (rank + 0.5))
                truth[column, layer, rank] = PROSE.routing[number, layer, rank]
                (found,) = [e for (x, y), e in experts.items() if (x, y) == place]
                assert found == truth[column, layer, rank]
    assert len(experts) == len(truth) == 24 * 8 * 2
    drawn = [(line.get_gid(), round(line.get_xydata()[0][0] - 0.28)) for line in axes.lines]
    for column, number in enumerate(numbers[4:], 4):
        step = number - 31  # after one of 32 tokens
        for name in ("hit", "miss"):
            if known:
                own = PROSE.accesses[PROSE.accesses["step"] == step]
                count = (own["outcome"] == arrays.OUTCOMES.index(name)).sum()
            else:
                tabled = [tables.residency(PROSE, layer, "lru", 4) for layer in range(8)]
                count = sum(((t["step"] == step) & (t["state"] == name)).sum() for t in tabled)
            assert drawn.count((name, column)) == count
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[4] == "upon" and len(labels) == 24
    shades = [p.get_facecolor()[3] for p in axes.patches if p.get_gid() == "chance"]
    assert len(shades) == len(truth) and 0 < min(shades) < max(shades) <= 0.34
    title = picture.get_suptitle()
    assert title.startswith("As recorded: " if known else "Replayed with lru, 4 slots: ")
    assert f"{sum(name == 'miss' for name, _ in drawn)} of " in title


def test_a_twin_of_many_experts_has_room_for_their_numbers():
    trace = recorded(made_up(8, layers=20, experts=128, top_k=4, rows=1, sequences=1, decoded=40))
    picture = mc.xray(trace).picture
    picture.draw_without_rendering()
    axes = picture.axes[0]
    assert len({round(text.get_position()[0]) for text in axes.texts}) == 18
    assert {text.get_position()[1] for text in axes.texts} == set(range(20))  # first choices alone
    strange = replace(trace, texts=dict.fromkeys(range(50), "$a_{\n\x00 and very long"))
    label = mc.xray(strange).picture.axes[0].get_xticklabels()[3].get_text()
    assert label == r"\$a_{⏎□ a…" and mc.xray(strange).picture.png()


def test_bad_tables_of_choices_are_one_sentence():
    row = {"number": 3, "text": "", "layer": 0, "rank": 0, "expert": 1, "chance": float("nan")}
    row |= {"outcome": "", "first": True}
    assert plots.xray([row]).axes[0].texts[0].get_text() == "1"
    for table, first in (([], None), ([{"number": 3}], None), ([row], 4)):
        with pytest.raises(mc.MoEColabError) as error:
            plots.xray(table, first)
        assert "\n" not in str(error.value)

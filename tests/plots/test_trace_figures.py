"""Figures of a trace, read back: what is drawn is what was counted, here or by a replay."""

from __future__ import annotations

import runpy
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.colors import to_hex

import moe_colab as mc
from moe_colab import plots
from moe_colab.analysis import tables
from moe_colab.plots import colours
from moe_colab.plots import picture as picture_module
from moe_colab.trace import Trace

pytestmark = pytest.mark.colab
TRACE = Trace.load()
PROSE = TRACE.only("prose")
FIGURES = runpy.run_path(str(ROOT / "assets" / "figures" / "draw.py"))["FIGURES"]
EXPERT = 64 << 20  # 16 chunks
CLOCK = {"link": 12e9, "compute": 1e-3, "slots": 4}


def markers(axes, gid: str) -> set[tuple[float, float]]:
    return {tuple(p) for line in axes.lines if line.get_gid() == gid for p in line.get_xydata()}


def stays_of(axes) -> set[tuple[int, int]]:
    """(step, expert) of all that the bars cover."""
    (bars,) = (found for found in axes.collections if found.get_gid() == "slot")
    boxes = [path.get_extents() for path in bars.get_paths()]
    return {
        (step, round(box.y0 + 0.36))
        for box in boxes
        for step in range(round(box.x0 + 0.5), round(box.x1 + 0.5))
    }


def bars(axes, gid: str) -> list[tuple[float, float, float]]:
    """(lane, begin, end), in milliseconds."""
    found = [path.get_extents() for many in drawn_as(axes, gid) for path in many.get_paths()]
    return [((box.y0 + box.y1) / 2, box.x0, box.x1) for box in found]


def drawn_as(axes, gid: str) -> list:
    return [some for some in axes.collections if some.get_gid() == gid]


def lines(axes) -> dict:
    found = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    return {name: points for name, points in found.items() if not name.startswith("_")}


# ---------------------------------------------------------------------- residency
@pytest.mark.parametrize("first", [0, 30])
def test_the_strip_shows_a_lru_cache_step_by_step(first):
    axes = plots.residency(tables.residency(PROSE, 2, "lru", 3), first, 20).axes[0]
    inside: list[int] = []  # the last used at the end
    hits, loads, stays = set(), set(), set()
    for step, needed in enumerate(PROSE.needed(2)[:50]):
        before = set(inside)
        missing = [expert for expert in needed if expert not in before]
        inside = [expert for expert in inside if expert not in needed]
        kept = [expert for expert in needed if expert in before]
        if len(needed) <= 3:
            room = 3 - len(needed)
            inside = inside[-room:] if room else []
            inside += sorted([*kept, *missing])
        else:  # in waves: only the first step, from empty slots
            assert step == 0
            inside = needed[-3:]
        if first <= step < first + 20:
            hits |= {(step, expert) for expert in kept}
            loads |= {(step, expert) for expert in missing if expert in inside}
            stays |= {(step, expert) for expert in inside}
    assert markers(axes, "hit") == hits and markers(axes, "miss") == loads
    assert stays_of(axes) == stays
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert len(labels) == 20 and (labels[0] == "(prompt)") == (first == 0)
    total = sum(len(needed) for needed in PROSE.needed(2)[first : first + 20])
    assert f"{len(hits)} of {total} needed" in axes.figure.get_suptitle()


def test_any_token_can_be_a_label():
    strange = replace(PROSE, texts=dict.fromkeys(PROSE.texts, "$a_{\n and very long"))
    picture = plots.residency(tables.residency(strange), steps=10)
    assert picture.png() and picture.axes[0].get_xticklabels()[3].get_text() == r"\$a_{⏎ an…"
    blank = replace(PROSE, texts=dict.fromkeys(PROSE.texts, "  "))
    shown = plots.residency(tables.residency(blank), steps=10).axes[0].get_xticklabels()
    assert {label.get_text() for label in shown} == {"(prompt)", "␣"}


# ---------------------------------------------------------------------- curves
def test_a_point_of_a_curve_is_a_replay():
    picture = plots.hit_rates(tables.hit_rates(PROSE), slots=5)
    titles = [axes.get_title(loc="left") for axes in picture.axes]
    assert titles == ["decoded tokens", "the prompt"]
    names = {"LRU": "lru", "LFU": "lfu", "random": "random"}
    names["Belady, which knows the future"] = "optimal"
    for axes, phase in zip(picture.axes, ("decode", "prompt"), strict=True):
        found = lines(axes)
        assert set(found) == set(names)
        for name, points in found.items():
            assert [x for x, _ in points] == list(range(1, 9))
            for slots in (1, 5):
                counts = getattr(mc.replay(PROSE, names[name], slots), phase)
                assert points[slots - 1][1] == counts.hit_rate
        (chosen,) = (line for line in axes.lines if line.get_gid() == "chosen")
        assert set(chosen.get_xdata()) == {5}
        random = next(line for line in axes.lines if line.get_label() == "random")
        assert random.get_linestyle() in (":", "--") and random.is_dashed()
    rate = mc.replay(PROSE, "lru", 5).decode.hit_rate
    assert f"LRU hits {rate:.0%}" in picture.get_suptitle()


def test_recall_has_a_line_for_each_source_and_lookahead():
    table = tables.recall(PROSE, 2)
    picture = plots.recall(table)
    axes = picture.axes[0]
    found = lines(axes)
    assert len(found) == 5
    points = found["from the router's input, 2 layers ahead"]
    own = table[(table["source"] == "router_input") & (table["lookahead"] == 2)]
    assert [[round(x), y] for x, y in points] == own[["layer", "recall"]].to_numpy().tolist()
    assert found["at random"] == [[layer, 2 / 8] for layer in range(1, 8)]
    drawn = [
        (round(x), low, high)
        for bars in axes.collections
        for (x, low), (_, high) in (part.tolist() for part in bars.get_segments())
    ]
    wanted = table[["layer", "low", "high"]].itertuples(index=False, name=None)
    assert np.array(sorted(drawn)) == pytest.approx(np.array(sorted(wanted)))
    one = table[(table["source"] == "layer_output") & (table["lookahead"] == 1)]
    share = one["guessed"].sum() / one["needed"].sum()
    assert f"{share:.0%} from the layer's output" in picture.get_suptitle()


# ---------------------------------------------------------------------- the timeline
@pytest.fixture(scope="module")
def run():
    return mc.timeline(replace(PROSE, expert_bytes=(EXPERT,) * 8), **CLOCK, speculate=2)


def test_the_lanes_are_one_token_from_end_to_end(run):
    frame = run.frame()
    for step in (40, 122):
        axes = plots.timeline(frame, step).axes[0]
        computed, stalled = bars(axes, "compute"), bars(axes, "stall")
        whole = sorted((begin, end) for _, begin, end in computed + stalled)
        assert whole[0][0] == 0
        for (_, end), (begin, _) in pairwise(whole):
            assert begin == pytest.approx(end, abs=1e-9)  # it computes or it waits
        seconds = run_seconds(run, step)
        assert whole[-1][1] == pytest.approx(1e3 * seconds)
        assert sum(end - begin for _, begin, end in computed) == pytest.approx(8)  # ms: 8 layers
        assert {lane for lane, *_ in computed} == {0} and {lane for lane, *_ in stalled} == {2}
        copies = [bar for sign in ("no", "right", "wrong") for bar in bars(axes, sign)]
        assert {lane for lane, *_ in copies} == {1}
        assert f"{1e3 * seconds:.1f} ms" in axes.figure.get_suptitle()


def run_seconds(run, step: int) -> float:
    own = run.events[(run.events["step"] == step) & (run.events["kind"] != 0)]
    return own["end"].max() - own["begin"].min()


def test_hatched_and_crossed_are_right_and_wrong_guesses(run):
    """By the routing: a guess is right if the layer it was made for then needed the expert."""
    frame = run.frame()
    copies = frame[frame["kind"] == "copy"]
    guessed = copies[copies["guess"] != "no"]
    for row in guessed.itertuples():
        needed = row.expert in PROSE.needed(row.layer)[row.step]
        assert row.guess == ("right" if needed else "wrong")
    assert guessed[guessed["guess"] == "wrong"]["bytes"].sum() == run.stats.bytes_wasted > 0
    step = 122
    start = frame[(frame["step"] == step) & (frame["kind"] != "copy")]["begin"].min()
    axes = plots.timeline(frame, step).axes[0]
    for sign in ("right", "wrong"):
        own = copies[(copies["step"] == step) & (copies["guess"] == sign)]
        wanted = sorted((1e3 * (own["begin"] - start)).tolist())
        assert sorted(begin for _, begin, _ in bars(axes, sign)) == pytest.approx(wanted)
        (patch,) = drawn_as(axes, sign)
        assert patch.get_hatch()
    plain = mc.timeline(PROSE, **CLOCK).frame()
    assert set(plain["guess"]) == {"no"}


# ---------------------------------------------------------------------- all of them
def test_signs_differ_by_more_than_colour_and_stand_out():
    from moe_colab.plots.hit_rates import POLICIES, SOURCES
    from moe_colab.plots.residency import SIGNS
    from moe_colab.plots.timeline import BARS

    for signs in (
        [(sign[1], sign[2]) for sign in POLICIES.values()],
        [sign[1] for sign in SOURCES.values()],
        [sign[2] or sign[0] for sign in BARS.values()],
        [sign[1] for sign in SIGNS.values()],
    ):
        assert len(set(signs)) == len(signs)
    used = [to_hex(s[0]) for t in (POLICIES, SOURCES) for s in t.values()]
    assert min(colours.contrast(colour, "#ffffff") for colour in used) >= 3


@pytest.mark.parametrize("name", ["block", "routing", "cache", "speculate", "topics"])
def test_the_figures_above_the_notebooks_are_drawn_anew(name):
    picture = FIGURES[name]()
    picture.draw_without_rendering()
    title = picture._suptitle.get_window_extent()
    assert title.x1 <= picture.bbox.width  # not cut
    assert picture.get_size_inches()[0] == picture_module.WIDTH and len(picture.png()) < 300_000
    assert matplotlib.rcParams["hatch.linewidth"] == matplotlib.rcParamsDefault["hatch.linewidth"]


def test_bad_tables_are_one_sentence(run):
    frame = run.frame()
    for draw in (
        lambda: plots.residency([]),
        lambda: plots.residency(tables.residency(PROSE), first=10**6),
        lambda: plots.hit_rates([{"policy": "lru"}]),
        lambda: plots.recall([]),
        lambda: plots.timeline(frame.drop(columns="guess"), 3),
        lambda: plots.timeline(frame, 10**6),
    ):
        with pytest.raises(mc.MoEColabError) as error:
            draw()
        assert "\n" not in str(error.value)

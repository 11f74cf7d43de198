"""Figures of where tokens are sent, read back: what is drawn is what the trace's own arrays say."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from traces import each_token, made_up, relabelled, went

import moe_colab as mc
from moe_colab import plots
from moe_colab.analysis import tables
from moe_colab.plots import picture as picture_module
from moe_colab.plots.shares import MOST, SIGNS
from moe_colab.plots.tokens import UNKNOWN, colormaps
from moe_colab.trace import Builder, Trace

pytestmark = pytest.mark.colab
TRACE = Trace.load()
CODE, PROSE = TRACE.only("code"), TRACE.only("prose")
NEW = random.Random(6).sample(range(8), 8)  # other names for the experts


def large(seed: int = 1, layers: int = 6, experts: int = 128, tokens: int = 40) -> Trace:
    """Of another engine's kind: eight of 128 experts, no logits, no text; the last layer leaves the
    first tokens of the prompt out."""
    dice = random.Random(seed)
    model = {"model": "large", "experts": (experts,) * layers, "expert_bytes": (1,) * layers}
    builder = Builder(model)
    for phase, length in (("prompt", tokens), *[("decode", 1)] * tokens):
        forward = builder.begin(phase, 1, length, 0, None)
        for layer in range(layers):
            chosen = [dice.sample(range(experts), 8) for _ in range(length)]
            if phase == "prompt" and layer == layers - 1:
                chosen[:-1] = [[-1] * 8] * (length - 1)
            forward.routed(layer, np.array(chosen), None)
        builder.end()
    return builder.trace()


def shares_of(trace: Trace, layer: int) -> list[float]:
    chosen = [went(trace, place, layer) for place in range(len(trace.tokens))]
    chosen = [experts for experts in chosen if experts]
    return [sum(e in own for own in chosen) / len(chosen) for e in range(trace.experts[layer])]


def maps(picture) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in picture.axes if axes.images]


def interval_of(axes, gid: str) -> list[tuple[float, float, float]]:
    """(place, low, high) of a set of whiskers."""
    (found,) = (lines for lines in axes.collections if lines.get_gid() == gid)
    return [(path[0][0], path[0][1], path[1][1]) for path in found.get_segments()]


def uniform_of(axes) -> float:
    (line,) = (line for line in axes.lines if line.get_gid() == "uniform")
    assert line.is_dashed() and len(set(line.get_ydata())) == 1
    return line.get_ydata()[0]


# ---------------------------------------------------------------------- heat maps
@pytest.mark.parametrize("trace", [TRACE, CODE, large()], ids=["all", "code", "128 experts"])
def test_activations_are_a_map_of_layers_and_experts(trace):
    picture = plots.activations(tables.activations(trace))
    amounts, times = maps(picture)
    layers, experts = trace.layers, trace.experts[0]
    assert amounts.shape == times.shape == (layers, experts)
    for layer in (0, layers - 1):
        own = shares_of(trace, layer)
        assert amounts[layer].tolist() == pytest.approx(own)
        even = sum(own) / experts
        assert times[layer].tolist() == pytest.approx([share / even for share in own])
    first, second = (axes.images[0] for axes in picture.axes if axes.images)
    assert (first.get_cmap().name, second.get_cmap().name) == ("cividis", "PuOr")
    assert float(second.norm(1)) == pytest.approx(0.5)  # an even share has the middle colour
    assert first.norm.vmin == 0
    written = [text.get_text() for text in picture.axes[0].texts]
    assert len(written) == (64 if experts == 8 else 0)
    if written:
        assert written[:8] == [f"{100 * share:.0f}" for share in shares_of(trace, 0)]
    assert "Every layer has its own experts" in picture.get_supxlabel()


def test_the_prompt_and_decoded_tokens_are_other_maps():
    both = [maps(plots.activations(tables.activations(CODE, p)))[0] for p in ("prompt", "decode")]
    assert np.abs(both[0] - both[1]).max() > 0.05
    whole = maps(plots.activations(tables.activations(CODE)))[0]
    assert whole == pytest.approx((both[0] * 3 * 32 + both[1] * 3 * 96) / 384)


def test_transitions_are_a_map_of_two_layers():
    picture = plots.transitions(tables.transitions(PROSE, 4))
    amounts, times = maps(picture)
    chosen = [(went(PROSE, place, 4), went(PROSE, place, 5)) for place in range(384)]
    for expert in range(8):
        own = [after for before, after in chosen if expert in before]
        for following in range(8):
            share = sum(following in after for after in own) / len(own)
            even = sum(following in after for _, after in chosen) / len(chosen)
            assert amounts[expert, following] == pytest.approx(share)
            assert times[expert, following] == pytest.approx(share / even)
    table = tables.transitions(PROSE, 4)
    sure = table[(table["low"] > table["independent"]) | (table["high"] < table["independent"])]
    bold = {t.get_position() for t in picture.axes[1].texts if t.get_fontweight() == "bold"}
    assert bold == {(row.next, row.expert) for row in sure.itertuples()}
    assert f"{len(sure)} of 64 pairs" in picture.get_supxlabel()
    labels = [(axes.get_ylabel(), axes.get_xlabel()) for axes in picture.axes[:2]]
    assert labels == [("expert of layer 4", "expert of layer 5")] * 2
    two = tables.transitions(PROSE, 3, hops=2)
    assert (maps(plots.transitions(two, 4))[0] == amounts).all()
    assert not (maps(plots.transitions(two))[0] == amounts).all()


def test_other_names_for_experts_move_the_cells():
    other = relabelled(CODE, NEW)
    for make, cells in (
        (lambda trace: plots.activations(tables.activations(trace)), (range(8), NEW)),
        (lambda trace: plots.transitions(tables.transitions(trace, 2)), (NEW, NEW)),
    ):
        for before, after in zip(maps(make(CODE)), maps(make(other)), strict=True):
            assert after[np.ix_(*cells)] == pytest.approx(before, nan_ok=True)


# ---------------------------------------------------------------------- shares
@pytest.mark.parametrize("trace", [CODE, large()], ids=["8 experts", "128 experts"])
def test_a_bar_for_every_expert_and_the_even_share(trace):
    table = tables.activations(trace)
    axes = plots.shares(table, 3).axes[0]
    own = shares_of(trace, 3)
    assert [patch.get_height() for patch in axes.patches] == pytest.approx(own)
    places = [patch.get_x() + patch.get_width() / 2 for patch in axes.patches]
    assert places == pytest.approx(list(range(trace.experts[0])))
    assert uniform_of(axes) == pytest.approx(sum(own) / len(own))
    rows = table[table["layer"] == 3]
    wanted = rows[["expert", "low", "high"]].to_numpy()
    assert np.array(interval_of(axes, "interval")) == pytest.approx(wanted)
    told = (rows["low"] > rows["uniform"]) | (rows["high"] < rows["uniform"])
    faces = {patch.get_facecolor() for patch, one in zip(axes.patches, told, strict=True) if one}
    rest = {patch.get_facecolor() for patch, one in zip(axes.patches, told, strict=True) if not one}
    assert not faces & rest
    other = plots.shares(table, 1).axes[0]
    assert [patch.get_height() for patch in other.patches] == pytest.approx(shares_of(trace, 1))


def test_specialisation_has_a_dot_for_every_label():
    table = tables.specialisation(TRACE, 7)
    axes = plots.specialisation(table).axes[0]
    assert uniform_of(axes) == 2 / 8
    seen = []
    for container in axes.containers:
        label = container.get_label()
        own = [went(TRACE, place, 7) for place, _, name, *_ in each_token(TRACE) if name == label]
        points = container.lines[0].get_xydata()
        assert [round(place) for place, _ in points] == list(range(8))
        shares = [sum(e in experts for experts in own) / 384 for e in range(8)]
        assert points[:, 1].tolist() == pytest.approx(shares)
        rows = table[table["label"] == label]
        ends = [(low, high) for _, low, high in interval_of(axes, label)]
        assert np.array(ends) == pytest.approx(rows[["low", "high"]].to_numpy())
        seen.append((label, container.lines[0].get_marker()))
    assert [label for label, _ in seen] == list(TRACE.labels)
    assert len({marker for _, marker in seen}) == 4
    some = plots.specialisation(table, experts=[6, 1]).axes[0]
    assert [tick.get_text() for tick in some.get_xticklabels()] == ["6", "1"]
    points = sorted(some.containers[1].lines[0].get_xydata().tolist())
    rows = table[table["label"] == "code"].set_index("expert")["share"]
    assert [share for _, share in points] == [rows[6], rows[1]]


def test_of_many_experts_those_are_shown_whose_texts_differ_most():
    first, second = large(1), large(2)
    both = Trace.merge(replace(first, labels=("one",)), replace(second, labels=("two",)))
    axes = plots.specialisation(tables.specialisation(both, 2)).axes[0]
    shown = [int(tick.get_text()) for tick in axes.get_xticklabels()]
    gaps = np.abs(np.subtract(shares_of(first, 2), shares_of(second, 2)))
    assert len(shown) == MOST
    assert min(gaps[shown]) >= max(np.delete(gaps, shown)) - 1e-12


# ---------------------------------------------------------------------- flows
def widths(axes, gid: str) -> list[tuple[int, float]]:
    """(the layer that a band comes from, its height), of all bands."""
    (bands,) = (found for found in axes.collections if found.get_gid() == gid)
    corners = [path.vertices for path in bands.get_paths()]
    return [(int(points[0][0]), points[7][1] - points[0][1]) for points in corners]


def test_bands_are_the_ways_of_tokens():
    table = tables.transitions(CODE, 2, hops=2)
    axes = plots.flows(table).axes[0]
    drawn = widths(axes, "more") + widths(axes, "rest")
    wanted = []
    for layer in (2, 3):
        ways: dict[tuple[int, int], float] = {}
        for place in range(384):
            before, after = went(CODE, place, layer), went(CODE, place, layer + 1)
            for way in ((b, a) for b in before for a in after):
                ways[way] = ways.get(way, 0) + 1 / (len(before) * len(after)) / 384
        wanted += [(layer - 2, flow) for flow in ways.values()]
    assert np.array(sorted(drawn)) == pytest.approx(np.array(sorted(wanted)))
    more = table[table["low"] > table["independent"]]
    high = sorted(high for _, high in widths(axes, "more"))
    assert high == pytest.approx(sorted(more["flow"]))
    assert f"{more['flow'].sum() / table['flow'].sum():.0%}" in axes.figure.get_suptitle()
    nodes = {patch.get_gid(): patch.get_height() for patch in axes.patches}
    assert len(nodes) == 3 * 8
    for name, height in nodes.items():
        layer, expert = map(int, name.split())
        assert height == pytest.approx(shares_of(CODE, layer)[expert] / 2)  # two experts a token


def test_bands_begin_and_end_at_their_experts():
    """At each layer the bands that leave an expert lie in its bar, one below the other, from its
    top to its end; and so do those that arrive."""
    axes = plots.flows(tables.transitions(CODE, 2, hops=2)).axes[0]
    bands = [b for b in axes.collections if b.get_gid() in ("more", "rest")]
    corners = [path.vertices for found in bands for path in found.get_paths()]
    for patch in axes.patches:
        layer, top, high = round(patch.get_x() + 0.05), patch.get_y(), patch.get_height()
        for column, at in ((layer, 0), (layer - 1, 3)):  # where bands leave, where they arrive
            ends = [(p[at][1], p[7 - at][1]) for p in corners if int(p[0][0]) == column]
            own = sorted(end for end in ends if top <= sum(end) / 2 <= top + high)
            if column in (0, 1):
                assert own[0][0] == pytest.approx(top) and own[-1][1] == pytest.approx(top + high)
                for (_, end), (begin, _) in pairwise(own):
                    assert begin == pytest.approx(end)


def test_many_experts_are_drawn_as_a_few_and_the_rest():
    trace = large()
    axes = plots.flows(tables.transitions(trace, 1, hops=2)).axes[0]
    for layer in (1, 2, 3):
        own = [p.get_gid() for p in axes.patches if p.get_gid().startswith(f"{layer} ")]
        assert len(own) == 13 and f"{layer} -1" in own
        shares = shares_of(trace, layer)
        kept = [int(name.split()[1]) for name in own if not name.endswith("-1")]
        assert min(shares[e] for e in kept) >= sorted(shares)[-14] - 1e-12
        heights = sum(p.get_height() for p in axes.patches if p.get_gid() in own)
        assert heights == pytest.approx(1)


# ---------------------------------------------------------------------- text and routers
def strip(picture) -> tuple[list[str], list]:
    """(what is written, the boxes' colours), in the order in which they are drawn."""
    axes = picture.axes[0]
    (boxes,) = (found for found in axes.collections if found.get_gid() == "experts")
    return [text.get_text() for text in axes.texts], boxes.get_facecolors().tolist()


def test_a_strip_writes_every_token_and_its_experts():
    picture = plots.tokens(tables.tokens(CODE, 6, 24, 30), marked=40)
    written, colours = strip(picture)
    words = [CODE.texts[int(CODE.tokens[place])] for place in range(24, 54)]
    assert written[:30] == [picture_module.readable(word, 16) for word in words]
    assert written[:30] != words  # line ends are shown
    wanted = [str(expert) for place in range(24, 54) for expert in went(CODE, place, 6)]
    assert written[30:] == wanted
    by_chance = tables.tokens(CODE, 6, 24, 30)["probability"].tolist()
    shade = colormaps["cividis"]
    assert colours == [pytest.approx(shade(odd)) for odd in by_chance]
    axes = picture.axes[0]
    (found,) = (one for one in axes.collections if one.get_gid() == "experts")
    boxes = [path.get_extents() for path in found.get_paths()]
    assert len({(box.x0, box.y0) for box in boxes}) == 60
    for number, (box, digit) in enumerate(zip(boxes, axes.texts[30:], strict=True)):
        assert box.contains(*digit.get_position())
        above = axes.texts[number // 2].get_position()  # two experts below each token
        assert digit.get_position() == pytest.approx((above[0], above[1] + 1 + number % 2))
    italics = [t.get_fontstyle() == "italic" for t in picture.axes[0].texts[:30]]
    assert italics == [place < 32 for place in range(24, 54)]  # the prompt
    (frame,) = picture.axes[0].patches
    middle = frame.get_x() + frame.get_width() / 2, frame.get_y() + 0.5
    assert picture.axes[0].texts[40 - 24].get_position() == pytest.approx(middle)
    assert strip(plots.tokens(tables.tokens(CODE, 5, 24, 30)))[0][30:] != wanted
    other = strip(plots.tokens(tables.tokens(relabelled(CODE, NEW), 6, 24, 30)))
    assert other[0][30:] == [str(NEW[int(name)]) for name in wanted] and other[1] == colours


def test_tokens_do_not_lie_on_each_other():
    picture = plots.tokens(tables.tokens(PROSE, 0, 0, 96))
    axes = picture.axes[0]
    picture.draw_without_rendering()
    boxes = [t.get_window_extent() for t in axes.texts[:96]]
    for one, two in pairwise(boxes):
        assert one.y0 > two.y1 or one.x1 <= two.x0 + 0.5
    assert max(box.x1 for box in boxes) <= picture.bbox.width
    assert min(box.x0 for box in boxes) >= 0


def test_a_strip_of_another_engines_trace_says_what_is_missing():
    trace = large()
    picture = plots.tokens(tables.tokens(trace, 5, 38, 4))
    written, colours = strip(picture)
    assert written[:4] == [""] * 4
    dashes = ["–"] * 4  # token 38 was left out by the last layer, and has four ranks
    wanted = [str(e) for place in (39, 40, 41) for e in went(trace, place, 5)[:4]]
    assert written[4:] == dashes + wanted
    assert {tuple(colour) for colour in colours} == {UNKNOWN}
    assert "no logits" in picture.get_supxlabel() and "first 4 of 8" in picture.get_supxlabel()


@pytest.mark.slow
def test_any_token_can_be_drawn():
    strange = ["$a_{", "<script>", "\n\n", "", "😀", "日本語", "\x00", "e\u0301", "‮abc", "x" * 400]
    words = {token: strange[token % len(strange)] for token in PROSE.texts}
    trace = replace(PROSE, texts=words)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")  # that no font has
        assert plots.tokens(tables.tokens(trace, 0, 0, 40)).png()
        for place in range(12):
            word = tables.tokens(trace, 0, place, 1)["text"][0]
            assert plots.router(tables.router(trace, place, 0), word).png()
        assert plots.residency(tables.residency(trace), steps=12).png()


@pytest.mark.parametrize("top_k", [None, 1, 4])
def test_bars_of_a_router(top_k):
    place, layer = 70, 3
    picture = plots.router(tables.router(PROSE, place, layer, top_k), " ferry")
    logits = [float(logit) for logit in PROSE.logits[place, layer]]
    odds = np.exp(logits) / np.exp(logits).sum()
    chosen = sorted(range(8), key=lambda expert: -logits[expert])[: top_k or 2]
    for axes, values in zip(picture.axes, (logits, odds), strict=True):
        heights = {round(p.get_x() + 0.36): p.get_height() for p in axes.patches}
        assert [heights[expert] for expert in range(8)] == pytest.approx(list(values))
        marked = [p for p in axes.patches if p.get_gid() == "chosen"]
        assert {round(p.get_x() + 0.36) for p in marked} == set(chosen)
        assert all(p.get_hatch() for p in marked)
    assert uniform_of(picture.axes[1]) == 1 / 8
    ranks = {round(t.xy[0]): t.get_text() for t in picture.axes[0].texts}
    assert ranks == {expert: f"{rank + 1}." for rank, expert in enumerate(chosen)}
    weights = {round(t.xy[0]): t.get_text() for t in picture.axes[1].texts}
    whole = sum(odds[expert] for expert in chosen)
    assert weights == {expert: f"{odds[expert] / whole:.2f}" for expert in chosen}
    assert picture.get_suptitle().startswith("“ferry” is routed to expert")


# ---------------------------------------------------------------------- the paper's rows
def test_the_papers_rows_are_bars():
    report = mc.benchmark("paper")
    left, right = plots.ablation(report).axes
    order = ["full", "no-speculation", "no-cache", "whole-layer"]
    rows = {row["row"]: row for row in report["rows"]}
    counted = [rows[name]["replay"]["bytes_loaded"] / 1536 / 1e6 for name in order]
    assert [patch.get_width() for patch in left.patches] == pytest.approx(counted)
    ours = [1 / rows[name]["modelled"]["tokens_per_second_of_32_layers"] for name in order]
    theirs = [1 / rows[name]["paper"]["tokens_per_second"] for name in order]
    assert [patch.get_width() for patch in right.patches] == pytest.approx(ours + theirs)
    assert right.patches[-1].get_hatch() and not right.patches[0].get_hatch()
    labels = [" ".join(tick.get_text().split()) for tick in left.get_yticklabels()]
    assert labels == [rows[name]["is"] for name in order]
    assert "12 GB/s" in right.get_title(loc="left") and "MB" in left.get_xlabel()
    shuffled = {**report, "rows": report["rows"][::-1]}
    again = plots.ablation(shuffled).axes[0]
    assert [p.get_width() for p in again.patches] == pytest.approx(counted)


# ---------------------------------------------------------------------- all of them
EVERY = {
    "activations": lambda trace: plots.activations(tables.activations(trace)),
    "shares": lambda trace: plots.shares(tables.activations(trace)),
    "specialisation": lambda trace: plots.specialisation(tables.specialisation(trace)),
    "transitions": lambda trace: plots.transitions(tables.transitions(trace)),
    "flows": lambda trace: plots.flows(tables.transitions(trace, hops=2)),
    "tokens": lambda trace: plots.tokens(tables.tokens(trace)),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("trace", [TRACE, large()], ids=["small", "large"])
def test_a_figure_is_as_wide_as_a_page_and_nothing_is_cut(name, trace):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "constrained_layout")  # no room
        picture = EVERY[name](trace)
        picture.draw_without_rendering()
    assert picture.get_size_inches()[0] == picture_module.WIDTH
    written = [
        picture._suptitle,
        *(t for axes in picture.axes for t in (axes.title, axes._left_title)),
    ]
    for one in (*written, picture._supxlabel):
        if one is not None and one.get_text():
            box = one.get_window_extent()
            assert box.x1 <= picture.bbox.width + 1 and box.x0 >= -1, one.get_text()


def test_signs_of_labels_differ_by_more_than_colour():
    assert len({marker for _, marker in SIGNS}) == len(SIGNS)


def test_a_trace_of_one_step_is_drawn_too():
    small = made_up(3, steps=1)
    for name in ("activations", "shares", "specialisation", "transitions", "flows", "tokens"):
        assert EVERY[name](small).png()


def test_a_layer_that_left_all_tokens_out():
    """It has no numbers to be drawn."""
    routing = CODE.routing.copy()
    routing[:, 3] = -1
    silent = replace(CODE, routing=routing)
    table = tables.activations(silent)
    picture = plots.activations(table)
    for drawn in maps(picture):
        assert np.isnan(drawn[3]).all() and np.isfinite(drawn[[2, 4]]).all()
    assert picture.png() and plots.tokens(tables.tokens(silent, 3)).png()
    for refused in (
        lambda: plots.shares(table, 3),
        lambda: plots.specialisation(tables.specialisation(silent, 3)),
        lambda: plots.transitions(tables.transitions(silent, 3)),
        lambda: plots.flows(tables.transitions(silent, 1, hops=2)),
    ):
        with pytest.raises(mc.MoEColabError, match=r"layer|nothing to draw"):
            refused()


def test_bad_tables_are_one_sentence():
    activations = tables.activations(CODE)
    for draw in (
        lambda: plots.activations([]),
        lambda: plots.activations(activations.drop(columns="share")),
        lambda: plots.shares(activations, 8),
        lambda: plots.shares([]),
        lambda: plots.specialisation(activations),
        lambda: plots.transitions([]),
        lambda: plots.transitions(tables.transitions(CODE), 3),
        lambda: plots.flows([]),
        lambda: plots.flows(tables.transitions(CODE, 0, hops=3)),
        lambda: plots.tokens([]),
        lambda: plots.router(tables.tokens(CODE)),
        lambda: plots.ablation({}),
        lambda: plots.ablation({"rows": [], "counted": {}, "modelled": {}}),
        lambda: plots.ablation(mc.benchmark("traces")),
    ):
        with pytest.raises(mc.MoEColabError) as error:
            draw()
        assert "\n" not in str(error.value)

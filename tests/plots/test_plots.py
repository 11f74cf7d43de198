"""Figures, read back: what is drawn is what the table says, and it can be read."""

from __future__ import annotations

import io
import itertools
import math
import random

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from matplotlib.colors import to_hex

import moe_colab as mc
from moe_colab import MoEColabError, plots
from moe_colab.analysis import tables
from moe_colab.plots import colours
from moe_colab.plots.pareto import name as point_name

pytestmark = pytest.mark.colab
DARK = "#1f2124"  # the darkest page a figure's colours may meet


def error_frame(layers: int, experts: int, matrices=("gate_up_proj", "down_proj"), seed: int = 0):
    rng = np.random.default_rng(seed)
    ids = itertools.product(range(layers), range(experts), matrices)
    rows = [
        {
            "layer": layer,
            "expert": expert,
            "matrix": matrix,
            "relative_error": rng.uniform(0.1, 0.5),
        }
        for layer, expert, matrix in ids
    ]
    return pd.DataFrame(rows)


def with_dense(frame, layers: int):
    """As of a store whose attention is quantized, and whose embedding is not."""
    rows = [
        {"matrix": f"model.layers.{layer}.self_attn.{name}", "relative_error": layer / 100 + place}
        for layer in range(layers)
        for place, name in enumerate(("q_proj", "k_proj"))
    ]
    rows.append({"matrix": "model.embed_tokens", "relative_error": math.nan})
    dense = pd.DataFrame(rows).assign(part="dense", layer=pd.NA, expert=pd.NA)
    frame = frame.assign(part="experts").astype({"layer": "Int64", "expert": "Int64"})
    return pd.concat([frame, dense.astype({"layer": "Int64", "expert": "Int64"})])


def panels(picture) -> dict:
    """{matrix: what its panel shows}"""
    return {
        axes.get_title(loc="left").partition(":")[0]: axes.images[0].get_array()
        for axes in picture.axes
        if axes.images and axes.get_title(loc="left")
    }


# ---------------------------------------------------------------------- errors
def test_a_cell_is_an_experts_error():
    frame = error_frame(5, 8)
    shown = panels(plots.errors(frame))
    assert set(shown) == {"gate_up_proj", "down_proj"}
    for row in frame.itertuples():
        assert shown[row.matrix][row.layer, row.expert] == row.relative_error


def test_shuffled_rows_draw_the_same_and_renamed_experts_move():
    frame = error_frame(4, 16)
    before = panels(plots.errors(frame))
    shuffled = panels(plots.errors(frame.sample(frac=1, random_state=1)))
    order = np.random.default_rng(3).permutation(16)
    renamed = panels(plots.errors(frame.assign(expert=order[frame["expert"]])))
    for name, values in before.items():
        assert (shuffled[name] == values).all()
        assert (renamed[name][:, order] == values).all()


def test_panels_share_a_scale_and_numbers_are_in_percent():
    picture = plots.errors(error_frame(3, 8))
    left, right = (axes for axes in picture.axes if axes.get_title(loc="left"))
    assert left.images[0].norm is right.images[0].norm
    shown = left.images[0].get_array()
    assert [text.get_text() for text in left.texts] == [f"{100 * v:.0f}" for v in shown.ravel()]


def test_what_was_kept_is_blank_and_dense_matrices_have_a_panel():
    frame = with_dense(error_frame(4, 8), 4)
    frame.loc[frame["layer"].eq(2).fillna(False), "relative_error"] = math.nan
    shown = panels(plots.errors(frame))
    assert np.ma.getmaskarray(shown["down_proj"])[2].all()
    assert not np.ma.getmaskarray(shown["down_proj"])[[0, 1, 3]].any()
    expected = [[layer / 100 + place for place in (0, 1)] for layer in range(4)]
    assert shown["dense matrices"].tolist() == expected


def test_a_store_that_is_drawn(report):
    """The picture of a report that was really made."""
    shown = panels(plots.errors(report.frame()))
    frame = report.frame()
    one = frame[(frame["layer"] == 1) & (frame["expert"] == 3) & (frame["matrix"] == "down_proj")]
    assert shown["down_proj"].shape == (8, 8)
    assert shown["down_proj"][1, 3] == one["relative_error"].item()


@pytest.mark.parametrize("experts", [8, 16, 17, 60, 128, 512])
def test_every_number_of_experts_can_be_read(experts):
    picture = plots.errors(error_frame(12, experts))
    picture.draw_without_rendering()
    for axes in picture.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label for label in axis.get_ticklabels() if label.get_text()]
            boxes = [label.get_window_extent() for label in labels]
            pairs = itertools.combinations(boxes, 2)
            assert not [1 for one, other in pairs if one.overlaps(other)], experts
        for text in axes.texts:
            column, row = text.get_position()
            box = axes.transData.transform([[column - 0.5, row], [column + 0.5, row]])
            assert text.get_window_extent().width < box[1, 0] - box[0, 0]
    within(picture)


def within(picture) -> None:
    """Nothing that is written lies outside of the page."""
    picture.draw_without_rendering()
    width, height = picture.get_size_inches() * picture.dpi
    for text in picture.findobj(matplotlib.text.Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            ticks = {label for axes in picture.axes for label in axes.get_xticklabels()}
            ticks |= {label for axes in picture.axes for label in axes.get_yticklabels()}
            if text not in ticks:
                assert box.x0 >= -1 and box.x1 <= width + 1, text.get_text()
                assert box.y0 >= -1 and box.y1 <= height + 1, text.get_text()


# ---------------------------------------------------------------------- bytes against quality
def quality_rows() -> list[dict]:
    """In the columns of quality.json; made up."""
    rng = random.Random(0)
    rows = []
    for attention, (experts, group) in itertools.product(
        (16, 4, 3, 2), ((16, None), (4, 64), (3, 64), (2, 64), (2, 16))
    ):
        full = attention == experts == 16
        ratio = 1.0 if full else 1 + 0.3 / 2**experts + 0.1 / 2**attention + rng.uniform(0, 0.01)
        margin = 0 if full else rng.uniform(0.002, 0.02)
        rows.append(
            {
                "attention_bits": attention,
                "expert_bits": experts,
                "expert_group": group,
                "bytes": int(1e6 * (1.6 + experts + attention / 9 + 16 / (group or 1e9))),
                "ratio": ratio,
                "ratio_low": ratio - margin,
                "ratio_high": ratio + margin,
                "tie": ratio - margin <= 1,
            }
        )
    return rows


def points(picture) -> dict:
    """{name: (x, y, hollow, colour, marker, interval)} of every point."""
    (axes,) = picture.axes
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        ((x,), (y,)), ((_, low), (_, high)) = line.get_data(), bars.get_segments()[0]
        hollow = line.get_markerfacecolor() == "white"
        found[container.get_label()] = (
            x,
            y,
            hollow,
            line.get_color(),
            line.get_marker(),
            low,
            high,
        )
    return found


def test_a_point_is_a_row():
    rows = quality_rows()
    picture = plots.pareto(rows)
    shown = points(picture)
    assert len(shown) == len(rows) and picture.axes[0].get_xscale() == "log"
    signs = {}
    for row in rows:
        x, y, hollow, colour, marker, low, high = shown[point_name(row)]
        assert x == row["bytes"] / 1e6 and y == row["ratio"] and hollow == row["tie"]
        assert (low, high) == pytest.approx((row["ratio_low"], row["ratio_high"]))
        signs.setdefault(row["expert_bits"], set()).add((colour, marker))
    assert all(len(found) == 1 for found in signs.values())
    assert len({marker for ((_, marker),) in signs.values()}) == 4
    within(picture)


def test_the_line_joins_those_that_nothing_smaller_beats():
    rows = quality_rows()
    random.Random(1).shuffle(rows)
    expected = [
        row
        for row in sorted(rows, key=lambda row: row["bytes"])
        if not [r for r in rows if r["bytes"] <= row["bytes"] and r["ratio"] < row["ratio"]]
    ]
    assert tables.front(rows) == plots.front(rows) == expected
    (axes,) = plots.pareto(rows).axes
    (line,) = (line for line in axes.lines if line.get_label() == "front")
    assert line.get_xdata().tolist() == [row["bytes"] / 1e6 for row in expected]
    assert line.get_ydata().tolist() == [row["ratio"] for row in expected]


def test_yours_is_a_cross_and_a_frame_will_do():
    rows = quality_rows()
    picture = plots.pareto(pd.DataFrame(rows), [{"bytes": 3_000_000, "ratio": 1.07}])
    (mine,) = (line for line in picture.axes[0].lines if line.get_label() == "mine")
    assert (mine.get_xdata(), mine.get_ydata(), mine.get_marker()) == ([3.0], [1.07], "X")
    assert set(points(picture)) == set(points(plots.pareto(rows)))


def test_the_title_tells_the_smallest_tie():
    rows = quality_rows()
    for row in rows:
        row["tie"] = row["expert_bits"] >= 4 and row["attention_bits"] >= 3
    least = min((row for row in rows if row["tie"]), key=lambda row: row["bytes"])
    share = least["bytes"] / max(row["bytes"] for row in rows)
    title = plots.pareto(rows).get_suptitle()
    assert title.startswith(f"Down to {share:.0%} of the bytes")
    assert title.endswith(": experts 4 (g64), attention 3")
    for row in rows:
        row["tie"] = row["ratio"] == 1
    assert "is as good as full precision" in plots.pareto(rows).get_suptitle()


# ---------------------------------------------------------------------- levels
def test_levels_are_lines_over_the_matrix_and_a_group():
    rng = np.random.default_rng(0)
    rows = [
        {
            "name": f"{bits} bits",
            "weights": rng.normal(size=(64, 96)),
            "group": rng.normal(size=32),
            "levels": rng.permutation(np.linspace(-1, 1, 2**bits)),
        }
        for bits in (2, 4)
    ]
    picture = plots.levels(rows)
    assert [axes.get_title(loc="left") for axes in picture.axes] == ["2 bits", "4 bits"]
    for axes, row in zip(picture.axes, rows, strict=True):
        (lines,) = axes.collections
        assert [x for (x, _), _ in lines.get_segments()] == sorted(row["levels"])
        (marks,) = axes.lines
        assert marks.get_xdata().tolist() == row["group"].tolist()
        heights, edges, _ = axes.patches[0].get_data()
        counts, _ = np.histogram(row["weights"], edges)
        assert heights.tolist() == (counts / row["weights"].size).tolist()
    within(picture)


# ---------------------------------------------------------------------- bytes
@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "store"
    return mc.quantize(None, folder, expert_bits=2, group_size=64, progress=False)


def bars(picture) -> dict:
    """{(part, kind): bytes}"""
    (axes,) = picture.axes
    parts = [label.get_text() for label in axes.get_yticklabels()]
    return {
        (parts[round(bar.get_y() + bar.get_height() / 2)], container.get_label()): bar.get_width()
        for container in axes.containers
        for bar in container
    }


def test_the_bars_are_all_bytes_of_a_store(report):
    shown = bars(plots.bits(report))
    assert sum(shown.values()) * 1e6 == pytest.approx(report.total_bytes)
    experts = {kind: nbytes for (part, kind), nbytes in shown.items() if part == "experts"}
    codes = report.expert_parameters * 2 / 8
    frame = report.frame()
    kept = frame[frame.get("part", pd.Series("experts", frame.index)) == "experts"]["bytes"].sum()
    assert experts["codes"] * 1e6 == pytest.approx(codes)
    assert experts["scales and zeros"] * 1e6 == pytest.approx(kept - codes)
    assert experts["other bytes"] * 1e6 == pytest.approx(report.expert_bytes - kept)
    assert experts["not quantized"] == 0


def test_a_frame_alone_has_its_own_bytes():
    rows = [
        {"part": "experts", "bits": 2, "weights": 8000, "bytes": 2500},
        {"part": "experts", "bits": 4, "weights": 8000, "bytes": 4300},
        {"part": "dense", "bits": 16, "weights": 1000, "bytes": 2000},
    ]
    picture = plots.bits(rows)
    shown = {place: round(nbytes * 1e3) for place, nbytes in bars(picture).items() if nbytes}
    assert shown == {
        ("experts", "codes"): 6000,
        ("experts", "scales and zeros"): 800,
        ("dense", "not quantized"): 2000,
    }
    told = [text.get_text().strip() for text in picture.axes[0].texts]
    assert told == ["6.80 kB, 3.40 bits per weight", "2.00 kB, 16.00 bits per weight"]
    within(picture)


MEMORY = [
    {"place": "device", "part": "all but the experts", "bytes": 3.8e9},
    {"place": "device", "part": "slots", "bytes": 10.5e9},
    {"place": "device", "part": "spares", "bytes": 0.1e9},
    {"place": "host", "part": "experts", "bytes": 17.1e9},
]


def test_memory_is_what_lies_where_beside_what_there_is():
    picture = plots.memory(MEMORY, {"device": 15e9, "host": 12e9, "disk": 100e9})
    shown = {place: nbytes for place, nbytes in bars(picture).items() if nbytes}
    assert shown == {
        ("device", "all but the experts"): 3.8,
        ("device", "slots"): pytest.approx(10.5),
        ("device", "spares"): pytest.approx(0.1),
        ("host memory", "experts"): pytest.approx(17.1),
    }
    (axes,) = picture.axes
    limits = [line.get_segments()[0].tolist() for line in axes.collections]
    assert [(x, (low + high) / 2) for (x, low), (_, high) in limits] == [(15, 0), (12, 1)]
    told = [text.get_text() for text in axes.texts]
    assert told == ["14.40 GB of 15.00", "17.10 GB of 12.00"]
    assert picture.get_suptitle() == "There is not enough host memory"
    title = plots.memory(MEMORY).get_suptitle()
    assert title == "Where the bytes are: 46% on the device, 54% in host memory"
    within(picture)


# ---------------------------------------------------------------------- how they look
def all_pictures(report):
    yield plots.memory(MEMORY, {"host": 12e9})
    yield plots.errors(with_dense(error_frame(8, 8), 8))
    yield plots.pareto(quality_rows())
    yield plots.bits(report)
    yield plots.levels([{"name": "a", "weights": [0, 1, 2], "group": [1.0], "levels": [0, 2]}])


def test_a_picture_is_opaque_of_githubs_width_and_small(report):
    for picture in all_pictures(report):
        data, size = picture._repr_png_()
        pixels = image.imread(io.BytesIO(data))
        height, width, _ = pixels.shape
        assert (width, height) == (2 * size["width"], 2 * size["height"]) and size["width"] == 800
        assert (pixels[..., 3:] == 1).all() and (pixels[[0, -1], [0, -1], :3] == 1).all()
        assert len(data) < 300_000
        within(picture)


def test_a_users_style_changes_nothing_and_stays(report):
    for draw in (lambda: plots.pareto(quality_rows()), lambda: plots.bits(report)):
        plain = draw().png()
        with matplotlib.style.context("dark_background"):
            before = dict(matplotlib.rcParams)
            picture = draw()
            assert dict(matplotlib.rcParams) == before
        assert picture.png() == plain


def test_colours_stand_out_on_white_and_on_dark():
    for colour in (colours.GREEN, colours.ORANGE, colours.PINK):
        assert colours.contrast(colour, "#ffffff") >= 3 and colours.contrast(colour, DARK) >= 3
    assert (
        colours.contrast(colours.INK, "#ffffff") > 7
        and colours.contrast(colours.DIM, "#ffffff") > 4.5
    )
    assert len(set(colours.HATCHES.values())) == len(colours.HATCHES)
    assert colours.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert colours.contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # WCAG's own


def test_numbers_stand_out_on_their_cells():
    picture = plots.errors(error_frame(8, 8))
    for axes in picture.axes:
        for text in axes.texts:
            column, row = text.get_position()
            shown = axes.images[0]
            cell = to_hex(shown.cmap(shown.norm(shown.get_array()[int(row), int(column)])))
            assert colours.contrast(to_hex(text.get_color()), cell) >= 4.5


def test_a_notebook_shows_it():
    from IPython.core.formatters import DisplayFormatter

    shown, about = DisplayFormatter().format(plots.errors(error_frame(2, 8)))
    assert shown["image/png"].startswith(b"\x89PNG") and about["image/png"]["width"] == 800


def test_bad_tables_are_one_sentence():
    for draw in (plots.errors, plots.pareto, plots.levels, plots.bits):
        with pytest.raises(MoEColabError, match="no rows"):
            draw([])
        with pytest.raises(MoEColabError, match=r"no column .*it has other"):
            draw([{"other": 1}])
    with pytest.raises(MoEColabError, match="nothing in this table was quantized"):
        plots.errors(error_frame(2, 8).assign(relative_error=math.nan))

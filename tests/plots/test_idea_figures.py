"""The drawing of one layer, and what models need beside what a machine has, read back."""

from __future__ import annotations

import re

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch

from moe_colab import MoEColabError, plots
from moe_colab.plots import colours

pytestmark = pytest.mark.colab
GB = 10**9


# ---------------------------------------------------------------------- block
def shelves(picture) -> dict[int, tuple[str, str]]:
    """{expert: (its place, the colour of its box)}"""
    (axes,) = picture.axes
    found = {}
    for patch in axes.patches:
        if match := re.fullmatch(r"(GPU|RAM|disk) (\d+)", patch.get_gid() or ""):
            assert int(match[2]) not in found
            found[int(match[2])] = match[1], to_hex(patch.get_facecolor()).upper()
    return found


def texts(picture) -> list[str]:
    (axes,) = picture.axes
    return [text.get_text() for text in axes.texts]


def copies(picture) -> int:
    """The arrows in the colour of a miss."""
    arrows = [patch for patch in picture.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    return sum(to_hex(arrow.get_edgecolor()).upper() == colours.ORANGE for arrow in arrows)


def within(picture) -> None:
    """No text is cut, and none overlaps another one."""
    picture.draw_without_rendering()
    boxes = [text.get_window_extent() for text in picture.axes[0].texts]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= picture.bbox.width
        assert box.y0 >= 0 and box.y1 <= picture.bbox.height
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_the_two_largest_probabilities_are_chosen_and_weighted():
    picture = plots.block([0.1, 0.05, 0.4, 0.05, 0.05, 0.2, 0.1, 0.05], slots=(0, 2), ram=(1, 5))
    shown = shelves(picture)
    assert shown[2] == ("GPU", colours.GREEN) and shown[5] == ("RAM", colours.ORANGE)
    assert {place for expert, (place, _) in shown.items() if expert in (3, 4, 6, 7)} == {"disk"}
    assert all(colour == "#FFFFFF" for expert, (_, colour) in shown.items() if expert not in (2, 5))
    assert "0.67 × E2 + 0.33 × E5" in texts(picture)
    assert "2 of 8 experts, and 1 of them" in picture.get_suptitle() and copies(picture) == 1
    within(picture)


@pytest.mark.parametrize(
    ("slots", "ram", "misses"),
    [((3, 5), (), 0), ((3, 1), (5,), 1), ((0, 1), (3, 5, 2, 4), 2), ((0, 1), (2, 4, 6, 7), 2)],
)
def test_an_expert_without_a_slot_is_copied(slots, ram, misses):
    picture = plots.block(slots=slots, ram=ram)  # 3 and 5 are the largest of the example
    assert copies(picture) == misses == sum("miss" in text for text in texts(picture))
    assert sum("hit" in text for text in texts(picture)) == 2 - misses
    assert "copied into a slot" in texts(picture) or not misses
    within(picture)


@pytest.mark.parametrize("count", [2, 8, 16])
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_drawing_has_room_for_other_routers(count, top_k):
    picture = plots.block([1 / count] * count, (0,), (1,), top_k=top_k, word="\n$x$")
    assert len(shelves(picture)) == count
    within(picture)


@pytest.mark.parametrize(
    "settings",
    [{"probabilities": [1.0]}, {"slots": (8,)}, {"ram": (1,)}, {"top_k": 9}, {"slots": (0, 0)}],
)
def test_numbers_that_cannot_be_are_one_sentence(settings):
    with pytest.raises(MoEColabError) as error:
        plots.block(**settings)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- needs
def table(free: int, total: int) -> list[dict]:
    parts = {"used by every token": 3, "experts of one token": 23, "all other experts": 67}
    rows = [
        {"name": "large", "kind": "model", "part": p, "bytes": n * GB} for p, n in parts.items()
    ]
    memory = {"free": free, "in use": total - free}
    rows += [
        {"name": "RAM", "kind": "memory", "part": p, "bytes": n * GB} for p, n in memory.items()
    ]
    return rows


def lengths(picture) -> dict[tuple[float, str], float]:
    """{(place from the top, part): length}"""
    (axes,) = picture.axes
    return {
        (round(bar.get_y() + bar.get_height() / 2, 3), group.get_label()): bar.get_width()
        for group in axes.containers
        for bar in group
    }


def test_bars_are_as_long_as_their_bytes():
    picture = plots.needs(table(free=5, total=8))
    assert lengths(picture) == {
        (0, "used by every token"): pytest.approx(3),
        (0, "experts of one token"): pytest.approx(23),
        (0, "all other experts"): pytest.approx(67),
        (1, "free"): pytest.approx(5),
        (1, "in use"): pytest.approx(3),
    }
    assert texts(picture) == ["93.0 GB; a token uses 26.0 GB", "5.0 GB free of 8.0 GB"]
    assert picture.get_suptitle() == "large does not fit: it needs 93.0 GB, and 5.0 GB are free"
    within(picture)


def test_a_large_memory_is_cut_but_not_its_number():
    picture = plots.needs(table(free=400, total=512))
    assert sum(length for (place, _), length in lengths(picture).items() if place == 1) < 93 * 1.3
    assert texts(picture)[1] == "… 400.0 GB free of 512.0 GB"
    assert picture.get_suptitle() == "large fits into the 400.0 GB that are free here"
    within(picture)


def test_bad_tables_are_one_sentence():
    for rows in ([], [{"name": "x"}]):
        with pytest.raises(MoEColabError, match="table of needs"):
            plots.needs(rows)

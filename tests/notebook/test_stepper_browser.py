"""The stepper in Chromium: what is drawn is what was computed elsewhere; hands, keys and play."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from browser import plain_page, write_notebook

import moe_colab as mc
from moe_colab.plots.colours import contrast

pytestmark = pytest.mark.browser
PROSE = mc.Trace.load().only("prose")
TEXT = "Old Tabitha Crewe kept the ferry"
ARRIVES, LOGITS, PROBABILITIES, TOP_K, SLOTS, GOES, COPY, GUESS, OUTPUTS = range(9)
HOSTILE = [
    "</script><script>window.harmed = 1</script>",
    '"><img src=x onerror="window.harmed=1">',
    "'`${1}\\\u2028\x00",
    "👩‍👩‍👧 مرحبا שלום",
    "\u202eright to left",
    "x" * 10_000,
    "a\ud83db",
    "\n",
]


class Steps:
    """One view on a page."""

    def __init__(self, page):
        self.page = page
        self.panel = page.locator("[role=tabpanel]")
        self.token, self.layer = page.locator("input[type=range]").all()

    def go(self, token: int, layer: int, step: int):
        for slider, value in ((self.token, token), (self.layer, layer)):
            slider.fill(str(value))
        self.page.locator("[role=tab]").nth(step).click()
        return self.panel

    @property
    def now(self) -> tuple[int, int, int]:
        told = self.panel.evaluate("panel => ({...panel.dataset})")
        shown = self.page.locator("[role=tab][aria-selected=true] b").inner_text()
        assert int(shown) == int(told["step"]) + 1 and self.token.input_value() == told["token"]
        return int(told["token"]), int(told["layer"]), int(told["step"])

    def column(self, css: str) -> list[str]:
        return self.panel.locator(css).all_inner_texts()

    def rows(self) -> list[list[str]]:
        """Of every table of the panel."""
        code = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
        return self.panel.locator("tbody tr").evaluate_all(code)

    def widths(self, css: str) -> list[float]:
        code = "bars => bars.map(bar => bar.getBoundingClientRect().width)"
        return self.panel.locator(css).evaluate_all(code)


@pytest.fixture
def opened(chromium):
    """Steps of a view on a page of its own; the page has stayed quiet."""
    left = []

    def show(view, **look) -> Steps:
        shown = plain_page(chromium, view.document, **look)
        watched = shown.__enter__()
        left.append((shown, watched))
        return Steps(watched.page)

    yield show
    for shown, watched in left:
        watched.check_quiet()
        shown.__exit__(None, None, None)


@pytest.fixture(scope="module")
def heard():
    model, tokenizer = mc.load(slots=3, speculate=2, progress=False)
    with model.offload:
        return mc.stepper(model, tokenizer, TEXT, more=2)


number = partial(re.sub, r"[^\d.e+-]", "")


# ---------------------------------------------------------------------- what is drawn
def test_the_routers_numbers_and_bars(opened):
    steps = opened(mc.stepper(PROSE, tokens=12))
    for token, layer in ((32, 0), (40, 7)):
        logits = PROSE.logits[token, layer].astype(float)
        shares = np.exp(logits) / np.exp(logits).sum()
        steps.go(token, layer, LOGITS)
        drawn = [float(text) for text in steps.column(".number")]
        assert drawn == pytest.approx(logits.tolist(), abs=6e-4)
        widths = np.array(steps.widths(".track i"))
        assert widths / widths.max() == pytest.approx(abs(logits) / abs(logits).max(), abs=0.02)
        steps.go(token, layer, PROBABILITIES)
        drawn = [float(number(text)) for text in steps.column(".number")]
        assert drawn == pytest.approx((100 * shares).tolist(), abs=0.06)
        widths = np.array(steps.widths(".track i"))
        assert widths / widths.max() == pytest.approx(shares / shares.max(), abs=0.02)
        assert steps.panel.locator("u").count() == 8  # where all are alike
        chosen = np.argsort(-logits, kind="stable")[:2].tolist()
        steps.go(token, layer, TOP_K)
        assert [int(row[0]) for row in steps.rows()] == chosen
        assert len(steps.rows()[0]) == 3 and "A trace has no weights" in steps.panel.inner_text()


def played(policy: str, slots: int, layer: int, steps: int) -> list[set]:
    """Who lies in the slots before each step, by mc.tables, which is no part of the stepper."""
    table = mc.tables.residency(PROSE, layer, policy, slots)
    after = table[table["state"] != "passing"].groupby("step")["expert"].agg(set)
    return [set(), *(after.get(step, set()) for step in range(steps))]


@pytest.mark.parametrize(("policy", "slots"), [("lru", 4), ("lru", 2), ("lfu", 5), ("optimal", 3)])
def test_slots_and_who_goes(opened, policy, slots):
    steps, went = opened(mc.stepper(PROSE, policy=policy, slots=slots, tokens=20)), 0
    for layer in (1, 6):
        before = played(policy, slots, layer, 22)
        for token in range(33, 45, 2):
            step = token - 31
            needed = set(PROSE.routing[token, layer].tolist())
            steps.go(token, layer, SLOTS)
            cells = steps.column(".cells li")
            there = {i for i, cell in enumerate(cells) if "in a slot" in cell}
            assert there == before[step] and len(cells) == 8
            solid = "cells => cells.map(cell => getComputedStyle(cell).borderStyle)"
            borders = steps.panel.locator(".cells li").evaluate_all(solid)
            assert {i for i, style in enumerate(borders) if style == "solid"} == there
            marked = {i for i, cell in enumerate(cells) if re.search("hit|late|miss", cell)}
            hits = {i for i, cell in enumerate(cells) if re.search(r"●\s*hit", cell)}
            assert marked == needed and hits == needed & there
            steps.go(token, layer, GOES)
            gone = [int(row[0]) for row in steps.rows() if row[-1] == "✕ evicted"]
            came = needed - there
            assert set(gone) >= (before[step] - before[step + 1]) and len(gone) <= len(came)
            if policy == "optimal":  # needed last
                for table in steps.panel.locator("table").all():
                    uses = table.locator("td:nth-child(2)").all_inner_texts()
                    known = [float("inf") if use == "never" else int(use) for use in uses]
                    assert known == sorted(known, reverse=True)
            went += len(gone)
    assert went > 4


def test_other_experts_make_another_drawing(opened):
    """Experts with other numbers: the same bars and cells in another order."""
    new = np.array([3, 5, 0, 7, 1, 2, 6, 4])  # what expert i is called now
    old = np.argsort(new)
    renamed = replace(
        PROSE,
        logits=PROSE.logits[..., old],
        routing=new[PROSE.routing].astype(np.int16),
        accesses=PROSE.accesses[:0],
    )
    drawn = []
    for trace in (replace(PROSE, accesses=PROSE.accesses[:0]), renamed):
        steps = opened(mc.stepper(trace, policy="fifo", slots=8, tokens=4))
        steps.go(34, 2, PROBABILITIES)
        bars = steps.column(".number")
        steps.go(34, 2, SLOTS)
        drawn.append((bars, [cell[1:] for cell in steps.column(".cells li")]))
    (bars, cells), (bars_now, cells_now) = drawn
    assert [bars[i] for i in old] == bars_now != bars
    assert [cells[i] for i in old] == cells_now != cells


def test_copies_and_waits(opened):
    steps = opened(mc.stepper(PROSE, tokens=30, link="1GB/s"))
    frame = PROSE.frame()
    for token, layer in ((33, 1), (36, 3), (41, 5)):
        steps.go(token, layer, COPY)
        own = frame[(frame["step"] == token - 31) & (frame["layer"] == layer)]
        for row, truth in zip(steps.rows(), own.itertuples(), strict=True):
            assert int(row[0]) == truth.expert and truth.outcome.replace("_", " ") in row[1]
            there = truth.outcome == "hit"
            assert row[2] == ("nothing" if there else "294.9 kB")
            took = 0 if there else 1e3 * PROSE.expert_bytes[layer] / 1e9
            assert float(number(row[3])) == pytest.approx(took, abs=1e-3)
            assert float(number(row[4])) == pytest.approx(1e3 * truth.seconds, abs=1e-3)


def test_guesses_that_came_true_and_others(opened):
    steps = opened(mc.stepper(PROSE, tokens=20))
    frame, told = PROSE.guess_frame(), set()
    frame = frame[(frame["source"] == "router_input") & (frame["layer"] == frame["at"] + 1)]
    for token, layer in ((33, 0), (40, 4), (45, 6)):
        steps.go(token, layer, GUESS)
        own = frame[(frame["step"] == token - 31) & (frame["at"] == layer)].sort_values("place")
        drawn = [(int(e), float(number(p)), says) for e, p, says in steps.rows()]
        assert [row[0] for row in drawn] == own["expert"].tolist()
        assert [row[1] for row in drawn] == pytest.approx(
            (100 * own["probability"]).tolist(), abs=0.1
        )
        assert [row[2] for row in drawn] == ["✓ right" if r else "✗ wrong" for r in own["right"]]
        told |= {row[2] for row in drawn}
        asked = sorted(PROSE.routing[token, layer + 1].tolist())
        assert f"experts {asked[0]}, {asked[1]}" in steps.panel.inner_text()
    assert len(told) == 2
    assert "last MoE layer" in steps.go(40, 7, GUESS).inner_text()
    assert "has no outputs of experts" in steps.go(40, 7, OUTPUTS).inner_text()


def test_the_models_own_vectors(opened, heard):
    steps = opened(heard)
    for token, layer in ((2, 0), (6, 5)):
        computed = heard.at(token, layer).computed
        steps.go(token, layer, ARRIVES)
        assert float(steps.column(".norm")[0]) == pytest.approx(
            np.linalg.norm(computed.input), rel=1e-3
        )
        drawn = [float(text) for text in steps.column(".vector .signed")]
        assert drawn == pytest.approx(computed.input[:16].tolist(), abs=6e-3, rel=1e-3)
        steps.go(token, layer, OUTPUTS)
        rows = steps.rows()
        weights = [float(number(text)) for text in rows[0][1:3]]
        assert weights == pytest.approx(computed.weights.tolist(), abs=6e-4)
        norms = np.linalg.norm([*computed.outputs, computed.total], axis=1)
        assert [float(text) for text in rows[1][1:]] == pytest.approx(norms.tolist(), rel=1e-3)
        drawn = np.array([[float(text) for text in row[1:]] for row in rows[2:]])
        assert drawn.shape == (16, 3)
        expected = np.stack([*computed.outputs, computed.total], axis=1)[:16]
        assert drawn == pytest.approx(expected, abs=6e-4)
        assert (drawn[:, :2] * weights).sum(1) == pytest.approx(drawn[:, 2], abs=4e-3)
        lengths = np.array(steps.widths("tbody .signed i")).reshape(16, 3)
        assert lengths / lengths.max() == pytest.approx(
            abs(expected) / abs(expected).max(), abs=0.04
        )
        sides = """bars => bars.map(bar => { const box = bar.parentElement.getBoundingClientRect(),
            {left, right} = bar.getBoundingClientRect();
            return Math.sign(left + right - box.left - box.right); })"""
        signs = steps.panel.locator("tbody .signed i").evaluate_all(sides)
        clear = abs(expected).ravel() > 0.01 * abs(expected).max()
        assert (np.array(signs) == np.sign(expected).ravel())[clear].all()
        steps.go(token, layer, TOP_K)
        assert [float(row[3]) for row in steps.rows()] == pytest.approx(weights)


# ---------------------------------------------------------------------- hands and keys
def test_buttons_walk_through_steps_layers_and_tokens(opened):
    steps = opened(mc.stepper(PROSE, tokens=2))
    back, ahead = (steps.page.get_by_role("button", name=name) for name in ("previous", "next"))
    steps.go(32, 0, 0)
    assert back.is_disabled() and not ahead.is_disabled()
    way = [(t, n, s) for t in (32, 33) for n in range(8) for s in range(9)]
    steps.go(32, 7, 6)  # into the next token, then back into the layer before
    for expected in way[7 * 9 + 7 : 7 * 9 + 20]:
        ahead.click()
        assert steps.now == expected
    for expected in reversed(way[7 * 9 - 2 : 7 * 9 + 19]):
        back.click()
        assert steps.now == expected
    steps.go(33, 7, 7)
    ahead.click()
    assert steps.now == way[-1] and ahead.is_disabled()


def test_keys_and_a_click_on_the_text(opened):
    steps = opened(mc.stepper(PROSE, first=40, tokens=6))
    steps.go(42, 3, 4)
    page, press = steps.page, steps.page.keyboard.press
    text = page.get_by_role("listbox")
    text.focus()
    for key, expected in (
        ("ArrowRight", (43, 3, 4)),
        ("ArrowDown", (43, 4, 4)),
        ("ArrowLeft", (42, 4, 4)),
        ("ArrowUp", (42, 3, 4)),
        ("End", (45, 3, 4)),
        ("ArrowRight", (45, 3, 4)),
        ("Home", (40, 3, 4)),
    ):
        press(key)
        assert steps.now == expected
    page.locator("[role=tab][aria-selected=true]").focus()
    for key, expected in (("ArrowRight", 5), ("End", 8), ("ArrowRight", 8), ("Home", 0)):
        press(key)
        assert steps.now == (40, 3, expected)
        assert page.evaluate("() => document.activeElement.getAttribute('aria-selected')") == "true"
    page.get_by_role("option").nth(4).click()
    assert steps.now == (44, 3, 0)
    steps.layer.focus()
    press("ArrowRight")
    assert steps.now == (44, 4, 0)
    selected = page.get_by_role("option", selected=True)
    assert (
        selected.count() == 1 and selected.inner_text() == steps.panel.locator("bdi").inner_text()
    )
    owner = (
        "strip => document.getElementById(strip.getAttribute('aria-activedescendant')).innerText"
    )
    assert text.evaluate(owner) == selected.inner_text()


def test_everything_is_reached_by_tab_and_has_a_name(opened):
    steps = opened(mc.stepper(PROSE, tokens=5))
    steps.go(33, 1, 4)
    name = """() => {
        const one = document.activeElement, told = one.getAttribute('aria-labelledby');
        const label = told ? document.getElementById(told) : one.labels?.[0] ?? one;
        const name = one.getAttribute('aria-label') || label.innerText;
        return one === document.body ? null : [one.getAttribute('role') || one.type, name];
    }"""
    steps.page.evaluate("() => document.activeElement.blur()")
    steps.page.locator(".title").click()
    found = []
    for _ in range(12):
        steps.page.keyboard.press("Tab")
        if (one := steps.page.evaluate(name)) is None:
            break
        found.append(one)
    assert all(label.strip() for _, label in found)
    kinds = [kind for kind, _ in found]
    assert kinds == ["listbox", "range", "range", "tab", "button", "button", "button", "tabpanel"]


def test_play_goes_on_until_it_is_stopped_or_through(opened):
    view = mc.stepper(PROSE, tokens=1)
    steps = opened(view)
    steps.page.clock.install()
    steps.go(32, 7, 5)
    play = steps.page.get_by_role("button", name="play")
    play.click()
    steps.page.clock.run_for(2000)
    assert steps.now == (32, 7, 6)
    steps.page.get_by_role("button", name="pause").click()
    steps.page.clock.run_for(9000)
    assert steps.now == (32, 7, 6)
    play.click()
    steps.page.clock.run_for(9000)
    assert steps.now == (32, 7, 8) and play.is_visible()


# ---------------------------------------------------------------------- looks
def test_hostile_tokens_harm_nothing(opened):
    ids = PROSE.tokens.copy()
    ids[32 : 32 + len(HOSTILE)] = range(len(HOSTILE))
    hostile = replace(PROSE, tokens=ids, texts=dict(enumerate(HOSTILE)))
    steps = opened(mc.stepper(hostile, tokens=len(HOSTILE)), viewport=(800, 700))
    assert steps.page.evaluate("() => window.harmed") is None
    words = steps.page.get_by_role("option").evaluate_all("all => all.map(one => one.textContent)")
    for number, text in enumerate(HOSTILE):
        known = text.encode("utf-8", "replace").decode().replace("\n", "⏎")
        known = known if len(known) <= 40 else known[:39] + "…"
        steps.go(32 + number, 0, ARRIVES)
        assert words[number] == known
        assert steps.panel.locator("bdi").evaluate("bdi => bdi.textContent") == known
    assert steps.page.locator("img").count() == 0
    assert steps.page.evaluate("() => document.documentElement.scrollWidth") <= 800


MARKS = ".track i, .track u, .signed i, .sign b, .goes b, .right b, .wrong b, .cells li"
COLOURS = f"""panel => [...panel.querySelectorAll('{MARKS}')].map(one => {{
    const look = getComputedStyle(one);
    if (one.tagName === 'LI' || one.tagName === 'U') return look.borderLeftColor;
    return one.tagName === 'I' ? look.backgroundColor : look.color;
}})"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_stand_out_and_nothing_is_told_by_colour_alone(opened, heard, theme):
    steps, colours = opened(heard, theme=theme, viewport=(1400, 900)), set()
    for token in (2, 3, 5):
        for step in range(9):
            colours |= set(steps.go(token, 1, step).evaluate(COLOURS))
    assert len(colours) >= 4
    shown = steps.page.locator(".moe-view").evaluate("one => getComputedStyle(one).backgroundColor")
    pages = [in_hex(shown), "#ffffff" if theme == "light" else "#383838"]
    for colour in colours:
        for page in pages:
            assert contrast(in_hex(colour), page) >= 3, (colour, page)
    assert (contrast(pages[0], "#000000") < 3) == (theme == "dark")
    steps.go(2, 1, SLOTS)
    for sign in steps.column(".sign"):
        assert re.fullmatch(r"[●▲◆✕]\s*(hit|speculative\s+hit|late|miss)", sign)


def in_hex(colour: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


@pytest.mark.parametrize("width", [420, 800, 1400])
def test_it_fits_its_page(opened, heard, width):
    for view in (heard, mc.stepper(replace_experts(PROSE, 128), slots=16, tokens=4)):
        steps = opened(view, viewport=(width, 800))
        for step in range(9):
            steps.go(view.token_steps.first, 1, step)
            assert steps.page.evaluate("() => document.documentElement.scrollWidth") <= width


def replace_experts(trace, count: int):
    pad = ((0, 0), (0, 0), (0, count - 8))
    logits = np.pad(trace.logits, pad, constant_values=-9)
    return replace(trace, logits=logits, experts=(count,) * 8)


def test_it_shows_itself_in_jupyterlab(lab, tmp_path):
    """Run twice, in the light and in the dark, beside its picture."""
    cell = "import moe_colab as mc\nmc.stepper(tokens=6)"
    path = write_notebook(tmp_path / "steps.ipynb", [cell, cell.replace("6", "4")])
    with lab.open(path) as notebook:
        notebook.run_all()
        notebook.run_cell(0)
        for theme, ground in (("dark", "#1f2124"), ("light", "#ffffff")):
            notebook.set_theme(theme)
            assert notebook.page.locator(".moe-view").count() == 2
            first = notebook.page.locator(".moe-view").first
            look = first.evaluate("one => getComputedStyle(one).backgroundColor")
            assert in_hex(look) == ground
            place = first.locator("[role=tabpanel]")
            before = place.evaluate("panel => panel.dataset.step")
            first.get_by_role("button", name="next").click()
            assert int(place.evaluate("panel => panel.dataset.step")) == int(before) + 1
            first.get_by_role("listbox").press("ArrowRight")
            first.get_by_label("layer", exact=True).fill("2")
            first.get_by_label("layer", exact=True).press("ArrowRight")
            assert "layer 3" in first.inner_text()
            first.get_by_role("button", name="play").click()
            notebook.page.wait_for_function(
                "step => document.querySelector('.moe-view [role=tabpanel]').dataset.step > step",
                arg=place.evaluate("panel => panel.dataset.step"),
            )
            first.get_by_role("button", name="pause").click()
            second = notebook.page.locator(".moe-view [role=tabpanel]").nth(1)
            assert second.evaluate("panel => panel.dataset.step") == "0"  # nothing is shared
        assert notebook.page.locator(".jp-OutputArea img:visible").count() == 0
        data = [output.get("data", {}) for output in notebook.outputs()[0]]
        assert any("image/png" in one for one in data) and any("text/html" in one for one in data)
        notebook.check_quiet()

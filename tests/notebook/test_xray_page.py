"""The x-ray on its page: what is drawn is what was recorded, or what mc.replay counts; whatever the
tokens are, and by mouse or keys alike."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from itertools import pairwise

import numpy as np
import pytest
from browser import plain_page, write_notebook

import moe_colab as mc
from moe_colab.analysis import tables
from moe_colab.notebook.views import xray
from moe_colab.notebook.views.view import LIMIT, View
from moe_colab.plots.colours import contrast
from moe_colab.trace import Trace
from moe_colab.trace.outcomes import SIGNS

STATES = ["", "idle", "hit", "", "", "miss", "passing"]  # of replay.js, as mc.tables calls them
PROSE = Trace.load().only("prose")


# ---------------------------------------------------------------------- the page
STATE = """() => {
    const {pinned, hovered, current, layer, shown, policy, slots, numbers, drawn, costs} =
        document.querySelector(".moe-view").view;
    const experts = drawn.experts.map(({layer, expert, state}) => [layer, expert, state]);
    return {pinned, hovered, current, layer, shown, policy, slots, numbers, costs, experts,
        grid: drawn.grid};
}"""
COLOUR_AT = """([css, x, y]) => {
    const canvas = document.querySelector(css + " canvas"), sharp = window.devicePixelRatio;
    const point = canvas.getContext("2d").getImageData(x * sharp, y * sharp, 1, 1).data;
    return "#" + [...point.slice(0, 3)].map(part => part.toString(16).padStart(2, "0")).join("");
}"""
TABLE = """() => Object.fromEntries([...document.querySelectorAll("tbody tr")].map(
    row => [row.dataset.row, [...row.querySelectorAll("td")].map(cell => cell.textContent)]))"""
SHOWN_STATES = ["", "idle", "hit", "speculative_hit", "late", "miss", "miss"]  # both are misses


@pytest.fixture(scope="module")
def prose() -> View:
    return mc.xray(PROSE, tokens=120)


def state_of(page) -> dict:
    return page.evaluate(STATE)


def choose(page, policy: str, slots: int) -> None:
    """As by hand; a slider is moved by its keys."""
    page.get_by_label("Policy").select_option(policy)
    page.get_by_label("Slots per layer").fill(str(slots))


def numbered():
    """The trace's own table, and the number of each row's token."""
    frame, past = PROSE.frame(), PROSE.forwards["past"]
    frame["number"] = PROSE.bounds[frame["step"]] + frame["position"] - past[frame["step"]]
    return frame


def drawn_choices(state: dict) -> dict:
    """(token, layer): [(expert, outcome, first)] of the cells that can be seen."""
    return {
        (cell["token"], cell["layer"]): [
            (one["expert"], SHOWN_STATES[one["state"]], one["first"]) for one in cell["chosen"]
        ]
        for cell in state["grid"]
    }


@pytest.mark.browser
def test_the_grid_and_the_experts_are_what_was_recorded(prose, chromium):
    with plain_page(chromium, prose.document) as watched:
        state = state_of(watched.page)
        assert state["shown"] == "recorded" and state["pinned"] == 32
        frame = numbered()
        truth: dict = {}
        for row in frame.sort_values("rank").itertuples():
            told = row.expert, row.outcome, row.first
            truth.setdefault((row.number, row.layer), []).append(told)
        found = drawn_choices(state)
        assert len(found) > 8 * 20 and {layer for _, layer in found} == set(range(8))
        assert all(truth[place] == chosen for place, chosen in found.items())
        experts = {(layer, e): s for layer, e, s in state["experts"]}
        own = frame[frame["number"] == 32]
        wanted = {(row.layer, row.expert): row.outcome for row in own.itertuples()}
        assert {key: SHOWN_STATES[s] for key, s in experts.items() if s} == wanted
        paid = frame[frame["first"]].groupby("number")
        for number, rows in paid:
            if number < 120:
                cost = state["costs"][number]
                assert cost["bytes"] == rows["bytes"].sum()
                for name, count in rows["outcome"].value_counts().items():
                    assert cost[name] == count
        check_pixels(watched.page, state)
        watched.check_quiet()


def check_pixels(page, state: dict) -> None:
    """What stands on the canvas where a miss and a hit were laid out."""
    for name in ("miss", "hit"):
        cell = next(
            c for c in state["grid"]
            if SHOWN_STATES[c["chosen"][0]["state"]] == name and c["chosen"][0]["first"]
            and c["x"] > 40 and c["token"] != state["current"]
        )  # fmt: skip
        x, y = cell["x"] + 15 + 10, cell["y"] + 1 + 7.5  # as xray_draw.js has it, one figure wide
        assert page.evaluate(COLOUR_AT, [".grid", x, y]) == SIGNS[name].colour.lower()


@pytest.mark.browser
def test_controls_show_what_a_replay_counts(prose, chromium):
    """Numbers, cells and experts for several settings; the bound and the recording beside them."""
    part = PROSE.between(0, 89)
    assert len(part.tokens) == 120
    with plain_page(chromium, prose.document) as watched:
        page, seen = watched.page, []
        recorded_line = page.evaluate(TABLE)["recorded"]
        misses = int((part.accesses["outcome"] == 3).sum())
        assert recorded_line[2] == f"{misses:,} + guesses"
        assert page.evaluate(TABLE)["replayed"] == numbers_of(mc.replay(part, "lru", 4))
        for policy, slots in [("lru", 4), ("lru", 5), ("lfu", 5), ("fifo", 3), ("none", 3)]:
            choose(page, policy, slots)
            state = state_of(page)
            assert (state["shown"], state["policy"], state["slots"]) == ("replayed", policy, slots)
            table = page.evaluate(TABLE)
            told = mc.replay(part, policy, slots)
            assert table["replayed"] == numbers_of(told)
            assert table["bound"] == numbers_of(mc.replay(part, "optimal", slots))
            assert table["recorded"] == recorded_line
            assert sum(cost["miss"] for cost in state["costs"]) == told.misses
            assert sum(cost["hit"] for cost in state["costs"]) == told.hits
            assert sum(cost["bytes"] for cost in state["costs"]) == told.bytes_loaded
            assert {(layer, e): s for layer, e, s in state["experts"] if s} == states_at(
                part, policy, slots, 1
            )
            seen.append((drawn_choices(state), state["experts"]))
        for one, other in pairwise(seen):
            assert one != other
        page.get_by_label("Show").select_option("recorded")
        assert state_of(page)["shown"] == "recorded"
        watched.check_quiet()


def numbers_of(replay) -> list[str]:
    rates = [f"{100 * book.hit_rate:.1f} %" for book in (replay.decode, replay.prompt)]
    nbytes = replay.bytes_loaded
    unit, size = ("GB", 1e9) if nbytes >= 1e9 else ("MB", 1e6) if nbytes >= 1e6 else ("kB", 1e3)
    figures = 2 if nbytes / size < 10 else 1
    return [*rates, f"{replay.loads:,}", f"{nbytes / size:.{figures}f} {unit}"]


def states_at(trace: Trace, policy: str, slots: int, step: int) -> dict:
    out = {}
    for layer in range(trace.layers):
        table = tables.residency(trace, layer, policy, slots)
        for row in table[table["step"] == step].itertuples():
            out[layer, row.expert] = STATES.index(row.state)
    return out


@pytest.mark.browser
def test_renamed_experts_are_drawn_in_their_new_places(chromium):
    new = np.array([3, 1, 0, 2, 7, 6, 5, 4], np.int16)
    accesses = PROSE.accesses.copy()
    accesses["expert"] = new[accesses["expert"]]
    logits = np.empty_like(PROSE.logits)
    logits[..., new] = PROSE.logits
    other = replace(PROSE, routing=new[PROSE.routing], accesses=accesses, logits=logits)
    found = []
    for trace in (PROSE, other):
        with plain_page(chromium, mc.xray(trace, tokens=60).document) as watched:
            found.append(state_of(watched.page))
    one, two = found
    moved = {(layer, int(new[expert])): state for layer, expert, state in one["experts"]}
    assert moved == {(layer, expert): state for layer, expert, state in two["experts"]}
    assert one["experts"] != two["experts"]
    two = drawn_choices(two)
    for place, chosen in drawn_choices(one).items():
        assert two[place] == [(int(new[expert]), *rest) for expert, *rest in chosen]


@pytest.mark.browser
def test_mouse_and_keys_walk_the_text(prose, chromium):
    with plain_page(chromium, prose.document) as watched:
        page = watched.page
        token = page.locator(".token")
        assert token.count() == 120 and token.nth(32).get_attribute("aria-selected") == "true"
        token.nth(40).hover()
        state = state_of(page)
        assert (state["current"], state["pinned"]) == (40, 32)
        assert "token 40" in page.locator(".readout").inner_text()
        page.mouse.move(2, 2)
        assert state_of(page)["current"] == 32  # it was not pinned
        token.nth(40).click()
        page.mouse.move(2, 2)
        assert state_of(page)["current"] == 40
        for key, wanted in [
            *(("ArrowRight", 41), ("ArrowRight", 42), ("ArrowLeft", 41), ("End", 119)),
            *(("ArrowRight", 119), ("Home", 0), ("ArrowLeft", 0), ("PageDown", 10)),
        ]:
            page.keyboard.press(key)
            assert state_of(page)["pinned"] == wanted
            assert page.evaluate("() => document.activeElement.dataset.token") == str(wanted)
        assert page.locator(".token[tabindex='0']").count() == 1  # one stop for the tab key
        for key, wanted in [("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1)]:
            page.keyboard.press(key)
            assert state_of(page)["layer"] == wanted
        assert page.locator(".readout").inner_text().count("layer 1: expert") == 1
        token.nth(20).hover()
        page.keyboard.press("Enter")
        page.mouse.move(2, 2)
        assert state_of(page)["current"] == 20
        for word in ("Show", "Policy", "Slots per layer", "Token"):
            assert page.get_by_label(word, exact=True).count() == 1
        assert page.evaluate("() => scrollY") == 0
        watched.check_quiet()


@pytest.mark.browser
def test_the_pictures_are_walked_and_pointed_at(prose, chromium):
    with plain_page(chromium, prose.document) as watched:
        page = watched.page
        grid, states = page.locator(".grid canvas"), page.locator(".states canvas")
        cell = next(c for c in state_of(page)["grid"] if c["layer"] == 5 and c["x"] > 200)
        place = {"x": cell["x"] + 5, "y": cell["y"] + 5}
        grid.hover(position=place)
        state = state_of(page)
        assert (state["current"], state["layer"], state["pinned"]) == (cell["token"], 5, 32)
        grid.click(position=place)
        assert state_of(page)["pinned"] == cell["token"]
        grid.focus()
        page.keyboard.press("End")
        state = state_of(page)
        assert state["pinned"] == 119
        assert 119 in {c["token"] for c in state["grid"]}  # it was scrolled to
        page.keyboard.press("Home")
        assert 0 in {c["token"] for c in state_of(page)["grid"]}
        choose(page, "lru", 4)
        page.get_by_label("Token", exact=True).fill("50")
        box = page.evaluate("() => document.querySelector('.moe-view').view.drawn.experts")
        idle = next(c for c in box if c["state"] == 1)
        states.hover(position={"x": idle["x"] + 8, "y": idle["y"] + 8})
        wanted = f"layer {idle['layer']}, expert {idle['expert']}: has a slot, idle"
        assert page.get_by_text(wanted).count() == 1
        states.focus()
        page.keyboard.press("ArrowRight")
        assert state_of(page)["pinned"] == 51
        watched.check_quiet()


@pytest.mark.browser
def test_scrubbed_and_played(prose, chromium):
    with plain_page(chromium, prose.document) as watched:
        page = watched.page
        page.get_by_label("Token", exact=True).fill("115")
        assert state_of(page)["pinned"] == 115
        page.get_by_role("button", name="play").click()
        assert page.get_by_role("button", name="pause").count() == 1
        assert page.locator(".readout").get_attribute("aria-live") == "polite"
        page.wait_for_function("() => document.querySelector('.moe-view').view.pinned === 119")
        assert page.locator(".readout").get_attribute("aria-live") == "off"  # too quick to be read
        page.get_by_role("button", name="play").wait_for()  # it has stopped at the end
        assert page.get_by_label("Token", exact=True).input_value() == "119"
        page.get_by_role("button", name="play").click()  # from the beginning
        page.wait_for_function(
            "() => [1, 2].includes(document.querySelector('.moe-view').view.pinned)"
        )
        page.get_by_role("button", name="pause").click()
        stopped = state_of(page)["pinned"]
        page.wait_for_timeout(500)
        assert state_of(page)["pinned"] == stopped < 5
        watched.check_quiet()


HOSTILE = [
    "</script><script>window.harmed = 1</script>", "<img src=x onerror='window.harmed = 1'>",
    "\"'`${window.harmed = 1}\\", "👩‍👩‍👧", "עברית العربية", "\u202e\u2066 turned", "x" * 10_000,
    "\x00\x07\u2028", "a\ud83db", "&lt;b&gt;", "\n\n", "\t", "   ", "",
]  # fmt: skip


@pytest.mark.browser
@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_hostile_token_harms_nothing(theme, chromium):
    tokens = np.arange(len(PROSE.tokens), dtype=np.int32) % len(HOSTILE)
    view = mc.xray(replace(PROSE, tokens=tokens, texts=dict(enumerate(HOSTILE))), tokens=200)
    assert len(view.html.encode()) <= LIMIT and view.picture.png()
    with plain_page(chromium, view.document, (800, 900), theme) as watched:
        page = watched.page
        assert page.locator(".token").count() == 200
        for number, text in enumerate(HOSTILE):
            page.locator(".token").nth(number).click()
            shown = page.locator(".token .word").nth(number).text_content()
            if len(text) < xray.LONGEST and text.strip() and "\ud83d" not in text:
                assert shown == text
            assert len(shown) <= xray.LONGEST and shown
        assert page.evaluate("() => window.harmed") is None
        assert page.evaluate("() => document.body.children.length") == 1
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        watched.check_quiet()


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_stand_out(theme, chromium):
    """Three to one against what they are painted on, in both themes and on Colab's dark page; texts
    4.5 to one, the hottest token's too."""
    sure = mc.xray(replace(PROSE, logits=PROSE.logits * np.float16(3)), tokens=120)
    with plain_page(chromium, sure.document, theme=theme) as watched:
        told = watched.page.evaluate(
            """() => {
            const style = getComputedStyle(document.querySelector(".moe-view"));
            const names = ["bg", "fg", "dim", "focus", "hit", "miss", "speculative"];
            return Object.fromEntries(names.map(
                name => [name, style.getPropertyValue("--" + name).trim()]));
        }"""
        )
        assert (contrast(told["bg"], "#ffffff") < 1.1) == (theme == "light")
        for name in ("hit", "miss", "speculative"):
            for ground in (told["bg"], "#ffffff", "#383838"):
                assert contrast(told[name], ground) >= 3
        assert contrast(told["focus"], told["bg"]) >= 3 and contrast(told["dim"], told["bg"]) >= 4.5
        tinted = mixed(told["miss"], told["bg"], 0.34)
        assert contrast(told["fg"], tinted) >= 4.5
        grounds = shades(watched.page)
        assert len(set(grounds)) > 10  # from what the router hardly chose to what it was sure of
        assert 4.5 <= min(contrast(told["fg"], ground) for ground in grounds) < 9
        heats = watched.page.evaluate(
            "() => [...document.querySelectorAll('.token')].map("
            "piece => parseFloat(piece.style.getPropertyValue('--heat')))"
        )
        assert 0 == min(heats) < max(heats) <= 34
        signs = watched.page.evaluate(
            "() => [...document.querySelectorAll('.legend b')].map(sign => sign.textContent)"
        )
        assert len(set(signs)) == len(signs) == 5


def shades(page) -> list[str]:
    """What the numbers stand on, at a corner beside each."""
    cells = [cell for cell in state_of(page)["grid"] if cell["x"] > 40]
    places = [[".grid", cell["x"] + 4, cell["y"] + 4] for cell in cells]
    return page.evaluate(f"places => places.map({COLOUR_AT})", places)


def mixed(one: str, other: str, share: float) -> str:
    parts = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in parts)


@pytest.mark.browser
def test_a_window_counts_from_the_traces_beginning(chromium):
    """Its slots are those that the tokens before have left; the step is whole of which it shows a
    piece."""
    view = mc.xray(PROSE, first=130, tokens=10)  # in the second text's prompt, of 32 tokens
    part = PROSE.between(0, len(view.data["phases"]))
    assert len(part.tokens) == 160 and part.forwards["length"][-1] == 32
    with plain_page(chromium, view.document) as watched:
        page = watched.page
        choose(page, "fifo", 5)
        assert page.evaluate(TABLE)["replayed"] == numbers_of(mc.replay(part, "fifo", 5))
        page.get_by_label("Token", exact=True).fill("133")
        state = state_of(page)
        assert state["current"] == 3 and "token 133 " in page.locator(".readout").inner_text()
        found = {(layer, e): s for layer, e, s in state["experts"] if s}
        assert found == states_at(part, "fifo", 5, part.steps - 1)
        watched.check_quiet()


@pytest.mark.browser
def test_a_row_of_a_batch_and_what_it_says_of_the_others(chromium):
    """Two rows alike: the first one pays for both, and the table counts what both need."""
    single = PROSE.between(0, 60)
    forwards = single.forwards.copy()
    forwards["rows"] = 2
    twice = np.concatenate([np.tile(np.arange(a, b), 2) for a, b in pairwise(single.bounds)])
    parts = {name: getattr(single, name)[twice] for name in ("tokens", "routing", "logits")}
    batch = replace(single, forwards=forwards, accesses=single.accesses[:0], **parts)
    for row in (0, 1):
        with plain_page(chromium, mc.xray(batch, row=row).document) as watched:
            page = watched.page
            assert f"row {row} of 2" in page.locator(".title").inner_text()
            assert "including tokens that are not shown" in page.locator(".notes").inner_text()
            assert page.evaluate(TABLE)["replayed"] == numbers_of(mc.replay(single, "lru", 4))
            costs = state_of(page)["costs"]
            assert len(costs) == len(single.tokens)
            assert all((cost["shared"] == 16) == (row == 1) for cost in costs[32:])
            watched.check_quiet()


# ---------------------------------------------------------------------- many experts
def route_csv(path, experts: int, layers: int = 6, tokens: int = 24, top_k: int = 4):
    """A trace of another engine: a prompt of 8 tokens, then decoded ones; no texts, no logits."""
    rng = np.random.default_rng(experts)
    lines = [
        "# route_trace v1",
        f"# model=m.gguf n_layer={layers} n_expert={experts} n_expert_used={top_k}",
        *(f"# layer={layer} expert_bytes=1000" for layer in range(layers)),
        "turn,phase,step,layer,slot,expert,weight,resident,expert_bytes",
    ]
    for step in range(tokens):
        for layer in range(layers):
            chosen = rng.choice(experts // 2, top_k, replace=False) * 2
            lines += [
                f"0,{int(step >= 8)},{step},{layer},{slot},{e},0.1,0,{1000 * int(rng.integers(2))}"
                for slot, e in enumerate(chosen)
            ]
    path.write_text("\n".join(lines) + "\n")
    return Trace.from_csv(path)


@pytest.mark.browser
@pytest.mark.parametrize("experts", [64, 128, 512])
def test_many_experts_are_ticks_with_names(experts, tmp_path, chromium):
    trace = route_csv(tmp_path / "t.csv", experts)
    with plain_page(chromium, mc.xray(trace).document, (800, 900)) as watched:
        page = watched.page
        assert "no shade" in page.locator(".notes").inner_text()
        assert "token 8 (decode)" in page.locator(".readout").inner_text()
        choose(page, "lfu", experts // 4)
        page.get_by_label("Token", exact=True).fill("20")
        state = state_of(page)
        found = {(layer, e): s for layer, e, s in state["experts"] if s}
        assert found == states_at(trace, "lfu", experts // 4, 13)
        boxes = page.evaluate("() => document.querySelector('.moe-view').view.drawn.experts")
        width = page.evaluate("() => document.querySelector('.states canvas').clientWidth")
        assert len(boxes) == 6 * experts and max(b["x"] + b["w"] for b in boxes) < width
        assert min(b["w"] for b in boxes) >= 3  # pixels
        used = next(b for b in boxes if b["state"] in (2, 5))
        middle = [used["x"] + used["w"] / 2, used["y"] + 3]
        name = "hit" if used["state"] == 2 else "miss"
        assert page.evaluate(COLOUR_AT, [".states", *middle]) == SIGNS[name].colour.lower()
        position = {"x": middle[0], "y": middle[1]}
        page.locator(".states canvas").hover(position=position)
        wanted = f"layer {used['layer']}, expert {used['expert']}: {name}"
        assert page.get_by_text(wanted).count() == 1
        assert all(len(chosen) == 4 for chosen in drawn_choices(state).values())
        watched.check_quiet()


@pytest.mark.browser
def test_it_works_in_a_sandboxed_frame_of_colab(prose, chromium):
    """As every output of Colab is: no origin, and a theme that stands on the frame's page."""
    inner = prose.document.replace('<html lang="en">', '<html lang="en" theme="dark">')
    frame = f'<iframe sandbox="allow-scripts" width="900" height="900" srcdoc="{escape(inner)}">'
    with plain_page(chromium, f"<!doctype html><title>-</title>{frame}</iframe>") as watched:
        inside = watched.page.frame_locator("iframe")
        inside.locator(".token").nth(50).click()
        watched.page.keyboard.press("ArrowRight")
        assert "token 51" in inside.locator(".readout").inner_text()
        found = watched.page.frames[1].evaluate(COLOUR_AT, [".grid", 1, 1])
        assert found == "#1f2124"
        watched.check_quiet()


# ---------------------------------------------------------------------- in a notebook
CELL = """import moe_colab as mc
mc.xray(mc.Trace.load(), label="prose", tokens=60)"""


def test_two_views_of_a_notebook_leave_each_other_alone(lab, tmp_path):
    """Light and dark; the picture is hidden where the script runs; keys are not taken by the
    notebook; the cell run again has a view of its own."""
    with lab.open(write_notebook(tmp_path / "demo.ipynb", [CELL, CELL])) as notebook:
        page = notebook.page
        outputs = notebook.run_all()
        assert [set(o["data"]) for o in outputs[0]] == [
            {"image/png", "text/plain"}, {"text/html", "text/plain"},
        ]  # fmt: skip
        views = page.locator(".moe-view")
        assert views.count() == 2
        assert page.locator(".jp-OutputArea img:visible").count() == 0
        views.nth(0).locator(".token").nth(40).click()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        pinned = "() => [...document.querySelectorAll('.moe-view')].map(root => root.view.pinned)"
        assert page.evaluate(pinned) == [42, 32]
        views.nth(0).locator(".token").nth(20).hover()
        assert "token 20" in views.nth(0).locator(".readout").inner_text()
        views.nth(1).get_by_label("Policy").select_option("fifo")
        views.nth(1).get_by_label("Slots per layer").fill("6")
        for key, wanted in (("ArrowLeft", 5), ("ArrowDown", 4), ("ArrowUp", 5), ("ArrowRight", 6)):
            views.nth(1).get_by_label("Slots per layer").press(key)  # the notebook ignores them
            assert f"replayed: FIFO, {wanted} slots" in views.nth(1).inner_text()
        assert "replayed: FIFO, 6 slots" in views.nth(1).inner_text()
        shown = "() => [...document.querySelectorAll('.moe-view')].map(root => root.view.shown)"
        assert page.evaluate(shown) == ["recorded", "replayed"]
        assert page.evaluate("() => window.current().content.mode") == "command"
        assert page.evaluate(COLOUR_AT, [".grid", 1, 1]) == "#ffffff"
        notebook.set_theme("dark")
        page.wait_for_function(f"dark => ({COLOUR_AT})(['.grid', 1, 1]) === dark", arg="#1f2124")
        views.nth(1).get_by_role("button", name="play").click()
        page.wait_for_function("() => document.querySelectorAll('.moe-view')[1].view.pinned > 33")
        notebook.run_cell(1)  # and what played there is gone
        assert page.evaluate(pinned) == [42, 32] and views.count() == 2
        assert page.locator(".jp-OutputArea img:visible").count() == 0
        notebook.check_quiet()

"""The Explorer: what is read is what is shown; every look counts what is chosen, and nothing is
generated anew."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from browser import write_notebook
from conftest import ROOT, first_layers
from traces import made_up

import moe_colab as mc
from moe_colab import plots
from moe_colab.analysis import tables
from moe_colab.bench.moves import moves
from moe_colab.bench.traces import made_up as made_up_trace
from moe_colab.notebook.widgets import trace_views
from moe_colab.notebook.widgets.trace_views import TRACE_VIEWS
from moe_colab.trace import Trace

pytestmark = pytest.mark.colab
TRACE = Trace.load()


@pytest.fixture
def explorer(loaded):
    widget = mc.Explorer(*loaded)
    yield widget
    widget.close()


def told(widget) -> str:
    assert widget.error is None and not widget.status.value, widget.status.value
    return re.sub(r"<[^>]+>", "|", widget.facts.value)


def visible(widget) -> set[str]:
    return {name for name, c in widget.settings.items() if c.layout.display != "none"}


def test_every_look_shows_its_figure_and_the_controls_it_minds(explorer, monkeypatch):
    code = TRACE.only("code")
    explorer.part.value, explorer.slots.value = "code", 6
    expected = {
        "activity": lambda: plots.activations(tables.activations(code)),
        "routing": lambda: plots.tokens(tables.tokens(code, 3, 48, trace_views.TOKENS, 3), 60),
        "domains": lambda: plots.specialisation(tables.specialisation(TRACE, 3)),
        "transitions": lambda: plots.transitions(tables.transitions(code, 3)),
        "slots": lambda: plots.hit_rates(
            tables.hit_rates(code, ["lru", "random", "optimal", "optimal-bypass"]), 6
        ),
        "residency": lambda: plots.residency(
            tables.residency(code, 3, "lru", 6), 10, trace_views.STEPS
        ),
    }
    explorer.layer.value, explorer.first.value = 3, 10
    explorer.place.value, explorer.top_k.value = 60, 3
    seen = set()
    for name, draw in expected.items():
        explorer.view.value = name
        assert explorer.picture.value == draw().png(), name
        assert visible(explorer) == set(TRACE_VIEWS[name].depends_on)
        shown = [image.layout.display != "none" for image in explorer.pictures]
        assert shown == [True, name == "routing", name == "routing"]
        told(explorer)
        seen.add(explorer.picture.value)
    assert len(seen) == len(expected) == len(TRACE_VIEWS) - 1


def test_time_is_modelled_for_what_is_chosen(explorer):
    explorer.view.value, explorer.part.value = "time", "prose"
    assert visible(explorer) == set(TRACE_VIEWS["time"].depends_on)
    explorer.link.value, explorer.slots.value, explorer.policy.value = 24, 5, "lfu"
    explorer.guesses.value, explorer.lookahead.value, explorer.step.value = 3, 2, 60
    large = replace(TRACE.only("prose"), expert_bytes=(67_100_000,) * 8)
    setting = {"link": 24e9, "compute": 1e-3, "policy": "lfu", "slots": 5}
    run = mc.timeline(large, **setting, speculate=3, lookahead=2)
    assert f"|{run.tokens_per_second:.1f}|" in told(explorer)
    assert explorer.picture.value == plots.timeline(run.frame(), 60, tables.word(large, 60)).png()


def test_a_view_without_numbers_repeats_its_title_for_screen_readers_alone(explorer):
    explorer.view.value = "activity"
    title = plots.activations(tables.activations(explorer.selected)).get_suptitle()
    assert told(explorer).strip("|") == title
    assert "moecard" not in explorer.facts.value and "clip-path" in explorer.facts.value


def test_settings_replay_and_generate_nothing(explorer, loaded):
    before = loaded[0].offload.stats()
    explorer.view.value = "residency"
    pictures, numbers = set(), set()
    for slots, policy in ((2, "lru"), (5, "lru"), (5, "optimal"), (5, "fifo")):
        explorer.slots.value, explorer.policy.value = slots, policy
        counts = mc.replay(TRACE.only("chat"), policy, slots)
        assert f"|{counts.decode.hit_rate:.1%}|" in told(explorer)
        pictures.add(explorer.picture.value)
        numbers.add(explorer.facts.value)
    assert len(pictures) == len(numbers) == 4
    assert loaded[0].offload.stats() == before


def test_a_text_is_read_recorded_and_added(explorer, loaded):
    explorer.kind.value = "a text of your own"
    explorer.words.value = "The old  man and\nthe sea was not as <b>old</b> as he"
    explorer.length.value, explorer.more.value = 20, 6
    explorer.record()
    told(explorer)
    name = "“The old man and the sea”"
    assert explorer.part.value == name and explorer.trace.labels == (*TRACE.labels, name)
    mine = mc.record_text(*loaded, explorer.words.value, tokens=20, prompt=8, more=6)
    assert explorer.selected.tokens.tolist() == mine.tokens.tolist()
    assert (explorer.selected.routing == mine.routing).all()
    assert mc.replay(explorer.trace.only("code"), slots=4) == mc.replay(
        TRACE.only("code"), slots=4
    ), "the others are as they were"
    explorer.view.value = "domains"
    picture = plots.specialisation(tables.specialisation(explorer.trace, 0))
    assert explorer.picture.value == picture.png()

    explorer.kind.value = "french"
    assert explorer.words.value == explorer.offered["french"]
    for number in (2, 3):
        explorer.go.click()
        assert explorer.part.value == f"french {number}" and not explorer.go.disabled
    assert (explorer.selected.steps, len(explorer.selected.tokens)) == (20 - 8 + 1 + 6, 26)


def test_what_was_not_recorded_cannot_be_asked_for(explorer):
    """A reading has guesses from one source, the shipped trace from two."""
    explorer.view.value = "time"
    assert [value for _, value in explorer.source.options] == ["router_input", "layer_output"]
    assert explorer.guesses.max == 4


def test_another_model_takes_the_traces_place(tmp_path):
    model, tokenizer = mc.load(first_layers(3, tmp_path / "short"), slots=5, progress=False)
    with model.offload:
        explorer = mc.Explorer(model, tokenizer)
        explorer.layer.value = 7
        explorer.length.value = 12
        explorer.record()
        assert explorer.trace.layers == 3 and explorer.trace.labels == ("chat 2",)
        assert [value for _, value in explorer.layer.options] == [0, 1, 2]
        assert [value for _, value in explorer.source.options] == ["router_input"]
        for look in TRACE_VIEWS:
            explorer.view.value = look
            told(explorer)
        assert explorer.place.max == 11 and explorer.step.max == 4
        explorer.close()


def test_mistakes_are_told_in_words(explorer, loaded):
    explorer.words.value = ""
    explorer.record()
    assert "no token" in explorer.status.value and explorer.error is None
    assert not explorer.go.disabled and explorer.trace.labels == TRACE.labels
    with pytest.raises(mc.MoEColabError, match="tokenizer"):
        mc.Explorer(loaded[0])


def test_a_trace_alone_can_be_looked_at():
    widget = mc.Explorer(trace=made_up(4))  # no texts, no guesses, no logits, uneven layers
    for look in TRACE_VIEWS:
        widget.view.value = look
        told(widget)
    widget.record()
    assert "there is no model" in widget.status.value
    widget.close()
    shipped = mc.Explorer()
    assert shipped.trace.labels == TRACE.labels and "times an even share" in told(shipped)


@pytest.mark.slow
def test_a_part_can_be_looked_at_alone():
    """Its labels are those of the whole trace; its steps are of one."""
    for label in TRACE.labels:
        widget = mc.Explorer(trace=TRACE.only(label))
        assert [value for _, value in widget.part.options] == [None]
        for look in TRACE_VIEWS:
            widget.view.value = look
            told(widget)
        assert (
            mc.replay(TRACE.only(label), slots=4).hits == widget.replays.replay(None, "lru", 4).hits
        )
        widget.close()


def test_settings_stay_when_a_text_is_added_and_what_it_lacks_is_not_offered(explorer):
    explorer.view.value = "time"
    explorer.source.value, explorer.slots.value, explorer.guesses.value = "layer_output", 6, 4
    explorer.top_k.value, explorer.expert.value, explorer.link.value = 3, 30, 24
    explorer.length.value = 20
    explorer.record()
    kept = (explorer.slots, explorer.guesses, explorer.top_k, explorer.expert, explorer.link)
    assert [control.value for control in kept] == [6, 4, 3, 30, 24]
    assert [value for _, value in explorer.source.options] == ["router_input"]  # all parts hold it
    told(explorer)


def test_a_prompt_alone_has_no_rate_of_decoded_tokens(explorer):
    explorer.words.value, explorer.view.value = "Good day", "slots"
    explorer.record()
    explorer.part.value = explorer.trace.labels[-1]
    assert "|hit rate, decoded tokens||–|" in told(explorer)
    explorer.view.value = "time"
    told(explorer)


def test_after_an_error_nothing_old_is_shown(explorer, monkeypatch):
    def broken(*_):
        raise mc.MoEColabError("no luck")

    monkeypatch.setattr(tables, "specialisation", broken)
    explorer.view.value = "domains"
    assert "no luck" in explorer.status.value and explorer.facts.value == ""
    assert {image.layout.display for image in explorer.pictures} == {"none"}
    explorer.view.value = "transitions"
    assert told(explorer) and explorer.picture.layout.display == ""


def test_words_of_a_text_are_no_formula_in_a_figure(explorer):
    explorer.kind.value = "a text of your own"
    explorer.words.value, explorer.length.value = "Costs $x_{a and $y today, 世界 \x07 for all", 24
    explorer.record()
    explorer.view.value = "domains"
    told(explorer)
    explorer.view.value = "routing"
    told(explorer)


def test_moves_were_timed_and_the_table_can_be_made_again():
    """Under 0.3 s, as a median over the values of each setting."""
    table = json.loads((ROOT / "assets" / "benchmarks" / "moves.json").read_text())
    for found in table["seconds"].values():
        assert [*found] == ["slots", "residency", "time"] and found["time"]["link"]
        for look in found.values():
            assert all(seconds["median"] < 0.3 for seconds in look.values())
    again = moves(made_up_trace(6, 2, 8, 2))
    assert [set(look) for look in again.values()] == [
        {"slots", "policy"}, {"slots", "policy"}, {"slots", "policy", "link"},
    ]  # fmt: skip


def test_in_a_notebook_it_reads_and_every_control_moves_the_picture(lab, tmp_path):
    cells = [
        "import moe_colab as mc\n"
        "model, tokenizer = mc.load(slots=4, progress=False)\n"
        "explorer = mc.Explorer(model, tokenizer)\n"
        "explorer",
        "print(explorer.part.value, explorer.slots.value, explorer.error)",
    ]
    with lab.open(write_notebook(tmp_path / "explorer.ipynb", cells)) as notebook:
        notebook.run_cell(0)
        page = notebook.by_class("moe-explorer")
        picture = page.locator("img").first
        picture.wait_for()
        sources = [picture.get_attribute("src")]

        def moved() -> None:
            notebook.page.wait_for_function(
                "old => document.querySelector('.moe-explorer img').src !== old", arg=sources[-1]
            )
            sources.append(picture.get_attribute("src"))

        trace_views = page.get_by_label("View", exact=True)
        for look in TRACE_VIEWS.values():
            if look.name != "Expert load":
                trace_views.select_option(look.name)
                moved()
        trace_views.select_option("Cache contents")
        moved()
        handles = page.locator(".noUi-handle:visible, .ui-slider-handle:visible")  # 8, and 7
        assert handles.count() == 4  # what is read has two, the strip two
        handles.nth(2).focus()
        notebook.page.keyboard.press("ArrowRight")
        moved()
        page.get_by_label("Policy").select_option("FIFO")
        moved()
        page.get_by_label("Words").fill("The old man and the sea <script>window.harmed=1</script>")
        notebook.button("Read and record").click()
        moved()
        notebook.wait_idle()
        notebook.run_cell(1)
        assert "“The old man and the sea" in notebook.text(1) and notebook.text(1).endswith(
            "None\n"
        )
        assert notebook.page.evaluate("() => window.harmed") is None
        unnamed = page.locator("input, select, textarea, button").evaluate_all(
            "all => all.filter(e => e.offsetParent && !(e.labels?.[0]?.innerText || e.innerText"
            " || e.getAttribute('aria-label') || e.title)).map(e => e.outerHTML)"
        )
        assert unnamed == []
        notebook.run_cell(0)  # again: one more, and both are alive
        notebook.check_quiet()

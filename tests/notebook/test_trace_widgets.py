"""The widgets of a trace: what is chosen is what is counted and drawn."""

from __future__ import annotations

import gc
import re
import weakref
from dataclasses import replace

import pytest
from traces import made_up

import moe_colab as mc
from moe_colab import MoEColabError, plots
from moe_colab.analysis import tables
from moe_colab.notebook.widgets import trace_views
from moe_colab.trace import Trace

pytestmark = pytest.mark.colab
TRACE = Trace.load()


@pytest.fixture
def cache():
    widget = mc.CacheWidget(TRACE)
    yield widget
    widget.close()


@pytest.fixture
def ahead():
    widget = mc.SpeculationWidget(TRACE)
    yield widget
    widget.close()


def shown(widget) -> str:
    assert widget.error is None and not widget.status.value, widget.status.value
    return re.sub(r"<[^>]+>", "|", widget.facts.value).replace("&nbsp;", " ")


def test_a_cache_is_replayed_at_every_change(cache):
    assert cache.part.value == "chat"
    cache.part.value, cache.policy.value, cache.slots.value = "code", "lfu", 6
    cache.layer.value, cache.first.value = 5, 20
    code = TRACE.only("code")
    counts = mc.replay(code, "lfu", 6)
    more = mc.replay(code, "lfu", 7).decode.hit_rate - counts.decode.hit_rate
    told = shown(cache)
    assert f"|{counts.decode.hit_rate:.1%}|" in told and f"|{100 * more:+.1f} points|" in told
    decoded = code.steps - 3  # three documents, each begins with a prompt
    assert f"|{counts.decode.loads / decoded:.2f} experts|" in told
    assert f"|{mc.replay(code, 'optimal', 6).decode.hit_rate:.1%}|" in told
    strip = plots.residency(tables.residency(code, 5, "lfu", 6), 20, trace_views.STEPS)
    assert cache.picture.value == strip.png()
    cache.slots.value = 8
    assert "one more slot" not in shown(cache)


def test_all_of_a_trace_and_one_without_parts(cache):
    cache.part.value = None
    assert f"|{mc.replay(TRACE, slots=4).decode.hit_rate:.1%}|" in shown(cache)
    small = mc.CacheWidget(made_up(4))  # no texts, no guesses, layers of different sizes
    assert [value for _, value in small.part.options] == [None]
    assert small.slots.max == 6 and shown(small)
    small.first.value = small.first.max
    assert shown(small)


def test_where_tokens_go_is_drawn_at_every_change():
    widget = mc.RoutingWidget(TRACE)
    widget.part.value, widget.layer.value, widget.place.value = "code", 6, 50
    code = TRACE.only("code")
    for top_k in (2, 3):
        widget.top_k.value = top_k
        strip = tables.tokens(code, 6, 48, trace_views.TOKENS, top_k)
        router, spread = tables.router(code, 50, 6, top_k), tables.activations(code, top_k=top_k)
        word = code.texts[int(code.tokens[50])]
        wanted = [plots.tokens(strip, 50), plots.router(router, word), plots.shares(spread, 6)]
        assert [one.value for one in widget.pictures] == [picture.png() for picture in wanted]
        experts = router[router["rank"] >= 0].sort_values("rank")
        told = shown(widget)
        assert f"|{', '.join(map(str, experts['expert']))}|" in told
        assert f"|{experts['probability'].sum():.0%}|" in told
        first = int(experts["expert"].iloc[0])
        share = spread[(spread["layer"] == 6) & (spread["expert"] == first)]["share"].item()
        assert f"|expert {first} gets||{share:.0%}|" in told and "of this text" in told
    widget.place.value = widget.place.max  # beyond the end of this part
    assert "Token 383" in shown(widget)
    widget.close()


def test_where_tokens_go_without_logits_or_text():
    widget = mc.RoutingWidget(made_up(4))
    assert widget.top_k.max == 2 and shown(widget)
    assert [bool(one.value) for one in widget.pictures] == [True, True, False]
    assert widget.pictures[2].layout.display == "none"
    widget.close()


def test_a_timeline_is_modelled_at_every_change(ahead):
    ahead.part.value, ahead.link.value, ahead.compute.value = "prose", 24, 2
    ahead.guesses.value, ahead.lookahead.value, ahead.source.value = 3, 2, "layer_output"
    ahead.slots.value, ahead.step.value = 5, 60
    large = replace(TRACE.only("prose"), expert_bytes=(67_100_000,) * 8)
    speed = {"link": 24e9, "compute": 2e-3, "slots": 5}
    guess = {"speculate": 3, "lookahead": 2, "guess_from": "layer_output"}
    run, plain = mc.timeline(large, **speed, **guess), mc.timeline(large, **speed)
    told = shown(ahead)
    assert f"|{run.tokens_per_second:.1f}|" in told and f"|{run.stall_share:.0%} waiting|" in told
    wait = 1e3 * plain.decode.stall_seconds / plain.decode.tokens
    assert f"|{wait:.1f} ms without guesses|" in told
    word = tables.word(large, 60)
    assert ahead.picture.value == plots.timeline(run.frame(), 60, word).png()
    ahead.guesses.value = 0
    assert f"|{plain.tokens_per_second:.1f}|" in shown(ahead)


def test_a_trace_without_guesses_has_a_timeline_too():
    widget = mc.SpeculationWidget(made_up(4), expert=8_000_000)
    assert widget.guesses.max == 0 and widget.expert.value == 8
    assert shown(widget)


def test_what_goes_wrong_is_told_in_words(cache, monkeypatch):
    def broken(*_):
        raise ValueError("no luck")

    monkeypatch.setattr(tables, "residency", broken)
    cache.slots.value = 3
    assert "no luck" in cache.status.value and isinstance(cache.error, ValueError)
    with pytest.raises(MoEColabError, match="this trace is empty"):
        mc.CacheWidget(replace(made_up(1), forwards=made_up(1).forwards[:0]))


def test_replays_are_kept_as_long_as_the_widget():
    trace = made_up(4)
    widget, gone = mc.CacheWidget(trace), weakref.ref(trace)
    once = widget.replays.replay(None, "fifo", 3)
    assert widget.replays.replay(None, "fifo", 3) is once
    widget.close()
    del widget, trace
    gc.collect()
    assert gone() is None

"""Where tokens were sent, as tables: counted here once more, token by token."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from traces import CSV, each_token, made_up, relabelled, went

import moe_colab as mc
from moe_colab.analysis import tables
from moe_colab.analysis.tables import intervals
from moe_colab.trace import Trace

pytestmark = pytest.mark.colab
TRACE = Trace.load()
CODE = TRACE.only("code")


# ---------------------------------------------------------------------- shares
@pytest.mark.parametrize("phase", [None, "prompt", "decode"])
def test_activations_are_counted_token_by_token(phase):
    frame = tables.activations(TRACE, phase)
    assert len(frame) == 64 and set(frame["uniform"]) == {2 / 8}
    for layer in (0, 5, 7):
        counts, of = [0] * 8, 0
        for place, own, *_ in each_token(TRACE):
            if phase in (None, own):
                of += 1
                for expert in went(TRACE, place, layer):
                    counts[expert] += 1
        rows = frame[frame["layer"] == layer]
        assert rows["expert"].tolist() == list(range(8))
        assert rows["tokens"].tolist() == counts and set(rows["of"]) == {of}
        assert rows["share"].tolist() == [count / of for count in counts]
        assert (rows["low"] <= rows["share"]).all() and (rows["share"] <= rows["high"]).all()


def test_specialisation_counts_every_label_alone():
    frame = tables.specialisation(TRACE, 7, "decode")
    assert len(frame) == 8 * 4
    for row in frame.itertuples():
        own = [
            went(TRACE, place, 7)
            for place, phase, label, *_ in each_token(TRACE)
            if (phase, label) == ("decode", row.label)
        ]
        assert row.of == len(own) == 288
        assert row.tokens == sum(row.expert in experts for experts in own)
        alone = tables.activations(TRACE.only(row.label), "decode")
        same = alone[(alone["layer"] == 7) & (alone["expert"] == row.expert)].iloc[0]
        assert (row.share, row.low, row.high) == (same.share, same.low, same.high)


def test_tokens_that_a_layer_left_out_do_not_count(tmp_path):
    (tmp_path / "route.csv").write_text(CSV)
    trace = Trace.from_csv(tmp_path / "route.csv")
    frame = tables.activations(trace)
    for layer in range(trace.layers):
        own = [went(trace, place, layer) for place in range(len(trace.tokens))]
        own = [experts for experts in own if experts]
        rows = frame[frame["layer"] == layer]
        assert set(rows["of"]) == {len(own)} and rows["tokens"].sum() == sum(map(len, own))
        even = sum(map(len, own)) / len(own) / trace.experts[layer]
        assert rows["uniform"].tolist() == pytest.approx([even] * trace.experts[layer])
    assert any((trace.routing[:, layer] < 0).any() for layer in range(trace.layers))


def test_fewer_choices_are_the_first_and_more_are_the_next_by_logits():
    first = tables.activations(CODE, top_k=1)
    four = tables.activations(CODE, top_k=4)
    for layer in (0, 7):
        ones, fours = [0] * 8, [0] * 8
        for place in range(len(CODE.tokens)):
            ones[CODE.routing[place, layer, 0]] += 1
            logits = CODE.logits[place, layer].tolist()
            own = went(CODE, place, layer)
            rest = sorted(set(range(8)) - set(own), key=lambda expert: -logits[expert])
            for expert in own + rest[:2]:
                fours[expert] += 1
        assert first[first["layer"] == layer]["tokens"].tolist() == ones
        assert four[four["layer"] == layer]["tokens"].tolist() == fours
    assert set(first["uniform"]) == {1 / 8} and set(four["uniform"]) == {4 / 8}
    assert set(tables.activations(CODE, top_k=8)["share"]) == {1.0}


def test_a_routers_own_choices_come_first_whatever_its_logits_say():
    """Some families choose by more than the logits: groups, a bias."""
    dice = np.random.default_rng(7)
    trace = replace(CODE, logits=dice.normal(size=CODE.logits.shape).astype(np.float16))
    frame = tables.tokens(trace, 2, 0, 20, top_k=5)
    for place in range(20):
        own, logits = went(trace, place, 2), trace.logits[place, 2].tolist()
        rest = sorted(set(range(8)) - set(own), key=lambda expert: -logits[expert])
        assert frame[frame["place"] == place]["expert"].tolist() == own + rest[:3]


# ---------------------------------------------------------------------- intervals
def test_an_interval_holds_the_truth_where_tokens_follow_each_other():
    """Texts made up here, in which a token mostly goes where the one before it went: of 95 %
    intervals, nearly all hold the share that the text was made with. Wilson's for independent
    tokens, written here, holds it in fewer than half."""
    dice, held, naive = random.Random(1), 0, 0
    share, stay, length, texts = 0.25, 0.9, 384, 300
    block = np.arange(length) // 32
    for _ in range(texts):
        goes = [dice.random() < share]
        while len(goes) < length:
            goes.append(goes[-1] if dice.random() < stay else dice.random() < share)
        found = intervals.shares(np.array(goes)[:, None], block)
        held += found.low[0] <= share <= found.high[0]
        p, z, n = sum(goes) / length, 1.96, length
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        naive += abs(share - (p + z * z / (2 * n)) / (1 + z * z / n)) <= half
    assert held / texts > 0.88 and naive / texts < 0.5


def test_independent_tokens_have_wilsons_interval():
    """From the definition: the ends are the shares that lie 1.96 of their own standard errors from
    the one that was found."""
    dice = np.random.default_rng(3)
    goes, block = dice.random((4000, 3)) < [0.05, 0.3, 0.9], np.arange(4000) // 10
    found = intervals.shares(goes, block)
    for share, low, high in zip(found.share, found.low, found.high, strict=True):
        for end in (low, high):
            errors = abs(share - end) / math.sqrt(end * (1 - end) / 4000)
            assert errors == pytest.approx(1.96, rel=0.15)  # what blocks seem to be worth varies


def test_four_blocks_by_hand():
    """2, 4, 6 and 8 of 10 tokens: half of all. The blocks' shares have a variance of 0.2 / 3, their
    mean a quarter of it; independent tokens of that variance would be 15. Four blocks tell little:
    Student's quantile is 3.182 instead of 1.96."""
    goes = np.concatenate([np.arange(10) < count for count in (2, 4, 6, 8)])
    found = intervals.shares(goes[:, None], np.arange(40) // 10)
    n, z = 0.25 / (0.2 / 3 / 4) * (1.96 / 3.182) ** 2, 1.96
    half = z * math.sqrt(0.25 / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert found.high[0] - 0.5 == pytest.approx(half, rel=0.01)
    assert found.low[0] == pytest.approx(1 - found.high[0])


def test_intervals_at_the_ends():
    never = intervals.shares(np.zeros((40, 2), bool), np.arange(40) // 8)
    assert never.low.tolist() == [0, 0] and 0 < never.high[0] < 1
    always = intervals.shares(np.ones((40, 1), bool), np.arange(40) // 8)
    assert always.high[0] == 1 and always.low[0] == pytest.approx(1 - never.high[0])
    one_block = intervals.shares(np.arange(6)[:, None] < 3, np.zeros(6))
    assert one_block.low[0] < 0.1 and one_block.high[0] > 0.9
    nobody = intervals.shares(np.zeros((0, 2), bool), np.zeros(0))
    assert np.isnan(nobody.share).all() and (nobody.low[0], nobody.high[1]) == (0, 1)
    wanted = {1: 12.706, 4: 2.776, 11: 2.201, 30: 2.042}  # of any table
    for freedom, quantile in wanted.items():
        assert intervals.student(freedom) == pytest.approx(quantile, rel=0.25 / freedom**2 + 0.001)


def test_blocks_are_stretches_of_one_text():
    found: dict[int, list[tuple[int, int]]] = {}
    numbers = tables.choices.blocks(TRACE)
    for place, _, _, sequence, position in each_token(TRACE):
        found.setdefault(int(numbers[place]), []).append((sequence, position))
    for own in found.values():
        assert len({sequence for sequence, _ in own}) == 1
        positions = [position for _, position in own]
        assert positions == list(range(positions[0], positions[0] + 32))
    assert len(found) == 12 * 128 // 32


# ---------------------------------------------------------------------- from layer to layer
@pytest.mark.parametrize("phase", [None, "decode"])
def test_transitions_are_counted_pair_by_pair(phase):
    frame = tables.transitions(CODE, 3, phase=phase)
    assert len(frame) == 64 and set(frame["layer"]) == {3}
    pairs, here, there, ways, of = {}, [0] * 8, [0] * 8, {}, 0
    for place, own, *_ in each_token(CODE):
        if phase not in (None, own):
            continue
        of += 1
        before, after = went(CODE, place, 3), went(CODE, place, 4)
        for expert in before:
            here[expert] += 1
            for following in after:
                pairs[expert, following] = pairs.get((expert, following), 0) + 1
                part = 1 / (len(before) * len(after))
                ways[expert, following] = ways.get((expert, following), 0) + part
        for following in after:
            there[following] += 1
    for row in frame.itertuples():
        both = pairs.get((row.expert, row.next), 0)
        assert (row.tokens, row.of) == (both, here[row.expert])
        assert row.share == both / here[row.expert]
        assert row.independent == pytest.approx(there[row.next] / of)
        assert row.lift == pytest.approx(row.share / row.independent)
        assert row.flow == pytest.approx(ways.get((row.expert, row.next), 0) / of)
    assert frame["flow"].sum() == pytest.approx(1)


def test_layers_that_do_not_know_of_each_other_have_a_lift_of_one():
    """The next layer's choices shuffled among the tokens: nearly all intervals hold independence,
    and the lift of what was seen often is near 1."""
    order = np.random.default_rng(5).permutation(len(CODE.tokens))
    routing = CODE.routing.copy()
    routing[:, 4] = routing[order, 4]
    frame = tables.transitions(replace(CODE, routing=routing), 3)
    inside = (frame["low"] <= frame["independent"]) & (frame["independent"] <= frame["high"])
    assert inside.mean() > 0.85
    often = frame[frame["tokens"] > 50]
    assert len(often) > 4 and often["lift"].between(0.7, 1.4).all()
    known = tables.transitions(CODE, 3)
    outside = (known["low"] > known["independent"]) | (known["independent"] > known["high"])
    assert outside.mean() > 0.2


def test_hops_are_layers_one_after_the_other():
    frame = tables.transitions(CODE, 2, hops=2)
    for layer in (2, 3):
        own = frame[frame["layer"] == layer].reset_index(drop=True)
        assert own.equals(tables.transitions(CODE, layer))


# ---------------------------------------------------------------------- tokens and routers
def test_the_strip_holds_the_text_and_the_choices():
    frame = tables.tokens(CODE, 6, 20, 30)
    assert frame["place"].tolist() == [place for place in range(20, 50) for _ in range(2)]
    facts = {place: rest for place, *rest in each_token(CODE)}
    for row in frame.itertuples():
        assert row.phase == facts[row.place][0] and row.label == "code" and row.layer == 6
        assert row.text == CODE.texts[int(CODE.tokens[row.place])]
        assert row.expert == CODE.routing[row.place, 6, row.rank]
        logits = [float(logit) for logit in CODE.logits[row.place, 6]]
        odds = math.exp(logits[row.expert]) / sum(math.exp(logit) for logit in logits)
        assert row.probability == pytest.approx(odds)
    assert set(frame["phase"]) == {"prompt", "decode"}
    assert len(tables.tokens(CODE, 0, 380, 30)) == 4 * 2  # to the end
    wide = tables.tokens(CODE, 6, 20, 1, top_k=5)
    assert wide["rank"].tolist() == [0, 1, 2, 3, 4] and wide["expert"].nunique() == 5


def test_a_routers_words():
    for place, layer, k in ((0, 0, None), (200, 7, None), (33, 3, 4), (33, 3, 1)):
        frame = tables.router(CODE, place, layer, k)
        logits = [float(logit) for logit in CODE.logits[place, layer]]
        whole = sum(math.exp(logit) for logit in logits)
        assert frame["logit"].tolist() == logits and set(frame["uniform"]) == {1 / 8}
        odds = [math.exp(logit) / whole for logit in logits]
        assert frame["probability"].tolist() == pytest.approx(odds)
        chosen = sorted(range(8), key=lambda expert: -logits[expert])[: k or 2]
        ranks = dict(enumerate(frame["rank"].tolist()))
        assert {e: rank for e, rank in ranks.items() if rank >= 0} == {
            expert: rank for rank, expert in enumerate(chosen)
        }
        weights = {expert: odds[expert] / sum(odds[e] for e in chosen) for expert in chosen}
        assert frame["weight"].tolist() == pytest.approx([weights.get(e, 0) for e in range(8)])


def test_other_names_for_experts_are_other_rows():
    new = random.Random(4).sample(range(8), 8)
    other = relabelled(CODE, new)
    for make in (
        lambda trace: tables.activations(trace).set_index(["layer", "expert"])["share"],
        lambda trace: tables.specialisation(trace, 2).set_index(["layer", "expert"])["low"],
        lambda trace: (
            tables.router(trace, 9, 2).assign(layer=2).set_index(["layer", "expert"])["probability"]
        ),
    ):
        before, after = make(CODE), make(other)
        for (layer, expert), value in before.items():
            assert after[layer, new[expert]] == pytest.approx(value)
    before = tables.transitions(CODE, 2).set_index(["expert", "next"])["flow"]
    after = tables.transitions(other, 2).set_index(["expert", "next"])["flow"]
    for (expert, following), flow in before.items():
        assert after[new[expert], new[following]] == pytest.approx(flow)


# ---------------------------------------------------------------------- what cannot be
def test_without_logits_the_routing_is_still_there():
    bare = replace(CODE, logits=np.full_like(CODE.logits, np.nan))
    assert tables.activations(bare).equals(tables.activations(CODE))
    strip = tables.tokens(bare, 5, 0, 10)
    assert strip["probability"].isna().all()
    assert strip["expert"].equals(tables.tokens(CODE, 5, 0, 10)["expert"])
    for refused in (
        lambda: tables.router(bare, 0, 5),
        lambda: tables.activations(bare, top_k=3),
        lambda: tables.tokens(bare, 5, top_k=8),
    ):
        with pytest.raises(
            mc.MoEColabError, match="does not hold the router's logits of MoE layer"
        ):
            refused()


def test_settings_that_cannot_be_are_one_sentence():
    only_prompts = made_up(2, steps=1)
    for wrong in (
        lambda: tables.activations(TRACE, "reading"),
        lambda: tables.activations(only_prompts, "decode"),
        lambda: tables.activations(TRACE, top_k=0),
        lambda: tables.activations(TRACE, top_k=9),
        lambda: tables.specialisation(TRACE, 8),
        lambda: tables.transitions(TRACE, 7),
        lambda: tables.transitions(TRACE, 0, hops=0),
        lambda: tables.transitions(TRACE, -1),
        lambda: tables.tokens(TRACE, first=10**6),
        lambda: tables.router(TRACE, -1),
    ):
        with pytest.raises(mc.MoEColabError) as error:
            wrong()
        assert str(error.value).count("\n") == 0


# ---------------------------------------------------------------------- what the notebooks say
def first_choices(layer: int) -> dict[int, list[int]]:
    """By token id, of those that come more than once."""
    found: dict[int, list[int]] = {}
    for place, token in enumerate(TRACE.tokens.tolist()):
        found.setdefault(token, []).append(int(TRACE.routing[place, layer, 0]))
    return {token: experts for token, experts in found.items() if len(experts) > 1}


def test_the_first_layer_goes_by_the_word_and_the_last_by_the_text():
    """Notebook 02, section 2."""
    once = [len(set(experts)) == 1 for experts in first_choices(0).values()]
    assert 0.97 < np.mean(once) < 1
    again = list(first_choices(7).values())
    assert sum(len(set(experts)) == 1 for experts in again) < 0.6 * len(again)
    the = next(token for token, text in TRACE.texts.items() if text == " the")
    experts: dict[str, list[int]] = {}
    for place, _, label, *_ in each_token(TRACE):
        if TRACE.tokens[place] == the:
            experts.setdefault(label, []).append(int(TRACE.routing[place, 7, 0]))
    most = {label: max(set(own), key=own.count) for label, own in experts.items()}
    assert len(set(most.values())) == len(most) == 3
    hits = [layer.hit_rate for layer in mc.replay(TRACE, "lru", 4).layers]
    assert hits[7] == max(hits)


def test_routers_are_fairly_sure_and_seldom_certain():
    """Notebook 02, section 1: what the chosen have, by layer, and the first one's weight."""
    odds, weights = [], []
    for layer in range(8):
        frame = tables.tokens(TRACE, layer, 0, len(TRACE.tokens)).set_index(["place", "rank"])
        both = frame["probability"].unstack()
        odds.append(both.sum(axis=1).mean())
        weights.append((both[0] / both.sum(axis=1)).mean())
    assert min(odds) > 0.5 and max(odds) < 0.855
    assert odds.index(max(odds)) == 7 and max(odds[:2]) < min(odds[2:])
    assert np.mean(weights) == pytest.approx(0.75, abs=0.02)


def test_even_on_average_is_not_even_now():
    """Notebook 02, section 3."""
    times = {
        label: (frame["share"] / frame["uniform"])
        for label, frame in (("all", tables.activations(TRACE)), ("code", tables.activations(CODE)))
    }
    assert times["all"].min() > 0.45 and times["all"].max() < 1.5
    last = times["code"][56:]
    assert last.max() > 3.9 and 0.08 < last.min() < 0.125
    alone = tables.activations(TRACE, top_k=1)
    assert (alone["share"] / alone["uniform"]).max() > times["all"].max()


def test_experts_of_the_last_layer_have_topics():
    """Notebook 07, section 1."""
    busiest = np.array(
        [tables.specialisation(TRACE, layer).groupby("label")["share"].max() for layer in range(8)]
    )
    assert sorted(TRACE.labels) == ["chat", "code", "french", "prose"]
    for column in (1, 2, 3):
        assert busiest[:, column].argmax() == 7
    assert busiest[7, 1:3] == pytest.approx([0.98, 0.99], abs=0.006)
    assert busiest[0].argmax() == 2 and (busiest.argmax(axis=1) == 2).sum() >= 5  # French
    assert busiest[:, 0].max() < 0.5  # conversations
    last = tables.specialisation(TRACE, 7).set_index(["label", "expert"])["share"]
    for label in ("code", "french"):
        own = last[label].idxmax()
        assert max(last[other][own] for other in TRACE.labels if other != label) < 0.25
    apart = []
    for layer in range(8):
        rows = tables.specialisation(TRACE, layer).set_index(["label", "expert"])
        others = rows["high"].drop("french").groupby("expert").max()
        apart.append((rows["low"]["french"] > others).any())
    assert apart == [True] * 6 + [False, True]


def test_topics_help_a_cache_less_than_one_would_think():
    """Notebook 07, section 5; and notebook 05, section 3."""
    hits = {label: mc.replay(TRACE.only(label), slots=4).decode.hit_rate for label in TRACE.labels}
    assert {label: round(rate, 2) for label, rate in hits.items()} == {
        "chat": 0.61, "code": 0.66, "french": 0.65, "prose": 0.63,
    }  # fmt: skip

    def missed(label: str, tokens: int) -> list[tuple[str, list[int]]]:
        """(text, the layers of its misses) of the decoded tokens among the first ones."""
        part, found = TRACE.only(label), {}
        for layer in range(8):
            table = tables.residency(part, layer, "lru", 4)
            for row in table[table["state"] == "miss"].itertuples():
                found.setdefault(row.step, []).append(layer)
        steps = range(1, tokens - 32 + 1)
        return [(part.texts[int(part.tokens[31 + s])], found.get(s, [])) for s in steps]

    chat = missed("chat", 128)
    counts = [len(layers) for _, layers in chat]
    assert (min(counts), max(counts)) == (1, 12)
    ends = [len(layers) for text, layers in chat if "end" in text and "<" in text]
    assert np.mean(ends) > 1.3 * np.mean(counts) and len(ends) == 4
    code, first, second = TRACE.only("code"), 0, 0
    table = tables.residency(code, 7, "lru", 4)
    missing = {(row.step, row.expert) for row in table[table["state"] == "miss"].itertuples()}
    for step in range(1, 65):
        one, two = code.routing[31 + step, 7].tolist()
        first, second = first + ((step, one) not in missing), second + ((step, two) not in missing)
    assert first > 55 and second < 50


def test_the_same_words_go_elsewhere_in_code():
    """Notebook 07, section 2: tokens that occur in conversations, code and prose."""
    where: dict[int, set[str]] = {}
    for place, _, label, *_ in each_token(TRACE):
        where.setdefault(int(TRACE.tokens[place]), set()).add(label)
    common = {token for token, labels in where.items() if {"chat", "code", "prose"} <= labels}
    assert {" the", " is", ","} <= {TRACE.texts[token] for token in common}
    sent = {label: [] for label in TRACE.labels}
    for place, _, label, *_ in each_token(TRACE):
        if int(TRACE.tokens[place]) in common:
            sent[label].append(2 in went(TRACE, place, 7))
    assert all(sent["code"]) and max(np.mean(sent[label]) for label in ("chat", "prose")) < 0.3
    pairs: dict[int, dict[int, list]] = {0: {}, 7: {}}  # layer, token: where it was sent
    for place, token in enumerate(TRACE.tokens.tolist()):
        for layer, found in pairs.items():
            found.setdefault(token, []).append(tuple(sorted(went(TRACE, place, layer))))
    usual = {}  # how often a token that comes again goes its usual way
    for layer, found in pairs.items():
        again = [ways for ways in found.values() if len(ways) > 1]
        same = sum(max(map(ways.count, ways)) for ways in again)
        usual[layer] = same / sum(map(len, again))
    assert usual[0] > 0.9 and usual[7] < 0.55


def test_an_expert_says_something_about_the_next_layers():
    """Notebook 07, section 3: pairs of 64 between layers 6 and 7, outside of their intervals."""
    outside = {}
    for label in (None, *TRACE.labels):
        frame = tables.transitions(TRACE if label is None else TRACE.only(label), 6)
        off = (frame["low"] > frame["independent"]) | (frame["high"] < frame["independent"])
        outside[label] = int(off.sum())
        if label is None:
            likely = frame[(frame["low"] > frame["independent"]) & (frame["tokens"] >= 8)]
            assert 1.8 < likely["lift"].max() < 2.4
    whole = outside.pop(None)
    assert 28 <= whole <= 36 and all(10 < one < 36 for one in outside.values())
    order = np.random.default_rng(0).permutation(len(TRACE.tokens))
    routing = TRACE.routing.copy()
    routing[:, 7] = routing[order, 7]
    frame = tables.transitions(replace(TRACE, routing=routing), 6)
    off = (frame["low"] > frame["independent"]) | (frame["high"] < frame["independent"])
    assert off.sum() <= 8

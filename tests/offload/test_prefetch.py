"""Guesses change speed and never output; they are what the next routers would say; and what they
bring is counted exactly."""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from census import blocks_counted
from conftest import TINY_MOE
from families import FAMILIES, PROMISED, make_checkpoint, reference
from manual_link import ManualLink
from naive import NaiveLayer, plain_routing

import moe_colab as mc
from moe_colab.bench.paper import with_compute_times
from moe_colab.cache.clock_link import ClockLink
from moe_colab.cache.homes import DiskHome
from moe_colab.cache.policies import POLICIES
from moe_colab.cache.settings import SOURCES
from moe_colab.cache.spares import SPARES
from moe_colab.offload import hooks
from moe_colab.offload.hooks import OffloadedLayer
from moe_colab.offload.prefetch import likeliest

IDS = torch.randint(6, 4000, (1, 24), generator=torch.Generator().manual_seed(1))
ALWAYS = {"stand_aside": False, "progress": False}


@pytest.fixture(scope="module")
def plain():
    return reference(TINY_MOE)


def generate(model, ids=IDS, tokens: int = 12, **more) -> torch.Tensor:
    torch.manual_seed(7)
    return model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **more)


@pytest.fixture(scope="module")
def said(plain):
    """What the plain model says, greedily and not."""
    return {
        "greedy": generate(plain, do_sample=False),
        "sampling": generate(plain, do_sample=True, temperature=1.3),
        "rows": generate(plain, IDS.reshape(3, 8), do_sample=False),
    }


def check_says(model, said, how: str) -> None:
    ids = IDS.reshape(3, 8) if how == "rows" else IDS
    more = {"do_sample": True, "temperature": 1.3} if how == "sampling" else {"do_sample": False}
    assert torch.equal(generate(model, ids, **more), said[how])


# ---------------------------------------------------------------------- tokens stay the same
def some_settings(dice: random.Random) -> dict:
    return {
        "slots": dice.choice([1, 2, 3, 5, 7, [dice.randint(1, 8) for _ in range(8)]]),
        "policy": dice.choice([*POLICIES]),
        "speculate": dice.randint(0, 5),
        "lookahead": dice.randint(1, 2),
        "guess_from": dice.choice(SOURCES),
        "guess_threshold": dice.choice([0.0, 0.0, 0.2, 0.9]),
        "stand_aside": dice.random() < 0.5,
        "resident": dice.choice([None, None, {0: [1], 3: [0, 5, 7]}]),
    }


def check_random_settings(seed: int, said) -> None:
    dice = random.Random(seed)
    settings = some_settings(dice)
    model, _ = mc.load(progress=False, **settings)
    with model.offload as offload:
        check_says(model, said, dice.choice([*said]))
        for name, value in some_settings(dice).items():
            if name != "resident":
                setattr(offload, name, value)
                assert getattr(offload, name) == value
        check_says(model, said, dice.choice([*said]))
        stats = offload.stats()
        assert stats.accesses == stats.hits + stats.speculative_hits + stats.late + stats.misses


@pytest.mark.parametrize("seed", range(8))
def test_random_settings_say_the_same(seed, said):
    check_random_settings(seed, said)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(8, 200))
def test_200_random_settings_say_the_same(seed, said):
    check_random_settings(seed, said)


def test_settings_changed_while_it_generates(said, monkeypatch):
    """Every few layers, between two of them."""
    model, _ = mc.load(slots=3, speculate=2, **ALWAYS)
    dice, calls, routing = random.Random(3), [], OffloadedLayer.routing

    def change(self, top_k_index):
        calls.append(1)
        if len(calls) % 5 == 0:
            name = dice.choice(["speculate", "lookahead", "guess_from", "guess_threshold"])
            setattr(model.offload, name, some_settings(dice)[name])
        if len(calls) % 17 == 0:
            model.offload.policy = dice.choice([*POLICIES])
        return routing(self, top_k_index)

    monkeypatch.setattr(OffloadedLayer, "routing", change)
    with model.offload:
        for how in said:
            check_says(model, said, how)
    assert len(calls) > 200


@pytest.mark.parametrize("family", PROMISED)
def test_every_promised_family_can_be_guessed_and_says_the_same(family, tmp_path):
    check_family(family, make_checkpoint(family, tmp_path / family))


@pytest.mark.full
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*PROMISED}))
def test_other_families_can_be_guessed_and_say_the_same(family, tmp_path):
    check_family(family, make_checkpoint(family, tmp_path / family))


@pytest.mark.full
@pytest.mark.parametrize(
    ("family", "policy", "source", "slots"),
    list(itertools.product(PROMISED, POLICIES, SOURCES, (1, 3, 6))),
)
def test_every_family_policy_and_source_says_the_same(family, policy, source, slots, tmp_path):
    folder = make_checkpoint(family, tmp_path / family)
    check_family(family, folder, policy=policy, sources=[source], slots=slots)


def check_family(family, folder, policy="lru", sources=SOURCES, slots=3) -> None:
    ids = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = generate(reference(folder), ids, do_sample=False)
    for source in sources:
        settings = {"speculate": 2, "lookahead": 2, "guess_from": source, "policy": policy}
        model, _ = mc.load(folder, slots=slots, **settings, **ALWAYS)
        with model.offload as offload:
            with mc.record(model) as trace:
                assert torch.equal(generate(model, ids, do_sample=False), expected)
            assert not offload.runtime.prefetcher.errors
            # What a guess has brought depends on time: under "none" all may have to give way.
            assert len(trace.guesses) > 0, "nothing was ever guessed"
            assert all(early.known for early in offload.runtime.prefetcher.early_routers)


# ---------------------------------------------------------------------- what is guessed
def test_a_guess_is_the_next_routers_word_on_what_this_one_was_shown(plain):
    """Against the plain model's modules, called one by one."""
    model, _ = mc.load(slots=3, **ALWAYS)
    shown, left, made = {}, {}, {}
    layers = plain.model.layers
    for i, layer in enumerate(layers):
        norm = layer.post_attention_layernorm
        norm.register_forward_pre_hook(lambda _, args, i=i: shown.update({i: args[0]}))
        layer.register_forward_hook(lambda _, args, out, i=i: left.update({i: out}))
    with model.offload as offload, torch.no_grad():
        prefetcher = offload.runtime.prefetcher
        prefetcher.wanted = lambda: True
        routing = OffloadedLayer.routing

        def note(self, index):
            for ahead in (1, 2):
                if self.number + ahead < len(layers):
                    made[self.number, ahead] = prefetcher.guess(self.number, self.number + ahead, 8)
            return routing(self, index)

        def note_output(number):
            if number + 1 < len(layers):
                made[number, "output"] = prefetcher.guess(number, number + 1, 8, from_output=True)

        prefetcher.after = note_output
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OffloadedLayer, "routing", note)
            model(IDS)  # which shows the prefetcher where each norm is
            made.clear()
            model(IDS[:, :1])
        assert torch.equal(model(IDS[:, :1]).logits, plain(IDS[:, :1]).logits)
    assert len(made) == 7 + 6 + 7
    for (number, way), guess in made.items():
        target = layers[number + (1 if way == "output" else way)]
        stream = left[number] if way == "output" else shown[number]
        with torch.no_grad():
            logits = target.mlp.gate(target.post_attention_layernorm.forward(stream))[0]
        odds = logits.float().softmax(-1)[0]
        assert guess[0].tolist() == odds.argsort(descending=True).tolist()
        assert torch.allclose(guess[1], odds.sort(descending=True).values, atol=1e-6)


def test_of_many_tokens_each_counts():
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    best, odds = likeliest((logits, torch.ones(2, 1), torch.tensor([[0], [2]])), 4, 3).tolist()
    assert {*best[:2]} == {0.0, 2.0} and odds[0] > 0.99 and odds[2] < 0.01
    assert likeliest((torch.tensor([[0], [4]]),), 4, 2)[:, 0].tolist() == [0.0, 1.0], "4: nobody"


def test_those_that_the_router_would_choose_come_first():
    """Whatever the rule: a bias, groups."""
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    output = (logits, torch.ones(1, 2), torch.tensor([[3, 2]]))
    assert likeliest(output, 4, 4)[0].tolist() == [2.0, 3.0, 0.0, 1.0]


def test_a_router_that_cannot_be_asked_ahead_of_time_is_left_alone(said, monkeypatch):
    model, _ = mc.load(slots=3, speculate=2, **ALWAYS)
    router = model.model.layers[4].mlp.gate
    forward, calls = router.forward, []

    def only_in_turn(*args):
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("not now")
        return forward(*args)

    with model.offload as offload:
        model.generate(IDS, max_new_tokens=1)
        monkeypatch.setattr(router, "forward", only_in_turn)
        check_says(model, said, "greedy")
        assert offload.runtime.prefetcher.errors == {4: "ValueError: not now"}


def test_a_router_that_raises_is_logged_once_and_named_in_the_statistics(said, monkeypatch, caplog):
    model, _ = mc.load(slots=3, speculate=2, **ALWAYS)
    routers = {layer: model.model.layers[layer].mlp.gate for layer in (4, 6)}
    in_turn = []

    def raises_early(forward, *args):
        if not in_turn:
            raise ValueError("not now\nnor later")
        return forward(*args)

    with model.offload as offload:
        assert offload.stats().speculation == ""
        for router in routers.values():
            early = functools.partial(raises_early, router.forward)
            monkeypatch.setattr(router, "forward", early)
            router.register_forward_pre_hook(lambda *_: in_turn.append(1))
            router.register_forward_hook(lambda *_: in_turn.clear())
        with caplog.at_level(logging.WARNING, "moe_colab"):
            for how in said:
                check_says(model, said, how)
        (warning,) = caplog.records
        assert warning.name == "moe_colab"
        assert "MoE layer 4," in warning.message and "ValueError: not now" in warning.message
        says = offload.stats().speculation
        assert says == offload.peek().speculation == offload.stats().as_dict()["speculation"]
        assert "layers 4, 6," in says and "(ValueError: not now)" in says
        assert offload.stats().speculative_hits + offload.stats().late > 0  # by the other layers


def test_nothing_is_asked_where_nothing_is_wanted(monkeypatch):
    from moe_colab.offload.prefetch import Prefetcher

    def refuse(*_):
        raise AssertionError("a guess that nobody wants")

    for settings in ({"speculate": 0}, {"speculate": 2, "whole_layer": True}, {"slots": 8}):
        model, _ = mc.load(**{"slots": 3, "speculate": 2, **settings}, **ALWAYS)
        with model.offload:
            if settings.get("slots") == 8:  # where nothing is missing, nothing can be guessed
                for layer in range(8):
                    for _ in model.offload.pool.experts(layer, range(8)):
                        pass
            with monkeypatch.context() as patch:
                patch.setattr(Prefetcher, "guess", refuse)
                generate(model, tokens=4)


def test_one_transfer_for_routing_logits_and_guesses(monkeypatch):
    class Reader(mc.Policy):
        needs_logits = True

        def victim(self, candidates, newcomer):
            return candidates[0]

    transfers, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: transfers.append(t.shape) or cpu(t))
    model, _ = mc.load(slots=3, speculate=2, lookahead=2, policy=Reader, **ALWAYS)
    with model.offload, torch.no_grad():
        model(IDS)
        transfers.clear()
        model(IDS[:, :3])
    sizes = [3 * 2 + 3 * 8 + ahead * 2 * 2 for ahead in (2, 2, 2, 2, 2, 2, 1, 0)]
    assert [list(shape) for shape in transfers] == [[size] for size in sizes]


def test_the_speculator_keeps_no_model_alive():
    model, _ = mc.load(slots=2, speculate=2, progress=False)
    generate(model, tokens=3)
    offload, gone = model.offload, weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    offload.close()


class Awaited(ThreadPoolExecutor):
    """Every task is done when `submit` returns."""

    def submit(self, *task):
        super().submit(*task).result(timeout=60)


class PlayedGpu:
    """In the place of torch in hooks.py and of the device: a GPU that has copied at once."""

    type = "cuda"

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def __eq__(self, device: object) -> bool:
        return device == torch.device("cpu")

    @property
    def cuda(self):
        event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
        return SimpleNamespace(Event=lambda: event)

    @staticmethod
    def empty(shape, device: str, pin_memory: bool) -> torch.Tensor:
        return torch.empty(shape)


def test_on_a_gpu_a_thread_brings_guesses_and_ends_with_the_model(said, monkeypatch):
    monkeypatch.setattr(hooks, "ThreadPoolExecutor", Awaited)
    model, _ = mc.load(slots=3, speculate=2, guess_from="layer_output", **ALWAYS)
    monkeypatch.setattr(hooks, "torch", PlayedGpu())
    monkeypatch.setattr(model.offload.runtime, "device", PlayedGpu())
    with mc.record(model) as trace:
        check_says(model, said, "greedy")
    stats = model.offload.stats()
    assert stats.speculative_hits + stats.late > 0 and len(trace.guesses)
    monkeypatch.undo()
    workers = [t for t in threading.enumerate() if t.name.startswith("moe_colab-guesses")]
    pool = weakref.ref(model.offload.pool)
    del model
    gc.collect()
    for worker in workers:
        worker.join(timeout=10)
    gc.collect()
    assert workers and not any(worker.is_alive() for worker in workers) and pool() is None


# ---------------------------------------------------------------------- what is counted
@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "random", "none"])
@pytest.mark.parametrize("source", SOURCES)
def test_who_stays_does_not_depend_on_guesses(plain, policy, source):
    """Hits are those of a naive cache without any; each load of it is spared or made once."""
    routing = plain_routing(plain, lambda model: generate(model, do_sample=False))
    model, _ = mc.load(
        slots=3, policy=policy, speculate=2, lookahead=2, guess_from=source, **ALWAYS
    )
    with model.offload as offload:
        generate(model, do_sample=False)
        offload.pool.spares.clear()  # the last guesses, for layers whose turn did not come
        stats = offload.stats()
    assert stats.speculative_hits + stats.late > 0
    nbytes = model.offload.entries[0].layout.nbytes
    for number, (layer, forwards) in enumerate(zip(stats.layers, routing, strict=True)):
        naive = NaiveLayer(policy, 3, number)
        for needed in forwards:
            naive.forward(needed)
        assert layer.accesses == naive.count["accesses"] and layer.hits == naive.count["hits"]
        assert layer.evictions == naive.count["evictions"]
        brought = layer.speculative_hits + layer.late
        assert layer.misses + brought == naive.count["loads"]
        assert layer.bytes_loaded == naive.count["loads"] * nbytes + layer.bytes_wasted
        assert layer.bypasses == (naive.count["loads"] if policy == "none" else 0)


def clocked(monkeypatch, chunks: int = 4, load: float = 1.0, **settings):
    """A loaded model whose link is a clock: a load takes so many seconds, a layer computes 1."""
    made = []

    def make_link(device):
        made.append(ClockLink(294912 / load, chunk=294912 // chunks))
        return made[-1]

    monkeypatch.setattr("moe_colab.offload.handle.make_link", make_link)
    model, _ = mc.load(slots=3, **settings, **ALWAYS)
    assert model.offload.entries[0].layout.nbytes == 294912
    with_compute_times(model.offload.pool, 0.5, 0.25)
    return model


@pytest.mark.parametrize("load", [0.25, 1.0, 5.5])
def test_in_virtual_time_every_run_counts_the_same(monkeypatch, plain, load):
    counts = []
    for _ in range(2):
        model = clocked(monkeypatch, load=load, speculate=2)
        with model.offload as offload:
            generate(model, do_sample=False)
            counts.append((offload.stats().as_dict(), offload.pool.link.now))
    assert counts[0] == counts[1]
    stats, now = counts[0]
    assert stats["late"] > 0 or load < 1
    assert now == pytest.approx(
        stats["stall_seconds"] + 0.5 * 8 * stats["forwards"] + 0.25 * stats["accesses"]
    )


# ---------------------------------------------------------------------- delays
class Dawdle(DiskHome):
    """Every chunk may be late."""

    dice = random.Random(0)

    def fill(self, buffer):
        time.sleep(self.dice.choice([0.0, 0.0, 0.002]))
        yield from super().fill(buffer)
        time.sleep(self.dice.choice([0.0, 0.0, 0.001]))


@pytest.mark.parametrize("where", ["before copies", "before computes"])
def test_delays_change_no_token(said, monkeypatch, where):
    from moe_colab.offload.slots import Block

    model, _ = mc.load(slots=2, speculate=2, lookahead=2, **ALWAYS)
    dice, views = random.Random(5), Block.views

    def late_views(self, *args):
        time.sleep(dice.choice([0.0, 0.0, 0.002]))
        return views(self, *args)

    if where == "before copies":
        for home in itertools.chain(*model.offload.pool.homes):
            home.__class__ = Dawdle
    else:
        monkeypatch.setattr(Block, "views", late_views)
    with model.offload:
        for how in said:
            check_says(model, said, how)


@pytest.mark.parametrize("seed", range(3))
def test_loads_that_end_when_they_like_change_no_token(said, monkeypatch, seed):
    """By hand: before every layer some loads of all under way move on, end, or fail as guesses."""
    dice, links = random.Random(seed), []
    monkeypatch.setattr(
        "moe_colab.offload.handle.make_link", lambda _: links.append(ManualLink()) or links[-1]
    )
    model, _ = mc.load(slots=2, speculate=2, lookahead=2, **ALWAYS)
    routing = OffloadedLayer.routing

    def shuffle(self, index):
        for ticket in links[0].pending:
            fate = dice.choice(["wait", "begin", "finish", "fail"])
            if fate == "begin":
                links[0].begin(ticket, dice.randint(1, ticket.home.nbytes))
            elif fate == "finish":
                links[0].finish(ticket)
            elif fate == "fail":
                links[0].fail(ticket, mc.MoEColabError("gone"))
        return routing(self, index)

    monkeypatch.setattr(OffloadedLayer, "routing", shuffle)
    with model.offload as offload:
        for how in said:
            check_says(model, said, how)
        assert blocks_counted(offload.pool) == 8 * 2 + SPARES
        assert offload.stats().speculative_hits > 0


def test_without_the_wait_for_a_load_other_tokens_come(said, monkeypatch):
    """The tests above would see it."""
    from moe_colab.cache.links import Ticket

    monkeypatch.setattr("moe_colab.offload.handle.make_link", lambda _: ManualLink())
    model, _ = mc.load(slots=2, speculate=2, **ALWAYS)
    monkeypatch.setattr(Ticket, "wait", lambda self, counters=None: None)
    with model.offload, pytest.raises(AssertionError):
        check_says(model, said, "greedy")


# ---------------------------------------------------------------------- errors
def test_a_read_error_is_heard_where_the_expert_is_needed_and_only_there(said, monkeypatch):
    model, _ = mc.load(slots=2, speculate=2, **ALWAYS)
    fill, broken = DiskHome.fill, set()

    def may_fail(self, buffer):
        if self.label in broken:
            raise mc.MoEColabError(f"{self.label} cannot be read")
        yield from fill(self, buffer)

    monkeypatch.setattr(DiskHome, "fill", may_fail)
    with model.offload as offload:
        check_says(model, said, "greedy")
        threads = threading.active_count()
        for number in range(len(offload.pool.homes)):
            broken.add(offload.pool.homes[number][3].label)
            try:
                check_says(model, said, "greedy")
            except mc.MoEColabError as error:
                assert str(error).endswith("cannot be read")
            broken.clear()
            check_says(model, said, "greedy")
        assert threading.active_count() == threads
        assert blocks_counted(offload.pool) == 8 * 2 + SPARES


def test_guesses_that_cannot_be_read_are_never_heard_of(said, monkeypatch):
    model, _ = mc.load(slots=2, speculate=2, **ALWAYS)
    with model.offload as offload:
        start = offload.pool.link.start

        def start_badly(home, block, after, urgent):
            ticket = start(home, block, after, urgent)
            if not urgent:
                ticket.wait()
                ticket.state, ticket.moved = "failed", 0
            return ticket

        monkeypatch.setattr(offload.pool.link, "start", start_badly)
        for how in said:
            check_says(model, said, how)
        stats = offload.stats()
        assert stats.speculative_hits == stats.late == stats.bytes_wasted == 0


def test_closing_with_guesses_under_way_leaves_nothing():
    before = set(threading.enumerate())
    model, _ = mc.load(slots=2, speculate=2, guess_from="layer_output", **ALWAYS)
    generate(model, tokens=3)
    model.offload.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(mc.MoEColabError, match="closed"):
        generate(model)
    with pytest.raises(mc.MoEColabError, match="closed"):
        model.offload.speculate = 3


# ---------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("speculate", -1, "speculate must be a number of guesses per layer, 0 for none, not -1"),
        ("speculate", True, "speculate must be"),
        ("speculate", "2", "speculate must be"),
        ("lookahead", 0, "lookahead must be 1 to 2 layers, not 0"),
        ("lookahead", 3, "lookahead must be"),
        ("guess_from", "norm", "guess_from must be 'router_input' or 'layer_output', not 'norm'"),
        ("guess_threshold", 1.5, "guess_threshold must be a probability from 0 to 1, not 1.5"),
        ("guess_threshold", "high", "guess_threshold must be"),
        ("stand_aside", 1, "stand_aside must be True or False, not 1"),
    ],
)
def test_a_wrong_setting_is_refused_in_words(name, value, message):
    with pytest.raises(mc.MoEColabError, match=message):
        mc.load(**{name: value}, progress=False)
    model, _ = mc.load(slots=2, progress=False)
    with model.offload as offload:
        before = getattr(offload, name)
        with pytest.raises(mc.MoEColabError, match=message):
            setattr(offload, name, value)
        assert getattr(offload, name) == before


def test_a_threshold_of_one_makes_no_guess(plain):
    model, _ = mc.load(slots=2, speculate=2, guess_threshold=1.0, **ALWAYS)
    with model.offload as offload:
        generate(model)
        stats = offload.stats()
        assert stats.speculative_hits == stats.late == stats.bytes_wasted == 0
        offload.guess_threshold = 0.0
        generate(model)
        assert offload.stats().speculative_hits + offload.stats().late > 0

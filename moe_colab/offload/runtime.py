"""Runtime: what the forward of one offloaded model needs, shared by its layers and its handle.

Knows the pool, its settings, and which guesses are worth making; knows no transformers model.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ..cache.governor import Governor
from ..cache.homes import Home
from ..cache.layer_cache import LayerCache
from ..cache.links import Link
from ..cache.policies import make_policy, policy_name
from ..cache.pool import Pool
from ..cache.settings import PrefetchSettings
from ..cache.spares import SPARES
from ..cache.stats import StatsTracker
from ..store import LayerEntry
from .experts import refuse_copies
from .forwards import Forwards
from .prefetch import Prefetcher
from .settings import Settings
from .slots import Block, allocate


@dataclass(eq=False)
class Runtime:
    """Made once per model. `settings` (checked) and `pool` change while the model lives, under
    `lock`; they hold from the next MoE layer on.

    entries: the store's MoE layers. tracker: the running counters. check_stop: called before every
    MoE layer; may raise. forwards: those under way.
    """

    device: torch.device
    dtype: torch.dtype
    model_type: str
    entries: Sequence[LayerEntry]
    settings: Settings
    tracker: StatsTracker
    lock: threading.RLock = field(default_factory=threading.RLock)
    check_stop: Callable[[], None] = lambda: None
    forwards: Forwards = field(default_factory=Forwards)
    pool: Pool = field(init=False)
    prefetcher: Prefetcher = field(init=False)

    __reduce_ex__ = refuse_copies

    @property
    def prefetch(self) -> PrefetchSettings:
        return self.settings.prefetch

    @property
    def policy(self) -> str:
        """The policy's name."""
        return policy_name(self.settings.policy)

    @property
    def needs_logits(self) -> bool:
        """Whether a policy reads the router's logits."""
        return any(cache.policy.needs_logits for cache in self.pool.caches)

    # ------------------------------------------------------------------ guesses
    def wants_guesses(self) -> bool:
        """Whether guesses are made now: they are asked for, and the governor allows them."""
        wanted = self.prefetch.speculate > 0 and not self.settings.whole_layer
        return wanted and self.pool.wants_guesses

    def guesses(self, number: int, guess_from: str) -> dict[int, torch.Tensor]:
        """{layer: float [2, n] on the device, expert ids and probabilities} for the layers after
        MoE layer `number` that may need a load; {} where guesses are made from another tensor than
        `guess_from`, or not at all."""
        prefetch, out = self.prefetch, {}
        if prefetch.guess_from != guess_from or not self.wants_guesses():
            return out
        from_output = guess_from == "layer_output"
        for layer in range(number + 1, min(number + prefetch.lookahead + 1, len(self.entries))):
            if self.pool.lacks_any(layer):
                guess = self.prefetcher.guess(number, layer, prefetch.speculate, from_output)
                if guess is not None:
                    out[layer] = guess
        return out

    def renew_locks(self) -> None:
        """In a forked process: other threads, which held the old ones, do not live here."""
        self.lock, self.forwards = threading.RLock(), Forwards()
        self.pool.link.changed = threading.Condition()

    # ------------------------------------------------------------------ building the pool
    def make_pool(self, slots: Sequence[int], homes: Sequence[Sequence[Home]], link: Link) -> Pool:
        """A pool with empty slots; experts whose home is the device are loaded. Raises
        MoEColabError where that fails."""
        sizes = [entry.layout.nbytes for entry in self.entries]
        try:
            pool = Pool(
                link,
                homes,
                [self._allocate(n, nbytes) for n, nbytes in zip(slots, sizes, strict=True)],
                [self.make_cache(layer, n) for layer, n in enumerate(slots)],
                spares={nbytes: self._allocate(SPARES, nbytes) for nbytes in sorted({*sizes})},
                pinned=self._load_pinned(homes, link),
                tracker=self.tracker,
                governor=self.make_governor(link),
            )
        except BaseException:
            link.close()  # or its thread would wait forever
            raise
        weakref.finalize(pool, link.stop)
        return pool

    def make_cache(self, layer: int, slots: int) -> LayerCache:
        policy = "none" if self.settings.whole_layer else self.settings.policy
        return LayerCache(make_policy(policy, self.entries[layer].experts, layer), slots)

    def make_governor(self, link: Link) -> Governor | None:
        wanted = self.prefetch.speculate and self.prefetch.stand_aside
        return Governor(link.time) if wanted else None

    def _allocate(self, count: int, nbytes: int) -> list[Block]:
        return allocate(count, nbytes, self.device, self.settings.kernels)

    def _load_pinned(self, homes: Sequence[Sequence[Home]], link: Link) -> list[dict[int, Block]]:
        """By layer, blocks beside the slots, each with one expert that is never evicted."""
        pinned = []
        for layer, experts in enumerate(self.settings.pinned):
            blocks = self._allocate(len(experts), self.entries[layer].layout.nbytes)
            pinned.append(dict(zip(experts, blocks, strict=True)))
            for expert, block in pinned[-1].items():
                link.start(homes[layer][expert], block, link.mark(), True).wait()
        return pinned

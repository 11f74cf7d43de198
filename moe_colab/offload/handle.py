"""The handle of an offloaded model: `model.offload`. Settings, statistics, and where each expert
lies.

Builds the pool for a loaded model and changes it live. Knows no forward: attachment.py does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..cache import policies
from ..cache.governor import Governor
from ..cache.links import Link, ThreadLink
from ..cache.pool import Place, Pool
from ..cache.settings import check_slots
from ..cache.spares import SPARES
from ..cache.stats import Ledger, Stats
from ..checkpoint import families
from ..errors import MoEColabError
from ..quantization.kernels.dispatch import AUTO
from ..store import Store
from . import lowbit_modules, placement
from .hooks import attach
from .settings import Settings
from .slots import Block, allocate

_open: weakref.WeakSet[Offload] = weakref.WeakSet()


def close_all() -> None:
    """Close every model that was loaded and is still open: a notebook's load cell calls it, so that
    running the cell again frees the last model before the next one needs its memory."""
    for handle in list(_open):
        handle.close()


def prefetch_setting(name: str, doc: str) -> property:
    """One field of `prefetch`, to be set on the handle."""

    def change(handle: Offload, value: object) -> None:
        prefetch = replace(handle.prefetch, **{name: value})
        with handle.lock:
            handle.pool.check_open()
            handle.prefetch = prefetch
            handle.pool.govern(handle._make_governor(handle.pool.link))

    return property(lambda handle: getattr(handle.prefetch, name), change, doc=doc)


class Offload:
    """The handle. `slots` (an int, or one per layer), `policy`, `speculate`, `lookahead`,
    `guess_from`, `guess_threshold` and `stand_aside` can be set at any time and hold from the next
    layer on; new slots start empty. A context manager: leaving it closes the model."""

    speculate = prefetch_setting("speculate", "Guesses for each later layer; 0: none.")
    lookahead = prefetch_setting("lookahead", "How many layers ahead is guessed, 1 or 2.")
    guess_from = prefetch_setting("guess_from", '"router_input" or "layer_output".')
    guess_threshold = prefetch_setting("guess_threshold", "How probable a guess must be.")
    stand_aside = prefetch_setting("stand_aside", "Guess less, or not, where it does not pay?")

    def __init__(
        self,
        model: torch.nn.Module,
        store: Store,
        settings: Settings,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.device, self.dtype = device, dtype
        self.name = store.manifest.source["id"]
        self.model_type = model.config.get_text_config().model_type
        self.lock = threading.RLock()
        self.answering = threading.Lock()  # held by the one conversation that generates now
        self.check_stop: Callable[[], None] = lambda: None  # asked before every layer; may raise
        self.make_link: Callable[[torch.device], Link] | None = None  # of the next pool's, if any
        self.entries, self.store = store.manifest.layers, store.folder
        self.experts = [entry.experts for entry in self.entries]
        settings = settings.checked(self.experts)
        self._policy, self.whole_layer = settings.policy, settings.whole_layer
        self._pinned, self._kernels = settings.pinned, settings.kernels
        self.prefetch = settings.prefetch
        working = lowbit_modules.working_bytes(model, self._kernels)
        self._memory = placement.device_memory(
            *(self.entries, self._pinned, dense_bytes(model), working),
            *(dtype, device, self._kernels),
        )
        self._slots = settings.slots
        if settings.slots == AUTO:
            top_k = families.top_k(model.config)
            self._slots = placement.fitting_slots(self._memory, settings.vram, top_k, device)
        placement.check_free_memory(self._memory, self._slots, device)
        ram = settings.ram
        if ram is None and all(n >= e for n, e in zip(self._slots, self.experts, strict=True)):
            ram = 0  # every expert will be in a slot: a copy of it in host memory serves nobody
        self.homes = placement.make_homes(store.homes, ram, device, self._pinned)
        self.ledger = Ledger(len(self.entries))
        self.prefetcher = attach(model, self)
        self.pool = self._make_pool(self._slots)
        self._model = weakref.ref(model)
        _open.add(self)

    # ------------------------------------------------------------------ settings
    @property
    def slots(self) -> int | list[int]:
        """Device slots of each layer: one number where they are all equal."""
        return self._slots[0] if len(set(self._slots)) == 1 else list(self._slots)

    @slots.setter
    def slots(self, slots: int | Sequence[int]) -> None:
        slots = check_slots(slots, self.experts)
        with self.lock:
            self.pool.check_open()
            if slots == self._slots:
                return
            self.pool.close()
            try:
                placement.check_free_memory(self._memory, slots, self.device)
                self.pool = self._make_pool(slots)
            except BaseException:
                self.pool = self._make_pool(self._slots)
                raise
            self._slots = slots

    @property
    def policy(self) -> str:
        return policies.policy_name(self._policy)

    @policy.setter
    def policy(self, policy: policies.PolicySpec) -> None:
        policies.make_policy(policy, self.experts[0])
        with self.lock:
            self.pool.check_open()
            self._policy = policy
            for number in range(len(self.entries)):
                self.pool.change_cache(number, self._make_cache(number, self._slots[number]))

    @property
    def policy_spec(self) -> policies.PolicySpec:
        """The policy as it was given: a name, or a class."""
        return self._policy

    @property
    def needs_logits(self) -> bool:
        return any(getattr(policies.policy, "needs_logits", False) for policies in self.pool.caches)

    # ------------------------------------------------------------------ questions
    def stats(self) -> Stats:
        """What was counted since loading or `reset_stats()`."""
        with self.lock:
            self.pool.link.book_stalls()
            return self.peek()

    def peek(self) -> Stats:
        """`stats()` without waiting for the layer that is at work: what it moves may be missing."""
        governor = self.pool.governor
        return replace(self.ledger.stats(), speculation=governor.says() if governor else "")

    def reset_stats(self) -> None:
        with self.lock:
            self.pool.link.book_stalls()
            self.ledger.reset()

    def where(self, layer: int, expert: int) -> Place:
        """Where one expert lies now: its home and its slot."""
        with self.lock:
            self.pool.check_open()
            return self.pool.where(layer, expert)

    def census(self) -> dict[str, int]:
        """Experts by home and blocks by state, over all layers."""
        with self.lock:
            return self.pool.census()

    def memory(self) -> list[dict[str, object]]:
        """Where this model's bytes lie, for mc.plots.memory: a row for each place ("device",
        "host", "disk") and part, with its bytes. An expert counts where its home is; slots and
        spares are room for copies of others."""
        with self.lock:
            self.pool.check_open()
            return placement.memory_table(self._memory, self._slots, self._pinned, self.homes)

    @property
    def store_bytes(self) -> int:
        """All experts together."""
        return sum(entry.experts * entry.layout.nbytes for entry in self.entries)

    @property
    def closed(self) -> bool:
        return self.pool.closed

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """Free the slots, the files and the rest of the model's weights, whoever still holds the
        model. It cannot be used afterwards; closing twice is fine."""
        with self.lock:
            self.pool.close()
            self.homes = self.pool.homes = []
            if (model := self._model()) is not None:
                lowbit_modules.release(model)
                for tensor in (*model.parameters(), *model.buffers()):
                    tensor.data = tensor.data.new_empty(0)
        _open.discard(self)

    def __deepcopy__(self, memo) -> Offload:
        raise MoEColabError("an offloaded model cannot be copied: load it a second time.")

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        experts = sum(self.experts)
        state = "closed" if self.closed else f"slots={self.slots}, policy={self.policy!r}"
        return (
            f"<Offload {len(self.entries)} MoE layers, {experts} experts, {state}, {self.device}>"
        )

    # ------------------------------------------------------------------ building
    def _make_cache(self, number: int, slots: int) -> policies.LayerCache:
        policy = "none" if self.whole_layer else self._policy
        return policies.LayerCache(
            policies.make_policy(policy, self.experts[number], number), slots
        )

    def _make_governor(self, link: Link) -> Governor | None:
        wanted = self.prefetch.speculate and self.prefetch.stand_aside
        return Governor(link.time) if wanted else None

    def _make_pool(self, slots: Sequence[int]) -> Pool:
        sizes = {entry.layout.nbytes for entry in self.entries}
        link = (self.make_link or make_link)(self.device)
        try:
            pinned = self._load_pinned(link)
        except BaseException:
            link.close()  # or its thread would wait for good
            raise
        pool = Pool(
            link,
            self.homes,
            [
                self._allocate(n, entry.layout.nbytes)
                for n, entry in zip(slots, self.entries, strict=True)
            ],
            [self._make_cache(number, n) for number, n in enumerate(slots)],
            spares={n: self._allocate(SPARES, n) for n in sorted(sizes)},
            pinned=pinned,
            ledger=self.ledger,
            governor=self._make_governor(link),
        )
        weakref.finalize(pool, link.stop)
        return pool

    def _allocate(self, count: int, nbytes: int) -> list[Block]:
        return allocate(count, nbytes, self.device, self._kernels)

    def _load_pinned(self, link: Link) -> list[dict]:
        """Experts whose home is the device: loaded now, never evicted, in blocks beside the
        slots."""
        pinned = []
        for number, entry in enumerate(self.entries):
            experts = self._pinned[number]
            room = self._allocate(len(experts), entry.layout.nbytes)
            blocks = dict(zip(experts, room, strict=True))
            for expert, block in blocks.items():
                link.start(self.homes[number][expert], block, link.mark(), True).wait()
            pinned.append(blocks)
        return pinned


def dense_bytes(model: torch.nn.Module) -> int:
    """Of all but the experts."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def make_link(device: torch.device) -> Link:
    if device.type != "cuda":
        return ThreadLink()
    from .cuda import CudaLink

    return CudaLink(device)

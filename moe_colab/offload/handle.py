"""The handle of an offloaded model, `model.offload`: its settings, statistics and memory.

Changes a model's pool while it lives. Knows no forward: hooks.py and experts.py do.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter

import torch

from ..cache.homes import Home
from ..cache.links import Link, ThreadLink
from ..cache.policies import PolicySpec, make_policy
from ..cache.pool import Place, Pool
from ..cache.settings import PrefetchSettings, check_slots
from ..cache.stats import Stats, StatsTracker
from ..checkpoint import families
from ..errors import MoEColabError
from ..quantization.kernels.dispatch import AUTO
from ..store import Store
from . import lowbit_modules, placement
from .experts import refuse_copies
from .hooks import attach
from .runtime import Runtime
from .settings import Settings

_open: weakref.WeakSet[Offload] = weakref.WeakSet()


def close_all() -> None:
    """Close every model that was loaded and is still open: a notebook's load cell calls it, so that
    running the cell again frees the last model before the next one needs its memory."""
    for handle in list(_open):
        handle.close()


def _renew_after_fork() -> None:
    for handle in list(_open):
        handle._after_fork()


os.register_at_fork(after_in_child=_renew_after_fork)


def prefetch_setting(name: str, doc: str) -> property:
    """One field of `Offload.prefetch` as a property of the handle."""

    def change(handle: Offload, value: object) -> None:
        handle.prefetch = replace(handle.prefetch, **{name: value})

    return property(attrgetter(f"prefetch.{name}"), change, doc=doc)


class Offload:
    """The handle of an offloaded model. A context manager: leaving it closes the model.

    `slots` (an int, or one per layer), `policy`, `speculate`, `lookahead`, `guess_from`,
    `guess_threshold` and `stand_aside` can be set at any time and hold from the next MoE layer on;
    new slots start empty. `mc.load` explains each of them.
    """

    speculate = prefetch_setting("speculate", "Experts to prefetch for each later layer; 0: none.")
    lookahead = prefetch_setting("lookahead", "How many layers ahead to prefetch: 1 or 2.")
    guess_from = prefetch_setting("guess_from", '"router_input" or "layer_output".')
    guess_threshold = prefetch_setting("guess_threshold", "The least probability of a prefetch.")
    stand_aside = prefetch_setting("stand_aside", "Prefetch less where it saves no time?")

    def __init__(
        self,
        model: torch.nn.Module,
        store: Store,
        settings: Settings,
        device: torch.device,
        dtype: torch.dtype,
    ):
        """Let `model`, loaded without its experts, compute with those of `store`. Raises
        MoEColabError where a setting is wrong or memory is short."""
        self.name, self.store = store.manifest.source["id"], store.folder
        self.model_type = model.config.get_text_config().model_type
        self.device, self.dtype = device, dtype
        self.entries = store.manifest.layers
        self.experts = [entry.experts for entry in self.entries]
        self.answering = threading.Lock()  # held by the one conversation that generates now
        self.emptied_by_close: weakref.WeakSet = weakref.WeakSet()  # what also has clear()
        self.make_link: Callable[[torch.device], Link] | None = None  # for the next pool, if set
        settings = settings.checked(self.experts)
        self.whole_layer = settings.whole_layer
        working = lowbit_modules.working_bytes(model, settings.kernels)
        self._memory = placement.device_memory(
            *(self.entries, settings.pinned, dense_bytes(model), working),
            *(dtype, device, settings.kernels),
        )
        if settings.slots == AUTO:
            top_k = families.top_k(model.config)
            slots = placement.fitting_slots(self._memory, settings.vram, top_k, device)
            settings = replace(settings, slots=slots)
        placement.check_free_memory(self._memory, settings.slots, device)
        ram = settings.ram
        if ram is None and all(n >= e for n, e in zip(settings.slots, self.experts, strict=True)):
            ram = 0  # every expert will be in a slot and needs no copy in host memory
        homes = placement.make_homes(store.homes, ram, device, settings.pinned)
        tracker = StatsTracker(len(self.entries))
        self.runtime = Runtime(device, dtype, self.model_type, self.entries, settings, tracker)
        self.runtime.prefetcher = attach(model, self.runtime)
        self.runtime.pool = self._make_pool(settings.slots, homes)
        self._model = weakref.ref(model)
        _open.add(self)

    # ------------------------------------------------------------------ settings
    @property
    def slots(self) -> int | list[int]:
        """Device slots of each layer: one number where they are all equal."""
        slots = self.runtime.settings.slots
        return slots[0] if len(set(slots)) == 1 else list(slots)

    @slots.setter
    def slots(self, slots: int | Sequence[int]) -> None:
        slots, runtime = check_slots(slots, self.experts), self.runtime
        with runtime.lock:
            self.pool.check_open()
            before = runtime.settings
            if slots == before.slots:
                return
            self.pool.close()
            homes = self.pool.homes
            try:
                placement.check_free_memory(self._memory, slots, self.device)
                runtime.pool = self._make_pool(slots, homes)
            except BaseException:
                runtime.pool = self._make_pool(before.slots, homes)
                raise
            runtime.settings = replace(before, slots=slots)

    @property
    def policy(self) -> str:
        """The name of the eviction policy; can be set to a name or a class."""
        return self.runtime.policy

    @policy.setter
    def policy(self, policy: PolicySpec) -> None:
        make_policy(policy, self.experts[0])
        runtime = self.runtime
        with runtime.lock:
            self.pool.check_open()
            runtime.settings = replace(runtime.settings, policy=policy)
            for layer, slots in enumerate(runtime.settings.slots):
                self.pool.change_cache(layer, runtime.make_cache(layer, slots))

    @property
    def policy_spec(self) -> PolicySpec:
        """The policy as it was given: a name, or a class."""
        return self.runtime.settings.policy

    @property
    def prefetch(self) -> PrefetchSettings:
        """All settings of the prefetch in one object; can be set."""
        return self.runtime.prefetch

    @prefetch.setter
    def prefetch(self, prefetch: PrefetchSettings) -> None:
        runtime = self.runtime
        with runtime.lock:
            self.pool.check_open()
            runtime.settings = replace(runtime.settings, prefetch=prefetch)
            self.pool.govern(runtime.make_governor(self.pool.link))

    # ------------------------------------------------------------------ questions
    @property
    def pool(self) -> Pool:
        """The pool of now; another one after `slots` was set."""
        return self.runtime.pool

    def stats(self) -> Stats:
        """What was counted since loading or `reset_stats()`."""
        with self.runtime.lock:
            self.pool.link.book_stalls()
            return self.peek()

    def peek(self) -> Stats:
        """`stats()` without waiting for the layer that runs now: its stall time may be missing."""
        governor, prefetcher = self.pool.governor, self.runtime.prefetcher
        clauses = [governor.says() if governor else "", prefetcher.describe_errors()]
        speculation = "; ".join(filter(None, clauses))
        return replace(self.runtime.tracker.stats(), speculation=speculation)

    def reset_stats(self) -> None:
        """Set every counter to 0."""
        with self.runtime.lock:
            self.pool.link.book_stalls()
            self.runtime.tracker.reset()

    def where(self, layer: int, expert: int) -> Place:
        """Where one expert is now: its home and its slot. Raises MoEColabError once closed."""
        with self.runtime.lock:
            self.pool.check_open()
            return self.pool.where(layer, expert)

    def memory(self) -> list[dict[str, object]]:
        """The bytes of this model, for mc.plots.memory: one row per place ("device", "host",
        "disk") and part. An expert counts where its home is; slots and spares hold copies. Raises
        MoEColabError once closed."""
        with self.runtime.lock:
            self.pool.check_open()
            slots, pinned = self.runtime.settings.slots, self.runtime.settings.pinned
            return placement.memory_table(self._memory, slots, pinned, self.pool.homes)

    @property
    def store_bytes(self) -> int:
        """Bytes of all experts together."""
        return sum(entry.experts * entry.layout.nbytes for entry in self.entries)

    @property
    def closed(self) -> bool:
        return self.pool.closed

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """Free the slots, the files and the rest of the model's weights, even while the model is
        still referenced. It cannot be used afterwards; closing twice is fine. A forward of another
        thread ends with MoEColabError, and is waited for."""
        with self.runtime.lock:
            self.pool.close()
            self.pool.homes = []
        self.runtime.forwards.run_after(self._free)
        for other in list(self.emptied_by_close):
            other.clear()
        _open.discard(self)

    def _free(self) -> None:
        """Free the weights of everything but the experts."""
        if (model := self._model()) is not None:
            lowbit_modules.release(model)
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.new_empty(0)

    def _after_fork(self) -> None:
        """In a process that was forked from this one: the thread that loads experts does not live
        here, so the slots start empty."""
        self.answering = threading.Lock()
        self.runtime.renew_locks()
        if self.device.type == "cpu" and not self.closed:
            torch.set_num_threads(1)  # the other OpenMP threads do not live here either
            self.runtime.pool = self._make_pool(self.runtime.settings.slots, self.pool.homes)

    __reduce_ex__ = refuse_copies

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        layers, experts = len(self.entries), sum(self.experts)
        state = "closed" if self.closed else f"slots={self.slots}, policy={self.policy!r}"
        return f"<Offload {layers} MoE layers, {experts} experts, {state}, {self.device}>"

    def _make_pool(self, slots: Sequence[int], homes: Sequence[Sequence[Home]]) -> Pool:
        return self.runtime.make_pool(slots, homes, (self.make_link or make_link)(self.device))


def offload_of(model: object, rule: str = "only a model of mc.load() can be recorded") -> Offload:
    """A model's handle. Raises MoEColabError, which begins with `rule`, where there is none."""
    handle = getattr(model, "offload", None)
    if not isinstance(handle, Offload):
        raise MoEColabError(f"{rule}, and this is {type(model).__name__}.")
    return handle


def dense_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights but the experts'."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def make_link(device: torch.device) -> Link:
    """The link that loads experts to `device`."""
    if device.type != "cuda":
        return ThreadLink()
    from .cuda import CudaLink

    return CudaLink(device)

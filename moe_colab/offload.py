"""The handle of an offloaded model: `model.offload`. Settings, statistics, and where each expert
lies.

Builds the pool for a loaded model and attaches its experts modules to it. Knows transformers'
modules from outside.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from transformers import Cache

from . import cache, families, placement
from .counters import Ledger, Stats
from .errors import MoEColabError
from .links import Link, ThreadLink
from .pool import Place, Pool
from .slots import allocate
from .store import BlobLayout, Store


class Layer:
    """What one experts module is attached to: the engine's way to the pool."""

    def __init__(self, offload: Offload, number: int, module: torch.nn.Module, layout: BlobLayout):
        self.offload, self.number, self.layout = offload, number, layout
        self.experts = module.num_experts
        self.lock = offload.lock
        self.sum_dtype = families.sum_dtype(offload.model_type, offload.dtype)
        self.router = threading.local()  # `logits` [T, E] of this thread's forward, kept by a hook

    def check_input(self, hidden_states: torch.Tensor) -> None:
        if hidden_states.dtype != self.offload.dtype or hidden_states.device != self.offload.device:
            raise MoEColabError(
                f"the experts are {self.offload.dtype} on {self.offload.device}, their input is "
                f"{hidden_states.dtype} on "
                f"{hidden_states.device}: do not move or cast a loaded model, load it with "
                "device=... and dtype=..."
            )

    def routing(self, top_k_index: torch.Tensor) -> tuple[np.ndarray, cache.Tokens | None]:
        """top_k_index [T, K] on the host, and what the policy is shown; one transfer for both."""
        if not self.offload.needs_logits:
            return top_k_index.cpu().numpy(), None
        logits = self.router.__dict__.pop("logits", None)
        if logits is None or len(logits) != len(top_k_index):
            raise MoEColabError(
                f"policy {self.offload.policy!r} needs the router's logits, and MoE layer "
                f"{self.number} of this "
                "family shows none: choose another policy."
            )
        both = torch.cat([top_k_index.double(), logits.double()], dim=1).cpu().numpy()
        index = both[:, : top_k_index.shape[1]].astype(np.int64)
        return index, list(
            zip(index.tolist(), both[:, top_k_index.shape[1] :].tolist(), strict=True)
        )

    def weights(self, needed: list[int], tokens) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Each needed expert once, with its matrices, in the order in which they can be had."""
        if self.offload.whole_layer:
            needed = list(range(self.experts))
        for expert, block in self.offload.pool.experts(self.number, needed, tokens):
            yield expert, block.views(self.layout)


class Offload:
    """The handle. `slots` (an int, or one per layer) and `policy` can be set at any time and hold
    from the next layer on; new slots start empty. A context manager: leaving it closes the
    model."""

    def __init__(
        self,
        model: torch.nn.Module,
        store: Store,
        *,
        slots: int | Sequence[int] | str,
        policy: cache.PolicySpec,
        device: torch.device,
        dtype: torch.dtype,
        vram: int | None,
        ram: int | None,
        resident: Mapping[int, Sequence[int]] | None = None,
        whole_layer: bool = False,
    ):
        self.device, self.dtype, self.whole_layer = device, dtype, whole_layer
        self.model_type = model.config.get_text_config().model_type
        self.lock = threading.RLock()
        self.entries = store.manifest.layers
        self.store = store.folder
        self._resident = check_resident(resident or {}, self.entries)
        self._policy = check_policy(policy, self.entries)
        if isinstance(slots, str):
            if slots != "auto":
                raise MoEColabError(
                    f'slots must be a number, a number per layer, or "auto", not {slots!r}.'
                )
            dense = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
            top_k = families.top_k(model.config)
            slots = placement.fitting_slots(
                self.entries, self._resident, vram, dense, top_k, device
            )
        self._slots = check_slots(slots, self.entries)
        placement.check_room(self.entries, self._slots, self._resident, device)
        self.homes = placement.make_homes(store.homes, ram, device, self._resident)
        self.ledger = Ledger(len(self.entries))
        modules = families.experts_modules(model)
        self._layers = [
            Layer(self, number, module, entry.layout)
            for number, ((_, module), entry) in enumerate(zip(modules, self.entries, strict=True))
        ]
        self._attach(model, modules)
        self.pool = self._make_pool()

    # ------------------------------------------------------------------ settings
    @property
    def slots(self) -> int | list[int]:
        """Device slots of each layer: one number where they are all equal."""
        return self._slots[0] if len(set(self._slots)) == 1 else list(self._slots)

    @slots.setter
    def slots(self, slots: int | Sequence[int]) -> None:
        slots = check_slots(slots, self.entries)
        with self.lock:
            self._check_open()
            if slots != self._slots:
                before, self._slots = self._slots, slots
                self.pool.close()
                try:
                    placement.check_room(self.entries, slots, self._resident, self.device)
                except MoEColabError:
                    self._slots = before
                    raise
                finally:
                    self.pool = self._make_pool()

    @property
    def policy(self) -> str:
        return cache.policy_name(self._policy)

    @policy.setter
    def policy(self, policy: cache.PolicySpec) -> None:
        policy = check_policy(policy, self.entries)
        with self.lock:
            self._check_open()
            self._policy = policy
            for number in range(len(self.entries)):
                self.pool.change_cache(number, self._make_cache(number))

    @property
    def needs_logits(self) -> bool:
        return getattr(self.pool.caches[0].policy, "needs_logits", False)

    # ------------------------------------------------------------------ questions
    def stats(self) -> Stats:
        """What was counted since loading or `reset_stats()`."""
        with self.lock:
            self.pool.link.settle()
            return self.ledger.stats()

    def reset_stats(self) -> None:
        with self.lock:
            self.pool.link.settle()
            self.ledger.reset()

    def where(self, layer: int, expert: int) -> Place:
        """Where one expert lies now: its home and its slot."""
        with self.lock:
            self._check_open()
            return self.pool.where(layer, expert)

    def census(self) -> dict[str, int]:
        """Experts by home and blocks by state, over all layers."""
        with self.lock:
            return self.pool.census()

    @property
    def store_bytes(self) -> int:
        """All experts together."""
        return sum(entry.experts * entry.layout.nbytes for entry in self.entries)

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """Free the slots and the files. The model cannot be used afterwards; closing twice is
        fine."""
        with self.lock:
            self.pool.close()
            self.homes = self.pool.homes = []

    def __enter__(self) -> Offload:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        experts = sum(entry.experts for entry in self.entries)
        state = "closed" if self.pool.closed else f"slots={self.slots}, policy={self.policy!r}"
        return (
            f"<Offload {len(self.entries)} MoE layers, {experts} experts, {state}, {self.device}>"
        )

    # ------------------------------------------------------------------ building
    def _check_open(self) -> None:
        if self.pool.closed:
            raise MoEColabError("this model was closed: load it again with mc.load().")

    def _attach(self, model: torch.nn.Module, modules: list[tuple[str, torch.nn.Module]]) -> None:
        for (name, module), layer in zip(modules, self._layers, strict=True):
            module.moe_colab_layer = layer
            router = families.router_of(model, name)
            if router is not None:
                router.register_forward_hook(
                    lambda _, __, output, layer=layer: self._keep_logits(layer, output)
                )
        model.register_forward_pre_hook(self._begin_forward, with_kwargs=True)

    def _keep_logits(self, layer: Layer, output) -> None:
        if self.needs_logits:
            layer.router.logits = families.router_logits(output, layer.experts)

    def _begin_forward(self, model, args, kwargs) -> None:
        inputs = kwargs.get("input_ids")
        if inputs is None:
            inputs = args[0] if args else kwargs.get("inputs_embeds")
        rows, length = inputs.shape[:2]
        started = length == 1 and has_past(kwargs)
        self.ledger.forward("decode" if started else "prompt", rows * length)

    def _make_cache(self, number: int) -> cache.LayerCache:
        policy = "none" if self.whole_layer else self._policy
        return cache.LayerCache(
            cache.make_policy(policy, self.entries[number].experts, number), self._slots[number]
        )

    def _make_pool(self) -> Pool:
        largest = max(entry.layout.nbytes for entry in self.entries)
        link = make_link(self.device, largest)
        try:
            permanent = self._load_permanent(link)
        except BaseException:
            link.close()  # or its thread would wait for good
            raise
        pool = Pool(
            link,
            self.homes,
            [
                allocate(n, e.layout.nbytes, self.device)
                for n, e in zip(self._slots, self.entries, strict=True)
            ],
            [self._make_cache(number) for number in range(len(self.entries))],
            spares=allocate(placement.SPARES, largest, self.device),
            permanent=permanent,
            ledger=self.ledger,
        )
        weakref.finalize(pool, link.stop)
        return pool

    def _load_permanent(self, link: Link) -> list[dict]:
        """Experts whose home is the device: loaded now, never evicted, in blocks beside the
        slots."""
        permanent = []
        for number, entry in enumerate(self.entries):
            experts = self._resident[number]
            blocks = dict(
                zip(experts, allocate(len(experts), entry.layout.nbytes, self.device), strict=True)
            )
            for expert, block in blocks.items():
                link.start(self.homes[number][expert], block, None, True).wait()
            permanent.append(blocks)
        return permanent


# ---------------------------------------------------------------------- checks and pieces
def check_slots(slots: int | Sequence[int], entries: Sequence) -> list[int]:
    """One number per layer. Raises MoEColabError for 0, for more than the layer has experts, for a
    wrong length."""
    if isinstance(slots, str) or not isinstance(slots, (int, Iterable)):
        raise MoEColabError(f"slots must be a number or a number per layer, not {slots!r}.")
    per_layer = [slots] * len(entries) if isinstance(slots, int) else list(slots)
    if len(per_layer) != len(entries):
        raise MoEColabError(
            f"{len(per_layer)} numbers of slots were given for {len(entries)} MoE layers."
        )
    for number, (n, entry) in enumerate(zip(per_layer, entries, strict=True)):
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= entry.experts:
            raise MoEColabError(
                f"slots must be 1 to {entry.experts}, the experts of MoE layer {number}, not {n!r}."
            )
    return per_layer


def check_policy(policy: cache.PolicySpec, entries: Sequence) -> cache.PolicySpec:
    cache.make_policy(policy, entries[0].experts)
    return policy


def check_resident(resident: Mapping[int, Sequence[int]], entries: Sequence) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in entries]
    try:
        named = {number: sorted(set(experts)) for number, experts in resident.items()}
    except (AttributeError, TypeError) as error:
        raise MoEColabError(
            f"resident must give each layer a list of its experts, as {{0: [3, 5]}}, not "
            f"{resident!r}."
        ) from error
    for number, experts in named.items():
        if number not in range(len(entries)) or any(
            not isinstance(e, int) or e not in range(entries[number].experts) for e in experts
        ):
            raise MoEColabError(
                f"resident names experts {experts} of MoE layer {number}, which do not exist."
            )
        out[number] = experts
    return out


def make_link(device: torch.device, largest: int) -> Link:
    if device.type != "cuda":
        return ThreadLink()
    from .cuda import CudaLink

    return CudaLink(device, largest)


def has_past(kwargs: Mapping) -> bool:
    """True if a forward was given a cache that holds earlier tokens; layers without attention
    cannot tell."""
    caches = [
        value for value in kwargs.values() if isinstance(value, Cache)
    ]  # its name differs between versions
    layers = [layer for past in caches for layer in past.layers if hasattr(layer, "get_seq_length")]
    return any(layer.get_seq_length() > 0 for layer in layers)

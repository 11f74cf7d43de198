"""The x-ray of a text: where every token was sent, and what it cost, under any cache.

Knows traces, and what web/xray.js wants to be told; the replays are made on the page. Draws
nothing, and needs neither the model nor torch.

Legend: n tokens that are shown, L MoE layers, K top-k, E experts of the widest layer, F steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...analysis.layer_caches import LayerCaches
from ...cache.settings import is_whole
from ...cache.stats import PHASES, Counters
from ...errors import MoEColabError
from ...trace import Trace
from ...trace.arrays import NOBODY, OUTCOMES
from ...trace.outcomes import SIGNS
from .excerpt import Excerpt, excerpts, stream_of
from .view import LIMIT, View

if TYPE_CHECKING:
    from ...plots import Picture

MOST = 256  # tokens of one view
LONGEST = 32  # characters of a token that are shown: the longest word, and not a page
SCRIPTS = ("replay", "xray_state", "xray_draw", "xray_words")
PROMPT = 4  # tokens of it, on the picture
POLICIES = ("lru", "lfu", "fifo", "none", "optimal", "optimal-bypass")  # those of replay.js


def xray(
    trace: Trace,
    tokenizer: Any = None,
    *,
    label: str | None = None,
    first: int = 0,
    tokens: int = MOST,
    row: int = 0,
) -> View:
    """A view of what every token cost: hits, speculative hits, late ones and misses over all
    layers, and the bytes that were loaded for it; as recorded, or replayed on the page with any
    number of slots and another policy, Belady's bound beside it.

    trace: what mc.record has recorded, or mc.Trace.load(). tokenizer: whose `decode` gives the
    texts; without one they are the trace's own, or numbers. label: the part of a merged trace.
    first, tokens: the first token that is shown (negative: counted from the end) and how many, 256
    at most; fewer where they do not fit into 300 kB. row: of a batch.

    A replay is that of whole steps from the trace's beginning (where that does not fit, from the
    first step that is shown) to the last step that is shown; it counts what mc.replay counts on
    these steps. Raises MoEColabError for a part, a token or a row that is not there.
    """
    trace = trace if label is None else trace.only(label)
    if not is_whole(tokens) or not 1 <= tokens <= MOST:
        raise MoEColabError(f"an x-ray shows 1 to {MOST} tokens, not {tokens!r}.")
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise MoEColabError(
            f"tokenizer must have a method decode, not be {type(tokenizer).__name__}: leave it out "
            "for the texts that the trace holds."
        )
    while True:
        for excerpt in excerpts(trace, row, first, int(tokens), LIMIT):
            view = view_of(excerpt, tokenizer, of=len(stream_of(trace, row)), row=int(row))
            size, shown = len(view.html.encode()), len(excerpt.shown)
            if size <= LIMIT or shown == 1:
                return view
        tokens = max(1, min(shown - 1, shown * LIMIT // size))


def view_of(excerpt: Excerpt, tokenizer: Any, **place: int) -> View:
    """place: what else the page is told of where in the trace these tokens are: `of` so many, in
    which `row`."""
    n, words = len(excerpt.shown), texts(excerpt, tokenizer)
    title = f"X-ray of {excerpt.trace.model}: {n} token{'s' if n > 1 else ''}"
    data = {**told(excerpt), **place, "words": words}
    return View("xray", title, data, lambda: picture(excerpt, words), SCRIPTS)


def picture(excerpt: Excerpt, words: list[str]) -> Picture:
    from ... import plots

    trace = excerpt.trace
    title = "As recorded"
    if not len(trace.accesses):
        title = f"Replayed with {start_policy(trace)}, {start_slots(trace)} slots"
    decoded = np.flatnonzero(trace.forwards["phase"][excerpt.steps])
    first = excerpt.first + max(0, decoded[0] - PROMPT) if len(decoded) else None
    return plots.xray(rows(excerpt, words), first, title=title)


# ---------------------------------------------------------------------- what the page is told
def told(excerpt: Excerpt) -> dict[str, Any]:
    """What web/xray.js shows, but for the texts."""
    trace, routing = excerpt.trace, excerpt.routing
    narrow = max(trace.experts) <= 255
    nobody = 255 if narrow else 65535
    rest, rest_of = excerpt.rest()
    return {
        "model": trace.model,
        "experts": list(trace.experts),
        "bytes": list(trace.expert_bytes),
        "first": excerpt.first,
        "begins": excerpt.begins,
        "rows": int(trace.forwards["rows"].max()),
        "step": excerpt.steps.astype(np.uint32),
        "phases": trace.forwards["phase"].astype(np.uint8),
        "nobody": nobody,
        "routing": np.where(routing == NOBODY, nobody, routing).astype("u1" if narrow else "u2"),
        "chances": chances(excerpt),
        "fates": fates(excerpt),
        "rest": rest,
        "rest_of": rest_of.astype(np.uint32),
        "recorded": recorded(trace),
        "guesses": bool(trace.settings.get("speculate")),
        "policy": start_policy(trace),
        "slots": start_slots(trace),
        "signs": {
            name: {"glyph": sign.glyph, "name": sign.name, "means": sign.means}
            for name, sign in SIGNS.items()
        },
        "whole_layer": bool(trace.settings.get("whole_layer")),
    }


def texts(excerpt: Excerpt, tokenizer: Any) -> list[str]:
    """Of the tokens that are shown, short; "" where none is known."""
    ids = excerpt.trace.tokens[excerpt.shown].tolist()
    known = excerpt.trace.texts
    if tokenizer is not None:
        known = {token: tokenizer.decode([token]) for token in set(ids) if token >= 0}
    words = [known.get(token, f"[{token}]" if token >= 0 else "") for token in ids]
    return [word if len(word) <= LONGEST else word[: LONGEST - 1] + "…" for word in words]


def chances(excerpt: Excerpt) -> np.ndarray | None:
    """uint8 [n, L, K]: 1 to 255 for a probability of 0 to 1, 0 for one that is not known; None
    where none is."""
    known = excerpt.probabilities()
    if np.isnan(known).all():
        return None
    return np.where(np.isnan(known), 0, np.rint(1 + 254 * np.nan_to_num(known))).astype(np.uint8)


def fates(excerpt: Excerpt) -> np.ndarray:
    """uint8: of each choice the recorded outcome, and 8 more where this token pays; four bits each,
    the earlier one in the lower half."""
    flat = (excerpt.outcomes() + 8 * excerpt.payers()).astype(np.uint8).reshape(-1)
    flat = np.pad(flat, (0, len(flat) % 2))
    return flat[::2] | flat[1::2] << 4


# ---------------------------------------------------------------------- caches
def recorded(trace: Trace) -> dict[str, Any] | None:
    """What was counted while these steps ran, by phase; None where it is not known. Loads and
    bytes are those that were asked for by the layers: what guesses loaded is not in the trace."""
    if not len(trace.accesses):
        return None
    phase = trace.forwards["phase"][trace.accesses["step"]]
    books = []
    for number in range(len(PHASES)):
        own = trace.accesses[phase == number]
        hits, early, late, misses = np.bincount(own["outcome"], minlength=len(OUTCOMES)).tolist()
        loaded = int(own["bytes"].sum())
        book = Counters(len(own), hits, early, late, misses, misses, bytes_loaded=loaded)
        books.append(book.as_dict())
    return {"name": recorded_name(trace), "books": books}


def recorded_name(trace: Trace) -> str:
    """The cache it was recorded with, as far as that is known."""
    slots, policy = trace.settings.get("slots"), trace.settings.get("policy")
    if trace.settings.get("whole_layer"):
        return "whole layers"
    known = [str(policy).upper()] if policy in ("lru", "lfu", "fifo") else []
    known += [f"{slots} slots"] if is_whole(slots) else []
    known += ["with guesses"] if trace.settings.get("speculate") else []
    return ", ".join(known)


def start_policy(trace: Trace) -> str:
    policy = trace.settings.get("policy")
    return policy if policy in POLICIES else "lru"


def start_slots(trace: Trace) -> int:
    """Those of the recording, or half of the experts."""
    slots, most = trace.settings.get("slots"), max(trace.experts)
    return min(int(slots), most) if is_whole(slots) and slots > 0 else (most + 1) // 2


def replayed(excerpt: Excerpt) -> np.ndarray:
    """uint8 [n, L, K] like Excerpt.outcomes, of the replay with which the view begins."""
    trace, slots = excerpt.trace, start_slots(excerpt.trace)
    caches = LayerCaches(trace, start_policy(trace))
    missed = np.zeros((trace.steps, trace.layers, max(trace.experts)), bool)
    for layer, experts in enumerate(trace.experts):
        cache = caches.make(layer, min(slots, experts))
        for step, (_, decisions) in enumerate(caches.walk(layer, cache)):
            missed[step, layer, [d.expert for d in decisions if not d.hit]] = True
    layers = np.arange(trace.layers)[None, :, None]
    miss = missed[excerpt.steps[:, None, None], layers, np.maximum(excerpt.routing, 0)]
    return 1 + np.where(miss, OUTCOMES.index("miss"), OUTCOMES.index("hit")).astype(np.uint8)


def rows(excerpt: Excerpt, words: list[str]) -> list[dict[str, Any]]:
    """What the twin draws: a row for each choice, as mc.plots.xray wants them."""
    recorded = len(excerpt.trace.accesses)
    outcome = excerpt.outcomes() if recorded else replayed(excerpt)
    first, chance, routing = excerpt.payers(), excerpt.probabilities(), excerpt.routing
    return [
        {
            "number": excerpt.first + int(place[0]),
            "text": words[place[0]],
            "layer": int(place[1]),
            "rank": int(place[2]),
            "expert": int(routing[place]),
            "chance": float(chance[place]),
            "outcome": OUTCOMES[outcome[place] - 1] if outcome[place] else "",
            "first": bool(first[place]),
        }
        for place in zip(*np.nonzero(routing != NOBODY), strict=True)
    ]

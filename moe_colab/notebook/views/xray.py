"""`mc.xray`: the routing of every token of a text, and what each access cost, under any cache.

Knows traces and the data that web/xray.js reads; knows no model and no torch. The page itself
computes the replays.

Shapes: n tokens shown, L MoE layers, K top-k, E experts of the widest layer, F steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...analysis.layer_caches import LayerCaches
from ...cache.settings import is_whole
from ...cache.stats import PHASES, Counters
from ...errors import MoEColabError
from ...trace import Trace
from ...trace.arrays import NO_EXPERT, OUTCOMES
from ...trace.outcomes import SIGNS
from .excerpt import Excerpt, excerpts, stream_of
from .view import LIMIT, View, fit, shortened

if TYPE_CHECKING:
    from ...plots import Picture

MOST = 256  # tokens of one view
LONGEST = 32  # characters of a token that are shown
SCRIPTS = ("replay", "xray_state", "xray_draw", "xray_words")
PROMPT = 4  # tokens of the prompt in the picture
POLICIES = ("lru", "lfu", "fifo", "none", "optimal", "optimal-bypass")  # the policies of replay.js


def xray(
    trace: Trace,
    tokenizer: Any = None,
    *,
    label: str | None = None,
    first: int = 0,
    tokens: int = MOST,
    row: int = 0,
) -> View:
    """A view of what every token cost: its hits, speculative hits, late loads and misses over all
    layers, and the bytes loaded for it. It shows the recording, or a replay on the page with
    another policy and any number of slots, beside Belady's bound.

    trace: what mc.record has recorded, or mc.Trace.load(). tokenizer: its `decode` gives the texts
    of the tokens; None: the trace's own texts, or numbers. label: one part of a merged trace.
    first: the first token shown, negative counts from the end. tokens: how many, at most 256, and
    fewer if they do not fit into 300 kB. row: the row of a batch.

    A replay covers all steps from the beginning of the trace to the last step shown; where that
    does not fit, from the first step shown. It counts what mc.replay counts on these steps. Raises
    MoEColabError for a part, a token or a row that the trace does not have.
    """
    trace = trace if label is None else trace.only(label)
    if not is_whole(tokens) or not 1 <= tokens <= MOST:
        raise MoEColabError(f"an x-ray shows 1 to {MOST} tokens, not {tokens!r}.")
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise MoEColabError(
            f"tokenizer must have a method decode, and {type(tokenizer).__name__} has none: leave "
            "it out to use the texts of the trace."
        )

    def make(count: int) -> tuple[View, int]:
        for excerpt in excerpts(trace, row, first, count, LIMIT):
            view = view_of(excerpt, tokenizer, of=len(stream_of(trace, row)), row=int(row))
            if view.nbytes <= LIMIT or len(excerpt.shown) == 1:
                break
        return view, len(excerpt.shown)

    return fit(make, int(tokens))


def view_of(excerpt: Excerpt, tokenizer: Any, **place: int) -> View:
    """place: `of`, the tokens of the whole text, and `row`, the row of the batch."""
    n, words = len(excerpt.shown), texts(excerpt, tokenizer)
    title = f"X-ray of {excerpt.trace.model}: {n} token{'s' if n > 1 else ''}"
    data = {**page_data(excerpt), **place, "words": words}
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


# ---------------------------------------------------------------------- data for the page
def page_data(excerpt: Excerpt) -> dict[str, Any]:
    """What web/xray.js reads, except for the texts."""
    # Of Python's size: newer versions of numpy refuse 65535 beside an int16.
    trace, routing = excerpt.trace, excerpt.routing.astype(np.int64)
    dtype = np.uint8 if max(trace.experts) <= 255 else np.uint16
    no_expert = int(np.iinfo(dtype).max)
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
        "no_expert": no_expert,
        "routing": np.where(routing == NO_EXPERT, no_expert, routing).astype(dtype),
        "probabilities": packed_probabilities(excerpt),
        "outcomes": packed_outcomes(excerpt),
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
    """The shortened text of each token shown; "" where it is not known."""
    ids = excerpt.trace.tokens[excerpt.shown].tolist()
    known = excerpt.trace.texts
    if tokenizer is not None:
        known = {token: tokenizer.decode([token]) for token in set(ids) if token >= 0}
    words = (known.get(token, f"[{token}]" if token >= 0 else "") for token in ids)
    return [shortened(word, LONGEST) for word in words]


def packed_probabilities(excerpt: Excerpt) -> np.ndarray | None:
    """uint8 [n, L, K]: 1 to 255 for probabilities from 0 to 1, and 0 for an unknown one; None if
    all are unknown."""
    known = excerpt.probabilities()
    if np.isnan(known).all():
        return None
    return np.where(np.isnan(known), 0, np.rint(1 + 254 * np.nan_to_num(known))).astype(np.uint8)


def packed_outcomes(excerpt: Excerpt) -> np.ndarray:
    """uint8, two choices in each, the earlier one in the lower four bits: the recorded outcome of a
    choice, plus 8 where it is its expert's first use in the step."""
    flat = (excerpt.outcomes() + 8 * excerpt.first_uses()).astype(np.uint8).reshape(-1)
    flat = np.pad(flat, (0, len(flat) % 2))
    return flat[::2] | flat[1::2] << 4


# ---------------------------------------------------------------------- caches
def recorded(trace: Trace) -> dict[str, Any] | None:
    """The counters of the recording by phase; None for a trace without recorded accesses. Loads
    and bytes leave out what guesses loaded: the trace does not hold it."""
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
    """The settings of the recorded cache in words, as far as the trace holds them."""
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
    """The slots of the recording if it has one number for all layers; else half of the experts."""
    slots, most = trace.settings.get("slots"), max(trace.experts)
    return min(int(slots), most) if is_whole(slots) and slots > 0 else (most + 1) // 2


def replayed(excerpt: Excerpt) -> np.ndarray:
    """uint8 [n, L, K] like Excerpt.outcomes, from the replay that the view shows first."""
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
    """The rows of mc.plots.xray for the static picture, one for each choice."""
    recorded = len(excerpt.trace.accesses)
    outcome = excerpt.outcomes() if recorded else replayed(excerpt)
    first, chance, routing = excerpt.first_uses(), excerpt.probabilities(), excerpt.routing
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
        for place in zip(*np.nonzero(routing != NO_EXPERT), strict=True)
    ]

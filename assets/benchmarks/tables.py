"""Write what was measured into the READMEs of the project, its benchmarks and its small model.

    python assets/benchmarks/tables.py

Knows the JSON files beside it. In a page, `<!-- NAME -->` and `<!-- /NAME -->` enclose a block that
the function of that name makes. `make readme` runs this script; a test compares the pages with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from moe_colab.bench.allocation import allocation_table
from moe_colab.bench.quality import table as quality_table
from moe_colab.machine.folders import benchmark

HERE = Path(__file__).parent
TOY = HERE.parent / "tiny-moe"
PAGES = (HERE.parents[1] / "README.md", HERE / "README.md", TOY / "README.md")

MEASURED = """\
- **Fewer bits.** With experts in 2 bits and attention in 4, the small model shrinks from {} to {}.
  Its perplexity is {:.3f} times that in full precision; {:.1%} of its first choices stay the same.
  The same bytes allocated by measured sensitivity give {:.3f} times and {:.1%}{}.
  ([quality.json](assets/benchmarks/quality.json), `bench quality`)
- **Little memory.** A checkpoint of {} in Mixtral's shapes was downloaded and quantized within
  {} of memory, with at most {} of it on the disk at a time.
  ([streaming.json](assets/benchmarks/streaming.json), `bench streaming`)
- **Prefetch.** In virtual time, with loads {} times as long as a layer's compute (about a T4),
  guessing the next experts avoids {:.0%} of the stall that perfect guesses would avoid, and a token
  takes {:.1%} less time.
  ([speculation.json](assets/benchmarks/speculation.json), `bench speculation`)"""


# ---------------------------------------------------------------------- README.md
def measured() -> str:
    """Three results, each with its file and the command that made it."""
    quality, streaming = benchmark("quality"), benchmark("streaming")
    full, allocation = quality["rows"][0], quality["allocation"]["other_budgets"][-1]
    uniform, allocated = allocation["rows"]
    over = allocation["allocated_over_uniform"]
    default = {"load": 5.5, "slots": 4, "way": "default"}
    (row,) = (r for r in benchmark("speculation")["clock"] if default.items() <= r.items())
    return MEASURED.format(
        megabytes(full["bytes"]),
        megabytes(uniform["bytes"]),
        *(one[name] for one in (uniform, allocated) for name in ("ratio", "agreement")),
        " (the perplexities cannot be told apart)" if over["tie"] else "",
        gigabytes(streaming["source"]["bytes"]),
        gigabytes(streaming["quantize"]["peak_over_start_up"]),
        gigabytes(streaming["quantize"]["peak_shards_on_disk_bytes"]),
        *(row["load"], row["recovered"], 1 - row["time_ratio"]),
    )


# ---------------------------------------------------------------------- assets/benchmarks/README.md
def quality() -> str:
    report = benchmark("quality")
    text = f"{report['tokens']:,} tokens in {len(report['text'])} domains. {machine(report)}"
    return f"{text}\n\n{quality_table(report['rows'])}"


def allocation() -> str:
    return allocation_table(benchmark("quality")["allocation"])


def streaming() -> str:
    report = benchmark("streaming")
    source, sizes = report["source"], ("peak_over_start_up", "peak_shards_on_disk_bytes")
    rows = [
        (stage, f"{report[stage]['seconds']:,} s", *(gigabytes(report[stage][s]) for s in sizes))
        for stage in ("quantize", "verify", "load and generate")
    ]
    text = f"A checkpoint of {gigabytes(source['bytes'])} in {source['files']} files of a hub."
    table = markdown("stage, time, memory over start-up, checkpoint on disk", rows)
    return f"{text} {machine(report)}\n\n{table}"


def speculation() -> str:
    report = benchmark("speculation")
    names = ("load", "slots", "way", "time", "stall", "recovered", "time_ratio", "bytes_ratio")
    header, parts = "load, slots, guesses, time, stall, recovered, time ratio, bytes ratio", []
    for key, text in (
        ("clock", f"In virtual time, {report['tokens']:,} tokens:"),
        ("slept", f"On a link that sleeps, {report['slept_tokens']} tokens. {machine(report)}"),
        ("slept_by_clock", "The same tokens in virtual time:"),
    ):
        parts += [text, markdown(header, ([row[name] for name in names] for row in report[key]))]
    return "\n\n".join(parts)


def recall() -> str:
    rows = (
        (r["source"], r["lookahead"], r["guesses"], " ".join(f"{x:.0%}" for x in r["by_layer"]))
        for r in benchmark("speculation")["recall"]
    )
    return markdown("guess from, layers ahead, guesses, recall of each layer", rows)


def paper() -> str:
    rows = []
    for row in benchmark("paper")["rows"]:
        counts, modelled = row["replay"], row["modelled"]["tokens_per_second_of_32_layers"]
        hit_rate = (counts["hits"] + counts["speculative_hits"]) / counts["accesses"]
        cells = (f"{counts['loads']:,}", f"{hit_rate:.1%}", gigabytes(counts["bytes_loaded"]))
        rows.append((row["row"], *cells, f"{modelled:.2f}", row["paper"]["tokens_per_second"]))
    speeds = "tokens/s modelled for 32 layers, tokens/s of the paper on a T4"
    return markdown(f"row, loads, hit rate, bytes loaded, {speeds}", rows)


def traces() -> str:
    report = benchmark("traces")
    time, cpu = (report["recording"][name]["ratio"] - 1 for name in ("seconds", "cpu_seconds"))
    sizes = report["replay_seconds"]
    rows = (
        (policy, *(f"{seconds[policy]:.2f} s" for seconds in sizes.values()))
        for policy in next(iter(sizes.values()))
    )
    text = f"Recording takes {time:.1%} more time and {cpu:.1%} more CPU time. {machine(report)}"
    header = ", ".join(["policy", *(size.replace(", ", "; ") for size in sizes)])
    return f"{text}\n\n{markdown(header, rows)}"


def moves() -> str:
    report = benchmark("moves")
    rows = (
        (size, view, control, f"{seconds['median']} s", f"{seconds['most']} s")
        for size, views in report["seconds"].items()
        for view, controls in views.items()
        for control, seconds in controls.items()
    )
    return f"{machine(report)}\n\n{markdown('trace, view, control, median, longest', rows)}"


# ---------------------------------------------------------------------- assets/tiny-moe/README.md
EXAM = {
    "unseen_pairs": "facts: trained wording, a pair of wording and subject that was held out",
    "held_out_templates": "facts: wording that was held out",
    "trained_questions": "facts: trained wording and pair",
    "bookings": "turns of bookings: ask for the next detail, or repeat all",
    "foreign": "other questions, written by hand: says that it is a toy of 11 million parameters",
}


def exam() -> str:
    report = benchmark("small_model")["exam"]
    parts = {text: report[name] for name, text in EXAM.items()}
    for request, part in report["stories"].items():
        parts[f'stories: "{request.format(x="...")}" ends, and names its subject twice'] = part
    rows = [
        (text, f"{p['right']} of {p['asked']}", f"{p['share']:.1%}") for text, p in parts.items()
    ]
    refusals = report["false_refusals"]
    ended, asked = (sum(part[name] for part in parts.values()) for name in ("ended", "asked"))
    return (
        f"{markdown('asked, right, share', rows)}\n\n"
        f"{ended:,} of {asked:,} answers end by themselves. Of {refusals['asked']:,} questions "
        f"on facts of its world, {refusals['refused']} were refused ({refusals['share']:.1%})."
    )


def training() -> str:
    return f"The last training: {benchmark('small_model')['training']}."


def held_out() -> str:
    rows = (
        (
            domain.partition("_")[0] if not domain.startswith("chat") else domain.replace("_", " "),
            f"{row['bits_per_byte']:.3f}",
            f"{row['byte_5gram']:.3f}",
            f"{1 - row['bits_per_byte'] / row['byte_5gram']:.0%}",
            f"{row['bytes']:,}",
        )
        for domain, row in benchmark("small_model")["held_out"].items()
    )
    return markdown("text, bits per byte, 5-gram, below it, bytes", rows)


def load() -> str:
    report = benchmark("small_model")
    shares = report["load_over_mean"]
    rows = ((layer, *(f"{x:.2f}" for x in row)) for layer, row in enumerate(shares))
    table = markdown(", ".join(["layer", *(f"expert {e}" for e in range(len(shares[0])))]), rows)
    cached = report["lru_4_of_8"]
    return (
        f"{table}\n\nWith 4 slots of 8 under LRU, {cached['evaluation_text']['hit_rate']:.1%} of "
        "the accesses are hits while it reads the evaluation text, and "
        f"{cached['chats']['hit_rate']:.1%} in 100 chats."
    )


def answers() -> str:
    rows = (
        (one["seed"], one["prompt"], " ".join(one["answer"].split()), one["tokens"])
        for one in benchmark("small_model")["answers"]
    )
    return markdown("seed, asked, answers, tokens", rows)


# ---------------------------------------------------------------------- cells and pages
def machine(report: dict) -> str:
    facts = report["machine"]
    versions = (f"{name} {facts['packages'][name]}" for name in ("torch", "transformers"))
    return f"Machine: {facts['cpu']}, {facts['cores']} cores, {', '.join(versions)}."


def gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


def markdown(header: str, rows: Iterable[Iterable[object]]) -> str:
    names = header.split(", ")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def updated(page: str) -> str:
    """A page with every block made again."""
    block = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.S)
    return block.sub(lambda m: f"<!-- {m[1]} -->\n{globals()[m[1]]()}\n<!-- /{m[1]} -->", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")

"""moe_colab from a shell: chat | quantize | inspect | verify | replay | bench."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from .arguments import build_parser
from .errors import MoEColabError

SAMPLE_QUESTION = "Can you play some music?"


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser(__doc__).parse_args(argv)
    try:
        return RUNS[args.run](args) or 0
    except MoEColabError as error:
        print(f"moe_colab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nmoe_colab: interrupted", file=sys.stderr)
        return 130


def run_chat(args: argparse.Namespace) -> int:
    from .chat.terminal import converse, one_shot

    return one_shot(args) if args.prompt is not None else converse(args, SAMPLE_QUESTION)


def run_quantize(args: argparse.Namespace) -> None:
    from .quantization.quantize import quantize

    summary = quantize(
        args.source,
        args.store,
        attention_bits=args.attention_bits,
        expert_bits=args.expert_bits,
        embedding_bits=args.embedding_bits,
        group_size=args.group_size,
        axis=args.axis,
        device=args.device,
        dtype=args.dtype,
        revision=args.revision,
    )
    print(json.dumps(summary.as_dict()) if args.json else summary.text())


def run_inspect(args: argparse.Namespace) -> None:
    from .store import inspect

    summary = inspect(args.store)
    print(json.dumps(summary.as_dict()) if args.json else summary.text())


def run_verify(args: argparse.Namespace) -> None:
    from .store import verify

    report = verify(args.store)
    if args.json:
        print(json.dumps(report.as_dict()))
    else:
        print(f"{report.store}: {report.nbytes:,} bytes in {report.files} files, all as packed")


def run_replay(args: argparse.Namespace) -> None:
    from .analysis.replay import replay
    from .analysis.timeline import timeline
    from .trace import Trace

    read = Trace.from_csv if str(args.trace).endswith(".csv") else Trace.load
    trace = read(args.trace)
    if args.slots is None and args.budget is None:
        raise MoEColabError("say how many experts a layer holds: --slots 4, or --budget 32.")
    guesses = {name: getattr(args, name) for name in ("speculate", "lookahead", "guess_from")}
    setting = {"policy": args.policy, "bypass": args.bypass, **guesses}
    clock = {} if args.link is None else {"link": args.link, "compute": args.compute}
    counts = replay(trace, slots=args.slots, budget=args.budget, **setting, **clock)
    found = counts.as_dict()
    lines = [repr(trace), counts.line()]
    if clock:
        run = timeline(trace, slots=counts.slots, **setting, **clock)
        found["timeline"] = run.as_dict()
        lines.append(repr(run))
    print(json.dumps(found) if args.json else "\n".join(lines))


def run_speculation(args: argparse.Namespace) -> int:
    from .bench.speculation import run

    return run(args.out)


def run_paper(args: argparse.Namespace) -> int:
    from .bench.paper import run

    return run(args.row, args.way, args.out)


def run_gpu_check(args: argparse.Namespace) -> int:
    from .bench.gpu_check import run

    return run(args.source, args.device, args.out, args.quick)


def run_streaming(args: argparse.Namespace) -> int:
    from .bench.streaming import run

    return run(args.source, args.work, args.out)


def run_quality(args: argparse.Namespace) -> int:
    from .bench.quality import run

    return run(args.source, args.out, args.quick)


RUNS = {
    "chat": run_chat,
    "quantize": run_quantize,
    "inspect": run_inspect,
    "verify": run_verify,
    "replay": run_replay,
    "speculation": run_speculation,
    "paper": run_paper,
    "gpu_check": run_gpu_check,
    "streaming": run_streaming,
    "quality": run_quality,
}


if __name__ == "__main__":
    sys.exit(main())

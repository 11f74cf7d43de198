"""The command line: chat, quantize, configure, inspect, verify, replay, bench.

Knows the arguments of each command and the function that runs it; knows nothing of how it works. A
function is called with the arguments as keywords, and imports what it needs: `--help` needs no
torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from .bench.commands import add_benches
from .cache.settings import SPECULATE
from .chat.commands import COMMANDS
from .errors import MoEColabError
from .machine.threads import let_threads_sleep
from .version import __version__

TRACEBACK = "MOE_COLAB_TRACEBACK"  # an environment variable: show where an unexpected error is from


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Without `argv`, the arguments of this process."""
    options = vars(build_parser().parse_args(argv))
    let_threads_sleep()
    try:
        return options.pop("run")(**options) or 0
    except MoEColabError as error:
        print(f"moe_colab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nmoe_colab: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # a fault of ours: one sentence, and a way to see where
        if os.environ.get(TRACEBACK):
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(
            f"moe_colab: unexpected error: {text}. Please report it, with what {TRACEBACK}=1 shows "
            "in the same command.",
            file=sys.stderr,
        )
        return 1


def build_parser() -> argparse.ArgumentParser:
    """What it parses has `run`, the function of the command, beside the function's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m moe_colab",
        description="Run Mixture-of-Experts language models whose experts are offloaded.",
    )
    parser.add_argument("--version", action="version", version=f"moe_colab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_chat(commands)
    add_quantize(commands)
    add_configure(commands)
    for name, run, text in (
        ("inspect", run_inspect, "show what a store holds: bytes by part, bits per weight"),
        ("verify", run_verify, "compare every byte of a store with its sha256"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("store", help="a folder that quantize or load has made")
        add_json(command)
        command.set_defaults(run=run)
    add_replay(commands)
    bench = commands.add_parser("bench", help="measure: one JSON object on the last line")
    add_benches(bench.add_subparsers(required=True, metavar="BENCH"))
    return parser


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON object on the last line")


def show(report: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(report) if as_json else text)


# ---------------------------------------------------------------------- chat
def add_chat(commands: argparse._SubParsersAction) -> None:
    chat = commands.add_parser(
        "chat",
        help="talk to a model whose experts are offloaded",
        description="Talk to a model whose experts are offloaded. Within the chat, /help explains "
        f"its commands: {', '.join(COMMANDS)}.",
    )
    add = chat.add_argument
    add("source", nargs="?", help="a store, a checkpoint folder, or org/name; default: small model")
    add("--revision", help="branch, tag or commit of a model of the hub")
    add("--tokenizer", help="another tokenizer than the model's own: a folder, or org/name")
    add("--prompt", help="answer this one question and end")
    add("--system", help="system prompt")
    add("--max-new-tokens", type=positive, help="longest answer, in tokens")
    add("--temperature", type=temperature, help="0 is greedy; default: the model's own")
    add("--top-p", type=share, help="default: the model's own")
    add("--slots", type=slots, default="auto", help="experts in each layer's cache: 4, or 4,4,6")
    add("--policy", default="lru", help="lru, lfu, fifo, random or none (default: lru)")
    add("--speculate", type=int, default=SPECULATE, help="guesses for each later layer; 0: none")
    add("--lookahead", type=int, default=1, help="how many layers ahead to guess, 1 or 2")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--dtype", default="auto", help="auto, float32, float16 or bfloat16")
    add("--seed", type=seed, help="the same seed gives the same answers")
    add("--stats", action="store_true", help="below each answer, what it cost")
    add_json(chat)
    chat.set_defaults(run=run_chat)


def run_chat(
    *, prompt, system, seed, temperature, top_p, max_new_tokens, stats, json, **settings: Any
) -> None:
    from .chat.settings import sampling
    from .chat.terminal import answer_once, converse, open_chat

    generation = {"seed": seed, **sampling(temperature, top_p, max_new_tokens)}
    with open_chat(system, **settings) as chat:
        if prompt is not None:
            answer_once(chat, prompt, generation, stats, json)
        else:
            converse(chat, generation, stats, json)


# ---------------------------------------------------------------------- stores
def add_quantize(commands: argparse._SubParsersAction) -> None:
    text = "make a store with fewer bits per weight; a run that was interrupted continues"
    quantize = commands.add_parser("quantize", help=text, description=text)
    add = quantize.add_argument
    add("source", help="a checkpoint folder, or org/name")
    add("store", help="the folder to write")
    add("--revision", help="branch, tag or commit of a model of the hub")
    add(
        "--attention-bits",
        type=positive,
        default=4,
        help="of attention, shared experts and dense layers: 2, 3, 4, 8 or 16 (keep); default: 4",
    )
    add("--expert-bits", type=positive, default=4, help="of routed experts, as above; default: 4")
    add("--embedding-bits", type=positive, default=16, help="of embedding and head: 4, 8 or 16")
    add(
        "--group-size",
        type=positive,
        help="16, 32, 64 or 128; default: the largest of 64, 32, 16 that fits a matrix",
    )
    add("--axis", type=int, default=1, help="groups along rows (1) or down columns (0)")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--dtype", default="auto", help="the dtype that the model computes in; default: auto")
    add(
        "--no-check",
        dest="check",
        action="store_false",
        help="do not let the result read a text, which shows whether it is noise",
    )
    add_json(quantize)
    quantize.set_defaults(run=run_quantize)


def run_quantize(*, json: bool, **options: Any) -> None:
    from .evaluation.quantize import quantize

    report = quantize(**options)
    show(report.as_dict(), report.text(), json)


def add_configure(commands: argparse._SubParsersAction) -> None:
    text = "change top-k, chat template or generation settings of a finished store"
    configure = commands.add_parser("configure", help=text, description=text)
    add = configure.add_argument
    add("store", help="a folder that quantize has made")
    add("--top-k", type=positive, help="how many experts each token is sent to")
    add("--chat-template", metavar="FILE", help="a file with a template in Jinja")
    add(
        "--set",
        action="append",
        type=setting,
        default=[],
        metavar="NAME=VALUE",
        help="a setting of generation, such as temperature=0.5; null takes it out",
    )
    add_json(configure)
    configure.set_defaults(run=run_configure)


def run_configure(*, store, top_k, chat_template, set, json: bool) -> None:
    from .checkpoint.configure import configure, template_in

    template = None if chat_template is None else template_in(chat_template)
    report = configure(store, top_k=top_k, chat_template=template, generation=dict(set) or None)
    show(report.as_dict(), report.text(), json)


def run_inspect(*, store: str, json: bool) -> None:
    from .store import inspect

    report = inspect(store)
    show(report.as_dict(), report.text(), json)


def run_verify(*, store: str, json: bool) -> None:
    from .store import verify

    report = verify(store)
    text = f"{report.store}: {report.nbytes:,} bytes in {report.files} files, all as packed"
    show(report.as_dict(), text, json)


# ---------------------------------------------------------------------- replay
def add_replay(commands: argparse._SubParsersAction) -> None:
    text = "count a recorded trace under another cache, without model and torch"
    replay = commands.add_parser("replay", help=text, description=text)
    add = replay.add_argument
    add("trace", nargs="?", help="a saved trace, or a .csv; default: the trace of the small model")
    add("--policy", default="lru", help="as for chat, or optimal, optimal-bypass")
    add("--slots", type=slots_given, help="experts in each layer's cache: 4, or 4,4,6")
    add("--budget", type=positive, help="slots of all layers together, instead of --slots")
    add("--bypass", action="store_true", help="let an expert run without a slot")
    add("--speculate", type=count, default=0, help="guesses for each later layer (default: 0)")
    add("--lookahead", type=positive, default=1, help="how many layers ahead to guess, 1 or 2")
    add("--guess-from", default="router_input", help="router_input or layer_output")
    add("--link", help="model the time too, with a link of this speed: 12GB/s")
    add("--compute", type=seconds, default=2e-3, help="seconds of compute per layer and token")
    add_json(replay)
    replay.set_defaults(run=run_replay)


def run_replay(*, trace, slots, budget, link, compute, json: bool, **settings: Any) -> None:
    from .analysis.replay import replay
    from .analysis.timeline import timeline
    from .trace import Trace

    read = Trace.from_csv if str(trace).endswith(".csv") else Trace.load
    recorded = read(trace)
    if slots is None and budget is None:
        raise MoEColabError("give the slots of a layer or of all layers: --slots 4 or --budget 32.")
    if link is not None:
        settings |= {"link": link, "compute": compute}
    counts = replay(recorded, slots=slots, budget=budget, **settings)
    report, lines = counts.as_dict(), [repr(recorded), counts.line()]
    if link is not None:
        run = timeline(recorded, slots=counts.slots, **settings)
        report["timeline"] = run.as_dict()
        lines.append(repr(run))
    show(report, "\n".join(lines), json)


# ---------------------------------------------------------------------- types of arguments
def number(text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {most}")
    return value


def whole(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


positive, count = partial(whole, least=1, most=10**9), partial(whole, least=0, most=10**9)
seed = partial(whole, least=0, most=2**32 - 1)
temperature, share = partial(number, most=100), partial(number, most=1)
seconds = partial(number, most=1000)


def setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a word


def slots(text: str) -> int | list[int] | str:
    if text == "auto":
        return text
    numbers = [whole(part, 1, 10**6) for part in text.split(",")]
    return numbers[0] if len(numbers) == 1 else numbers


def slots_given(text: str) -> int | list[int] | str:
    if text == "auto":
        raise argparse.ArgumentTypeError("a replay needs a number of slots")
    return slots(text)


if __name__ == "__main__":
    sys.exit(main())

"""What may be said to moe_colab in a shell. Knows words and their types; does nothing."""

from __future__ import annotations

import argparse

from .cache.settings import SPECULATE
from .version import __version__


def build_parser(doc: str = "") -> argparse.ArgumentParser:
    """`run` of what it parses names what is to be done."""
    parser = argparse.ArgumentParser(prog="python -m moe_colab", description=doc)
    parser.add_argument("--version", action="version", version=f"moe_colab {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_chat(commands)
    add_quantize(commands)
    add_inspect_and_verify(commands)
    add_replay(commands)
    bench = commands.add_parser("bench", help="measure")
    add_benches(bench.add_subparsers(required=True, metavar="BENCH"))
    return parser


def add_chat(commands: argparse._SubParsersAction) -> None:
    chat = commands.add_parser("chat", help="talk to a model whose experts are offloaded")
    chat.add_argument(
        "source",
        nargs="?",
        help="a store, a checkpoint folder, or org/name; default: the small model",
    )
    chat.add_argument("--revision", help="of a model of the hub")
    chat.add_argument("--prompt", help="ask this once and leave")
    chat.add_argument("--system", help="what the model is told before the conversation")
    chat.add_argument("--max-new-tokens", type=positive, help="length of an answer at the most")
    chat.add_argument(
        "--temperature", type=temperature, help="0 is greedy; default: the model's own"
    )
    chat.add_argument("--top-p", type=share, help="default: the model's own")
    chat.add_argument(
        "--slots", type=slots, default="auto", help="experts a layer holds: 4, or 4,4,6,..."
    )
    chat.add_argument(
        "--policy", default="lru", help="lru, lfu, fifo, random or none (default: lru)"
    )
    chat.add_argument(
        "--speculate", type=int, default=SPECULATE, help="guesses for each later layer; 0: none"
    )
    chat.add_argument("--lookahead", type=int, default=1, help="how many layers ahead, 1 or 2")
    chat.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    chat.add_argument("--dtype", default="auto", help="auto, float32, float16 or bfloat16")
    chat.add_argument("--seed", type=seed, help="repeat the same answers")
    chat.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chat.set_defaults(run="chat")


def add_quantize(commands: argparse._SubParsersAction) -> None:
    quantize = commands.add_parser("quantize", help="a checkpoint -> a store of fewer bits")
    quantize.add_argument("source", help="a checkpoint folder, or org/name")
    quantize.add_argument("store", help="the folder to write")
    quantize.add_argument("--revision", help="of a model of the hub")
    quantize.add_argument(
        "--attention-bits",
        type=positive,
        default=4,
        help="of attention, shared experts and dense layers: 2, 3, 4, 8 or 16 (keep); default: 4",
    )
    quantize.add_argument(
        "--expert-bits", type=positive, default=2, help="of routed experts, likewise; default: 2"
    )
    quantize.add_argument(
        "--embedding-bits", type=positive, default=16, help="of embedding and head: 4, 8 or 16"
    )
    quantize.add_argument(
        "--group-size",
        type=positive,
        help="16, 32, 64 or 128; default: the largest of 64, 32, 16 that fits a matrix",
    )
    quantize.add_argument("--axis", type=int, default=1, help="1: along rows, 0: down columns")
    quantize.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    quantize.add_argument("--dtype", default="auto", help="what the model will compute in")
    quantize.add_argument("--json", action="store_true")
    quantize.set_defaults(run="quantize")


def add_inspect_and_verify(commands: argparse._SubParsersAction) -> None:
    inspect = commands.add_parser("inspect", help="what a store holds, by bytes and bits")
    inspect.add_argument("store")
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run="inspect")

    verify = commands.add_parser("verify", help="compare every byte of a store with its manifest")
    verify.add_argument("store")
    verify.add_argument("--json", action="store_true")
    verify.set_defaults(run="verify")


def add_replay(commands: argparse._SubParsersAction) -> None:
    replay = commands.add_parser("replay", help="a recorded trace under another cache")
    replay.add_argument("trace", nargs="?", help="a saved trace, or a .csv; default: our own")
    replay.add_argument("--policy", default="lru", help="as for chat, or optimal, optimal-bypass")
    replay.add_argument("--slots", type=slots_given, help="experts a layer holds: 4, or 4,4,6,...")
    replay.add_argument("--budget", type=positive, help="slots of all layers together, instead")
    replay.add_argument("--bypass", action="store_true", help="an expert may be run without a slot")
    replay.add_argument("--speculate", type=count, default=0, help="guesses a layer (default: 0)")
    replay.add_argument("--lookahead", type=positive, default=1, help="layers, 1 or 2")
    replay.add_argument("--guess-from", default="router_input", help="or layer_output")
    replay.add_argument("--link", help="model the time too, over a link of 12GB/s")
    replay.add_argument("--compute", type=seconds, default=2e-3, help="seconds a layer and token")
    replay.add_argument("--json", action="store_true")
    replay.set_defaults(run="replay")


def add_benches(bench: argparse._SubParsersAction) -> None:
    speculation = bench.add_parser("speculation", help="what guessing the next experts brings")
    speculation.add_argument("--out", help="write the JSON here too")
    speculation.set_defaults(run="speculation")
    paper = bench.add_parser("paper", help="the paper's four rows: bytes counted, time modelled")
    rows = ("full", "no-speculation", "no-cache", "whole-layer")
    paper.add_argument("--row", choices=rows, help="this one alone")
    way = paper.add_mutually_exclusive_group()
    way.add_argument("--engine", dest="way", action="store_const", const="engine")
    way.add_argument("--replay", dest="way", action="store_const", const="replay")
    paper.add_argument("--out", help="write the JSON here too")
    paper.set_defaults(run="paper")
    check = bench.add_parser("gpu-check", help="is an offloaded model right and fast on this GPU?")
    check.add_argument("source", nargs="?", help="default: the small model")
    check.add_argument("--device", default="cuda")
    check.add_argument("--out", help="write the JSON here too")
    check.add_argument("--quick", action="store_true", help="check every setting, time none")
    check.set_defaults(run="gpu_check")
    streaming = bench.add_parser("streaming", help="memory and disk while a store is made and used")
    streaming.add_argument("source", nargs="?", help="default: 2.8 GB of random weights, made here")
    streaming.add_argument("--work", help="where checkpoint and store are put meanwhile")
    streaming.add_argument("--out", help="write the JSON here too")
    streaming.set_defaults(run="streaming")
    quality = bench.add_parser("quality", help="what each bit costs, in perplexity and agreement")
    quality.add_argument("source", nargs="?", help="a checkpoint; default: the small model")
    quality.add_argument("--out", help="write the JSON here too")
    quality.add_argument("--quick", action="store_true", help="few rows, few documents")
    quality.set_defaults(run="quality")


# ---------------------------------------------------------------------- types
def positive(text: str) -> int:
    return whole(text, 1, 10**9)


def count(text: str) -> int:
    return whole(text, 0, 10**9)


def seed(text: str) -> int:
    return whole(text, 0, 2**32 - 1)


def temperature(text: str) -> float:
    return number(text, 100)


def seconds(text: str) -> float:
    return number(text, 1000)


def share(text: str) -> float:
    return number(text, 1)


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


def slots(text: str) -> int | list[int] | str:
    if text == "auto":
        return text
    numbers = [whole(part, 1, 10**6) for part in text.split(",")]
    return numbers[0] if len(numbers) == 1 else numbers


def slots_given(text: str) -> int | list[int] | str:
    if text == "auto":
        raise argparse.ArgumentTypeError("a replay needs a number of slots")
    return slots(text)

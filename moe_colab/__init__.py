"""Run Mixture-of-Experts language models that do not fit your GPU, and see why it works."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import MoEColabError

if TYPE_CHECKING:
    from . import plots as plots
    from . import tables as tables
    from .cache import Policy as Policy
    from .chat import ChatSession as ChatSession
    from .comparison import compare as compare
    from .explorer import Explorer as Explorer
    from .loading import load as load
    from .lowbit import Format as Format
    from .machine import preflight as preflight
    from .model_list import models as models
    from .offload import Offload as Offload
    from .offload import close_all as close_all
    from .places import benchmark as benchmark
    from .quality import evaluation_texts as evaluation_texts
    from .quality import perplexity as perplexity
    from .quantization import quantize as quantize
    from .quantize_widget import QuantizeWidget as QuantizeWidget
    from .reading import record_text as record_text
    from .recording import record as record
    from .replays import replay as replay
    from .sensitivity import allocate as allocate
    from .sensitivity import measure_sensitivity as measure_sensitivity
    from .shelf import quantized as quantized
    from .stepping import stepper as stepper
    from .store import Store as Store
    from .store import inspect as inspect
    from .store import verify as verify
    from .timelines import timeline as timeline
    from .trace import Trace as Trace
    from .trace_widgets import CacheWidget as CacheWidget
    from .trace_widgets import RoutingWidget as RoutingWidget
    from .trace_widgets import SpeculationWidget as SpeculationWidget
    from .widgets import ChatWidget as ChatWidget
    from .xrays import xray as xray

__version__ = "0.1.0"

_ROOMS = {  # public name: the room it lives in, entered when the name is first used
    "CacheWidget": "trace_widgets",
    "ChatSession": "chat",
    "ChatWidget": "widgets",
    "Explorer": "explorer",
    "Format": "lowbit",
    "Offload": "offload",
    "Policy": "cache",
    "QuantizeWidget": "quantize_widget",
    "RoutingWidget": "trace_widgets",
    "SpeculationWidget": "trace_widgets",
    "Store": "store",
    "benchmark": "places",
    "allocate": "sensitivity",
    "Trace": "trace",
    "close_all": "offload",
    "compare": "comparison",
    "evaluation_texts": "quality",
    "inspect": "store",
    "load": "loading",
    "measure_sensitivity": "sensitivity",
    "models": "model_list",
    "perplexity": "quality",
    "plots": "plots",  # the room itself
    "preflight": "machine",
    "quantize": "quantization",
    "quantized": "shelf",
    "record": "recording",
    "record_text": "reading",
    "replay": "replays",
    "stepper": "stepping",
    "tables": "tables",  # likewise
    "timeline": "timelines",
    "verify": "store",
    "xray": "xrays",
}
__all__ = ["MoEColabError", *_ROOMS]


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = importlib.import_module(f".{_ROOMS[name]}", __name__)
    value = room if name == _ROOMS[name] else getattr(room, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])

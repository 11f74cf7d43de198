"""Run Mixture-of-Experts language models that do not fit your GPU, and see why it works."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import MoEColabError
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import plots as plots
    from .analysis import tables as tables
    from .analysis.replay import replay as replay
    from .analysis.timeline import timeline as timeline
    from .cache.policies import Policy as Policy
    from .chat.session import ChatSession as ChatSession
    from .checkpoint.configure import configure as configure
    from .evaluation.comparison import compare as compare
    from .evaluation.perplexity import evaluation_texts as evaluation_texts
    from .evaluation.perplexity import perplexity as perplexity
    from .evaluation.quantize import quantize as quantize
    from .evaluation.quantize import quantized as quantized
    from .evaluation.sensitivity import allocate as allocate
    from .evaluation.sensitivity import measure_sensitivity as measure_sensitivity
    from .machine.folders import benchmark as benchmark
    from .notebook import exercises as exercises
    from .notebook.views.stepper import stepper as stepper
    from .notebook.views.xray import xray as xray
    from .notebook.widgets.chat import ChatWidget as ChatWidget
    from .notebook.widgets.explorer import Explorer as Explorer
    from .notebook.widgets.quantize import QuantizeWidget as QuantizeWidget
    from .notebook.widgets.trace import CacheWidget as CacheWidget
    from .notebook.widgets.trace import RoutingWidget as RoutingWidget
    from .notebook.widgets.trace import SpeculationWidget as SpeculationWidget
    from .offload.handle import Offload as Offload
    from .offload.handle import close_all as close_all
    from .offload.load import load as load
    from .offload.read_text import record_text as record_text
    from .offload.record import record as record
    from .planner.catalogue import models as models
    from .planner.needs import needs as needs
    from .planner.preflight import preflight as preflight
    from .quantization.forecast import forecast as forecast
    from .quantization.format import Format as Format
    from .store import Store as Store
    from .store import inspect as inspect
    from .store import verify as verify
    from .trace import Trace as Trace

_MODULES = {  # public name: the module it lives in, imported when the name is first used
    "allocate": "evaluation.sensitivity",
    "benchmark": "machine.folders",
    "CacheWidget": "notebook.widgets.trace",
    "ChatSession": "chat.session",
    "ChatWidget": "notebook.widgets.chat",
    "close_all": "offload.handle",
    "compare": "evaluation.comparison",
    "configure": "checkpoint.configure",
    "evaluation_texts": "evaluation.perplexity",
    "exercises": "notebook.exercises",
    "Explorer": "notebook.widgets.explorer",
    "forecast": "quantization.forecast",
    "Format": "quantization.format",
    "inspect": "store",
    "load": "offload.load",
    "measure_sensitivity": "evaluation.sensitivity",
    "models": "planner.catalogue",
    "needs": "planner.needs",
    "Offload": "offload.handle",
    "perplexity": "evaluation.perplexity",
    "plots": "plots",
    "Policy": "cache.policies",
    "preflight": "planner.preflight",
    "quantize": "evaluation.quantize",
    "quantized": "evaluation.quantize",
    "QuantizeWidget": "notebook.widgets.quantize",
    "record": "offload.record",
    "record_text": "offload.read_text",
    "replay": "analysis.replay",
    "RoutingWidget": "notebook.widgets.trace",
    "SpeculationWidget": "notebook.widgets.trace",
    "stepper": "notebook.views.stepper",
    "Store": "store",
    "tables": "analysis.tables",
    "timeline": "analysis.timeline",
    "Trace": "trace",
    "verify": "store",
    "xray": "notebook.views.xray",
}
__all__ = ["MoEColabError", *_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    path = _MODULES[name]
    module = importlib.import_module(f".{path}", __name__)
    value = module if name in ("exercises", "plots", "tables") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])

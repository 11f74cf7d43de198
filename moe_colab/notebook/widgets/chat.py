"""`mc.ChatWidget`: the chat as a widget. Knows a ChatSession and its controls; generates nothing,
and leaves it to the Follower when the new text of an answer is shown.
"""

from __future__ import annotations

import itertools
import time
import weakref
from typing import Any

from IPython.display import HTML, display
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...cache.pool import CLOSED
from ...chat import markup
from ...chat.answer import Answer
from ...chat.session import ChatSession
from ...chat.suggestions import suggestions
from ...chat.turn import Turn
from ...errors import MoEColabError
from ..views.displayed import Displayed
from ..views.view import web_asset
from .chat_controls import ChatControls
from .controls import close, slots_value, status_line
from .follower import Follower
from .panel import shows_errors

SECONDS_AFTER_ENTER = 0.5
REPLACED = "a newer chat of the same model has replaced this one: use the newer one."
_numbers = itertools.count(1)
_shown: weakref.WeakKeyDictionary[PreTrainedModel, weakref.ref[ChatWidget]] = (
    weakref.WeakKeyDictionary()
)


class ChatWidget(Displayed):
    """A chat with a loaded model. As the last line of a cell it displays itself: what the model is
    good for, the conversation, questions to try, and the controls.

    The conversation belongs to the model: a second ChatWidget of the same model, for example when
    the cell runs again, continues it and replaces the first. `session` is the ChatSession,
    `controls` are the widgets, `error` is the latest error that was no MoEColabError, or what made
    an answer end with one. The buttons call `send`, `stop`, `retry`, `clear` and `save`; a
    suggested question is sent by a click.
    Without an event loop, call `flush` to show new text; `answering` is True until all is shown.
    Raises MoEColabError for a model without a tokenizer; later errors appear in the status line.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        system: str | None = None,
    ):
        before = _shown.get(model, lambda: None)()
        if before:
            before.session.change_tokenizer(tokenizer)
        self.session = before.session if before else ChatSession(model, tokenizer)
        if system is not None:
            self.session.system = system
        if before:
            before.close()
        _shown[model] = weakref.ref(self)
        self.name = f"moe-chat-{next(_numbers)}"
        self.controls = ChatControls(self.session, suggestions(self.session), self.name)
        self.error: Exception | None = None
        self._follower = Follower(self._show_under_way, self._finish, self.controls.resend)
        self._entered = 0.0  # time of an Enter that came before its text
        self._closed = False
        self._listen()
        self._show(self.session.turns)
        self._say_ready()
        if self.session.busy:
            self._follow(self.session.answer)

    # ------------------------------------------------------------------ what the buttons do
    @shows_errors
    def send(self, text: str | None = None) -> None:
        """Ask `text`, or the text in the message box."""
        box = self.controls.box
        question = (box.value if text is None else text).strip()
        if self._closed:
            raise MoEColabError(REPLACED)
        if not question:
            raise MoEColabError("write a message first.")
        if self.session.busy:
            raise MoEColabError("an answer is under way: your message was not sent.")
        self._follow(self.session.start(question, **self._settings()))
        if text is None:
            box.value = ""

    @shows_errors
    def retry(self) -> None:
        """Ask the latest question again; the new answer replaces the old one."""
        answer = self.session.retry(**self._settings())
        self._show(self.session.turns[:-1])
        self._follow(answer)

    @shows_errors
    def stop(self) -> None:
        if self.session.busy:
            self.session.stop()
            begun = self.session.answer.count > 0
            self.say("stopping after this token" if begun else "stopping")

    @shows_errors
    def clear(self) -> None:
        self.session.reset()
        self._show([])
        self.say("the conversation is cleared")

    @shows_errors
    def save(self, ending: str) -> None:
        """Save the conversation in the working folder; ending: ".json" or ".md"."""
        path = self.session.export(time.strftime(f"chat-%Y%m%d-%H%M%S{ending}"))
        self.say(f"saved as {path} in the notebook's folder")

    @property
    def answering(self) -> bool:
        """Whether an answer is under way, or its end is not shown yet."""
        return self._follower.answer is not None

    def flush(self) -> None:
        """Show the new text, unless there is none or the latest flush was a moment ago."""
        self._follower.flush()

    def say(self, text: str, bad: bool = False) -> None:
        """Show a sentence in the status line."""
        self.controls.status.value = status_line(text, bad)

    def close(self) -> None:
        """Remove the widget from the page; the conversation stays with the model."""
        self._closed = True
        self._follower.leave()
        close(self.controls.page)

    def __repr__(self) -> str:
        return (
            f"<Chat with {self.session.model.offload.name}. A notebook shows it; anywhere else, "
            "talk by mc.ChatSession or `python -m moe_colab chat`, and save the conversation with "
            '.session.export("chat.md")>'
        )

    def _display(self) -> None:
        if self._closed:
            display(HTML(REPLACED))
            return
        display(self.controls.page)
        flush = self._follower.colab_callback(self.name)
        script = web_asset("chat.js").replace("$NAME", self.name)
        display(HTML(f"<script>{script.replace('$FLUSH', flush)}</script>"))

    # ------------------------------------------------------------------ an answer
    def _follow(self, answer: Answer) -> None:
        self.controls.set_busy(True)
        if not self.session.turns:
            self.controls.history.value = ""
        self.controls.live.value = markup.under_way(answer.turn())
        self.controls.suggest(but=[*(t.question for t in self.session.turns), answer.question])
        self.say("; ".join(filter(None, ["answering", markup.left_out_note(answer.left_out)])))
        self._follower.follow(answer)

    @shows_errors
    def _show_under_way(self, answer: Answer) -> None:
        turn = answer.turn()
        self.controls.live.value = markup.under_way(turn)
        self.controls.numbers.value = markup.numbers(turn, answer.rate)

    @shows_errors
    def _finish(self, answer: Answer) -> None:
        self.controls.live.value = self.controls.numbers.value = ""
        self._show(self.session.turns)
        self.controls.set_busy(False)
        self.controls.refresh(self.session.model.offload)
        if answer.error is not None:
            self.controls.box.value = self.controls.box.value or answer.question
            if not isinstance(answer.error.__cause__, MoEColabError | None):
                self.error = answer.error.__cause__
            raise answer.error
        self._say_ready("stopped" if answer.turn().stopped else "ready")

    def _say_ready(self, text: str = "ready") -> None:
        if self.session.model.offload.closed:
            self.say(CLOSED, bad=True)
        elif self.session.tokenizer.chat_template is None:
            self.say(
                f"{text}; this is a base model without a chat template: it continues each message "
                "alone, without the system prompt"
            )
        else:
            self.say(text)

    def _settings(self) -> dict[str, Any]:
        self.session.system = self.controls.system.value.strip() or None
        return self.controls.generation()

    def _show(self, turns: list[Turn]) -> None:
        self.controls.history.value = markup.conversation(turns)
        self.controls.suggest(but=[turn.question for turn in turns])

    # ------------------------------------------------------------------ events
    def _listen(self) -> None:
        parts = self.controls
        parts.line.on_submit(self._enter)  # deprecated in ipywidgets 8, but still there
        parts.line.observe(self._after_enter, "value")
        parts.send.on_click(lambda _: self.send())
        parts.stop.on_click(lambda _: self.stop())
        parts.retry.on_click(lambda _: self.retry())
        parts.clear.on_click(lambda _: self.clear())
        parts.as_json.on_click(lambda _: self.save(".json"))
        parts.as_markdown.on_click(lambda _: self.save(".md"))
        for control in (parts.slots, parts.policy):
            control.observe(self._change_cache, "value")
        for question in parts.questions:
            question.on_click(lambda clicked: self.send(clicked.description))

    def _enter(self, _) -> None:
        """Enter was pressed. Until the page has run the script, the text arrives after the key."""
        self._entered = time.monotonic() if not self.controls.line.value else 0.0
        self.send()

    def _after_enter(self, change) -> None:
        if change["new"] and time.monotonic() - self._entered < SECONDS_AFTER_ENTER:
            self._entered = 0.0
            self.send()

    @shows_errors
    def _change_cache(self, change) -> None:
        """Give the model the new slots or the new policy."""
        offload, is_slots = self.session.model.offload, change["owner"] is self.controls.slots
        if change["new"] == (slots_value(offload) if is_slots else offload.policy_spec):
            return
        try:
            setattr(offload, "slots" if is_slots else "policy", change["new"])
        finally:
            self.controls.refresh(offload)
        if is_slots:
            self.say(f"{offload.slots} slots per layer from now on; new slots start empty")
        else:
            self.say(f"policy {offload.policy} from now on")

"""Shows an answer while it is generated, although no thread but the kernel's may touch a widget.

Knows an Answer, the kernel's event loop and Colab's page; knows nothing of how text is shown. The
loop calls `flush` several times per second, so that Stop works meanwhile. In Colab, which may lose
messages that the kernel sends between two requests, the page calls it instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Callable

from ...chat.answer import Answer

SECONDS_BETWEEN_FLUSHES = 0.125


class Follower:
    """Follows one answer at a time. `answer`: the one that is followed, None between answers.

    show(answer): shows its text so far. finish(answer): shows all of it, once it is done. resend():
    sends the page what messages that were lost would have shown.
    """

    def __init__(
        self,
        show: Callable[[Answer], None],
        finish: Callable[[Answer], None],
        resend: Callable[[], None],
    ):
        self.answer: Answer | None = None
        self._show, self._finish, self._resend = show, finish, resend
        self._flushed = 0.0  # time of the latest flush
        self._task: asyncio.Task | None = None  # a reference, so that it is not garbage-collected
        self._page_asks = False  # True in Colab after the page's first request

    def follow(self, answer: Answer) -> None:
        """Show this answer from now on. Without an event loop, the caller must call `flush`."""
        self.answer = answer
        with contextlib.suppress(RuntimeError):
            self._task = asyncio.get_running_loop().create_task(self._drain(answer))

    def leave(self) -> None:
        """Stop following; the answer itself goes on."""
        self.answer = None

    def flush(self) -> None:
        """Show the new text, unless there is none or the latest flush was a moment ago."""
        answer, now = self.answer, time.monotonic()
        if answer is None:
            return
        if answer.done:
            self.answer = None
            self._finish(answer)
        elif now - self._flushed >= 0.9 * SECONDS_BETWEEN_FLUSHES:
            self._flushed = now
            self._show(answer)

    def colab_callback(self, name: str) -> str:
        """The name by which Colab's page calls `flush`; "" outside Colab. name: of the chat."""
        try:
            from google.colab import output
        except ImportError:
            return ""
        alive = weakref.WeakMethod(self._flush_for_page)  # Colab keeps callbacks forever

        def flush() -> None:
            if (method := alive()) is not None:
                method()

        output.register_callback(f"moe_colab.{name}", flush)
        return f"moe_colab.{name}"

    def _flush_for_page(self) -> None:
        if not self._page_asks:
            self._page_asks = True  # messages before this one may be lost
            self._resend()
        self.flush()

    async def _drain(self, answer: Answer) -> None:
        while self.answer is answer and not self._page_asks:
            self.flush()
            await asyncio.sleep(SECONDS_BETWEEN_FLUSHES)

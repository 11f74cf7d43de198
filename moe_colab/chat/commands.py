"""The commands of the chat in a terminal, in words. Needs no torch: the command line's help names
them too."""

from __future__ import annotations

COMMANDS = {
    "/help": "show this",
    "/retry": "answer the last question again",
    "/reset": "forget the conversation",
    "/thinking": "what the model thought before its last answer, where it marks that",
    "/stats": "what the last answer cost, and the counts of all answers",
    "/save": "keep the conversation: /save FILE.md or /save FILE.json",
    "/quit": "leave",
}
KEYS = {
    "Enter": "send the message; pasted text may have several lines",
    "Up, Down": "earlier messages; kept in memory only, until you leave",
    "Tab": "complete a command",
    "Ctrl-C": "stop the answer, or drop the message that you are writing",
    "Ctrl-D": "leave",
}


def help_text() -> str:
    """What /help shows."""
    rows = (COMMANDS | KEYS).items()
    return "\n".join(f"  {name:9} {text}" for name, text in rows)

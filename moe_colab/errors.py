"""What goes wrong, in words a person can act on."""

from __future__ import annotations

CLOSED = "this model was closed: load it again with mc.load()."


class MoEColabError(Exception):
    """The one exception family a user meets: what was found, what was expected, what to do next."""

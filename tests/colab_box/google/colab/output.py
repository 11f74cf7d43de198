"""The page calls Python."""

import json
import os

callbacks = {}


def register_callback(name, callback):
    callbacks[name] = callback


def invoke(name, args, kwargs):
    """What the page's invokeFunction runs here."""
    with open(os.environ["BOX_NOTES"], "a") as notes:
        notes.write(f"invoked {name}\n")
    return callbacks[name](*json.loads(args), **json.loads(kwargs))

"""The secrets of the box: HF_TOKEN alone. Notes who asks, and from which thread."""

import os
import threading

from .errors import Error


class SecretNotFoundError(Error):
    pass


class NotebookAccessError(Error):
    pass


class TimeoutException(Error):
    pass


def get(name):
    with open(os.environ["BOX_NOTES"], "a") as notes:
        notes.write(f"secret {name} in {threading.current_thread().name}\n")
    if name != "HF_TOKEN":
        raise SecretNotFoundError(name)
    return os.environ["BOX_TOKEN"]

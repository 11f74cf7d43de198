"""Loaded by every Python of the box: notes each host that it connects to or looks up."""

import os
import sys

NOTED = {"socket.connect": 1, "socket.getaddrinfo": 0}  # event: where the address stands


def note(event, args):
    if event in NOTED:
        address = args[NOTED[event]]
        host = address[0] if isinstance(address, tuple) else address
        with open(os.environ["BOX_NOTES"], "a") as notes:
            notes.write(f"host {host}\n")


sys.addaudithook(note)

"""The kernel. As reported of Colab (colabtools issue 3373), what a widget says while no request is
answered never reaches the page, neither then nor later."""

import os
import sys
import threading

from ipykernel.comm import Comm
from ipykernel.ipkernel import IPythonKernel
from traitlets import Type

from ._shell import Shell


class Kernel(IPythonKernel):
    shell_class = Type(Shell)


def in_a_request():
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None and frame.f_code.co_name != "dispatch_shell":
        frame = frame.f_back
    return frame is not None


def publish_or_lose(comm, *args, **kwargs):
    if in_a_request():
        return publish(comm, *args, **kwargs)
    with open(os.environ["BOX_NOTES"], "a") as notes:
        notes.write("lost what a widget said\n")


publish = Comm._publish_msg
Comm._publish_msg = publish_or_lose

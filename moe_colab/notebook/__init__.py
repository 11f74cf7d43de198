"""What the notebooks show and ask: the setup cell, widgets, HTML views, exercises."""

from .install import setup as setup

"""The version, importable before anything else is installed."""

__version__ = "0.1.0"

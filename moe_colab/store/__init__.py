"""The store on disk: a folder with one contiguous blob per expert, so that a load is one read."""

from .manifest import BlobLayout, Field, FileEntry, LayerEntry, Manifest, Matrix
from .reader import Store, is_store
from .summary import Summary, inspect
from .verify import verify
from .writer import StoreWriter

__all__ = [
    "BlobLayout",
    "Field",
    "FileEntry",
    "LayerEntry",
    "Manifest",
    "Matrix",
    "Store",
    "StoreWriter",
    "Summary",
    "inspect",
    "is_store",
    "verify",
]

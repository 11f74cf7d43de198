"""Stores on disk: a folder with one contiguous blob per expert, so that a load is one read."""

from .blobs import BlobFile, BlobLayout, DenseEntry, DenseMatrix, Field, LayerEntry, Matrix
from .manifest import FileEntry, Manifest
from .reader import Store, is_store
from .summary import Summary, inspect
from .verify import verify
from .writer import StoreWriter

__all__ = [
    "BlobFile",
    "BlobLayout",
    "DenseEntry",
    "DenseMatrix",
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

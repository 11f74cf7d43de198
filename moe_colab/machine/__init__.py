"""This machine: its memory, its disk, its folders. Needs no torch."""

"""A trace under another cache: replay, timeline, tables. Needs no torch, no model."""

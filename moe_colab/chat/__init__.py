"""Conversations with a model: session, answer, terminal."""

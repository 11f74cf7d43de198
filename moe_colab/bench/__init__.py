"""Benchmarks. Each prints one JSON object that says on which machine it ran."""

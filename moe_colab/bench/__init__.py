"""Measurements: what README may quote. Each prints one JSON with the machine it ran on."""

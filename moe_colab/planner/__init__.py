"""What fits before anything is loaded: model sizes, slots, catalogue, preflight card."""

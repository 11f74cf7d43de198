"""Original checkpoints: sources, downloads from the hub, shards, model families."""

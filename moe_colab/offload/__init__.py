"""The running model: load, hooks, experts function, prefetcher, handle, CUDA link."""

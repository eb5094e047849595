"""Lifecycle: collect, check and split data before training."""

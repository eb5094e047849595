"""Lifecycle: one training loop, one file per method."""

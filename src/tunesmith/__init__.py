"""Tunesmith: from a file of examples to a proven, served specialist model, on your own machine."""

__version__ = "0.1.0"

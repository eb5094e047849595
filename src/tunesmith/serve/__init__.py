"""Lifecycle: answering prompts with loaded models."""

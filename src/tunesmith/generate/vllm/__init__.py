"""vLLM as a backend: a server of its own, in its own Python environment, that Tunesmith starts, watches and asks."""

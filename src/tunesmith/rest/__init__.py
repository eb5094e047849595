"""Door: OpenAI's HTTP API. Translation only."""

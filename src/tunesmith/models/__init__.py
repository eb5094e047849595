"""Materials: finding and loading a base, adapters, model versions on disk."""

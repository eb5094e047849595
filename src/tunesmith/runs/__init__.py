"""Runs: what happens because of a spec; the run folder, resume, registration."""

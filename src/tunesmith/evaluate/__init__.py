"""Lifecycle: arms, statistics, verdict and report: the proof that tuning helped."""

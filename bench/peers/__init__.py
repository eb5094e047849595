"""The sides of the benchmarks: one script for each, run as a process of its own in its own environment.

    PYTHON bench/peers/SIDE.py JOB.json

A script reads a job (`clock.Job` to train, `waves.GenerateJob` to generate) and writes a result. Scripts of peers
import nothing of Tunesmith; `clock.py` and `waves.py` need the standard library alone.
"""

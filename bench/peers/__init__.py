"""The sides of the training benchmark: one script for each, run as a process of its own in its own environment.

    PYTHON bench/peers/SIDE.py JOB.json

A script reads a job (`clock.Job`) and writes a result (`clock.StepClock.write`). Scripts of peers import nothing of
Tunesmith; `clock.py` needs the standard library alone.
"""

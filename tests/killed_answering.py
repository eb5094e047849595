"""Answering a file in a process that can be killed; see `killed_training.Processes`."""

from __future__ import annotations

from tunesmith import api
from tunesmith.record.home import Home
from tunesmith.specs.generation import SamplingSpec


def answer(root, base, prompts, output, settings):
    api.generate_file(base, prompts, output, sampling=SamplingSpec.parse(settings), home=Home(root))

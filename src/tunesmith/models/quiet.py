"""Loads models without the chatter of the libraries underneath: what matters to a user becomes an error or an event."""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tqdm.auto import tqdm  # type: ignore[import-untyped]  # comes with transformers
from transformers.utils import logging as transformers_logging

#: The switches belong to the whole process, so one model loads at a time.
_SWITCHES = threading.RLock()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Switch off the libraries' progress bars, warnings and log lines below errors, and put them back afterwards."""
    with _SWITCHES, _switched_off(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _switched_off() -> Iterator[None]:
    """Turn each library's own switches."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    hub_bars = are_progress_bars_disabled()
    noisy = [logging.getLogger(name) for name in ("gguf", "huggingface_hub", "accelerate")]
    levels = [logger.level for logger in noisy]
    bar_start = tqdm.__init__
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    # The bar of GGUF files asks neither switch.
    tqdm.__init__ = functools.partialmethod(bar_start, disable=True)
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if not hub_bars:
            enable_progress_bars()
        tqdm.__init__ = bar_start
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)

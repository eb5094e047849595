"""Loads models without the chatter of the libraries underneath: what matters to a user becomes an error or an event."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import transformers.modeling_gguf_pytorch_utils as gguf_loading
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
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
    gguf_bar = gguf_loading.tqdm
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    # This one bar doesn't ask the switch above.
    gguf_loading.tqdm = _no_bar
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
        gguf_loading.tqdm = gguf_bar
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def _no_bar(items: Iterable[object], **_: object) -> Iterable[object]:
    """Stand in for tqdm: hand the items through."""
    return items

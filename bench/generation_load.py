"""Servers under load: requests arrive at random (a Poisson process), and each answer is streamed.

Both servers are called by the openai client, from one event loop in this process, on the same machine.
"""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from openai import APIError, AsyncOpenAI

from generation_sides import OURS, GenerationSide, python_of
from sides import Environments, SideFailure, side_environment
from tunesmith.record.home import Home

#: Requests a second, and how many of them.
RATES = ((1.0, 16), (2.0, 24), (4.0, 40), (6.0, 48))
_WARM_UP_REQUESTS = 4
_START_SECONDS, _REQUEST_SECONDS = 300, 300


@dataclass
class Heard:
    """One answer as its caller heard it: when it was asked for, when its pieces came, and how many tokens it has."""

    asked_at: float
    pieces_at: list[float] = field(default_factory=list)
    tokens: int = 0


def arrivals(rate: float, count: int, seed: int = 0) -> list[float]:
    """Return the seconds from the start at which requests arrive, `rate` a second on average."""
    chance = random.Random(seed)
    return list(accumulate(chance.expovariate(rate) for _ in range(count)))


def load_figures(rate: float, heard: Sequence[Heard]) -> dict[str, Any]:
    """Return the figures of one rate; times in seconds."""
    first = [one.pieces_at[0] - one.asked_at for one in heard]
    between = [after - before for one in heard for before, after in zip(one.pieces_at, one.pieces_at[1:], strict=False)]
    seconds = max(one.pieces_at[-1] for one in heard) - min(one.asked_at for one in heard)
    return {
        "rate": rate,
        "requests": len(heard),
        "tokens_per_second": sum(one.tokens for one in heard) / seconds,
        "first_token_seconds": _percentiles(first),
        "between_tokens_seconds": _percentiles(between or [0.0]),
    }


def measure_load(
    sides: Sequence[GenerationSide],
    folder: Path,
    environments: Environments,
    home: Home,
    questions: Sequence[str],
    *,
    scale: float,
    new_tokens: int,
) -> dict[str, Any]:
    """Measure each side's server at all rates.

    Args:
        sides: whose servers.
        folder: of the base.
        environments: where peers live.
        home: Tunesmith's.
        questions: what is asked; none twice.
        scale: share of the usual number of requests.
        new_tokens: of each answer.

    Raises:
        SideFailure: Tunesmith's own server failed.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    failures: dict[str, str] = {}
    for side in sides:
        print(f"  {side.name}'s server", file=sys.stderr, flush=True)
        try:
            with served(side, folder, environments, home) as address:
                runs[side.name] = _all_rates(address, questions, scale, new_tokens)
        except SideFailure as failure:
            if side is OURS:
                raise
            print(f"{side.name} {failure}", file=sys.stderr, flush=True)
            failures[side.name] = str(failure).splitlines()[0]
    return {"runs": runs, "failures": failures, "new_tokens": new_tokens}


@contextmanager
def served(side: GenerationSide, folder: Path, environments: Environments, home: Home) -> Iterator[str]:
    """Start a side's server; yield its address once it answers; stop it.

    Raises:
        SideFailure: its environment isn't there, or it doesn't start.
    """
    python = python_of(side, environments)
    port = _free_port()
    options = ["--host", "127.0.0.1", "--port", str(port)]
    if side is OURS:
        command = [str(python.with_name("tunesmith")), "serve", "--model", str(folder), "--dtype", "bfloat16", *options]
    else:
        module = "vllm.entrypoints.openai.api_server"
        command = [str(python), "-m", module, "--model", str(folder), "--dtype", "bfloat16", "--enforce-eager"]
        command += ["--max-model-len", "2048", "--max-num-seqs", "32", *options]
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile() as log:
        environment = {**side_environment(home.root), **side.environment}
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            if not _answers(process, f"http://127.0.0.1:{port}/v1/models"):
                log.seek(0)
                raise SideFailure(f"failed: its server didn't start\n{log.read().decode(errors='replace')[-4000:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _all_rates(address: str, questions: Sequence[str], scale: float, new_tokens: int) -> list[dict[str, Any]]:
    """Ask a server's one model at all rates, one after the other.

    Raises:
        SideFailure: it refuses, or an answer isn't what was asked for.
    """
    try:
        return asyncio.run(_ask_all(address, questions, scale, new_tokens))
    except APIError as error:
        raise SideFailure(f"failed: {error}") from error


async def _ask_all(address: str, questions: Sequence[str], scale: float, new_tokens: int) -> list[dict[str, Any]]:
    left = iter(questions)
    found = []
    client = AsyncOpenAI(base_url=address, api_key="none", timeout=_REQUEST_SECONDS, max_retries=0)
    try:
        model = (await client.models.list()).data[0].id
        # The first ones load the model, where the server hasn't.
        await asyncio.gather(*(_ask(client, model, next(left), new_tokens) for _ in range(_WARM_UP_REQUESTS)))
        for rate, usual_count in RATES:
            count = max(1, round(scale * usual_count))
            offsets = arrivals(rate, count)
            started = time.perf_counter()
            heard = await asyncio.gather(
                *(_ask(client, model, next(left), new_tokens, started + offset) for offset in offsets)
            )
            found.append(load_figures(rate, heard))
            print(f"    {rate:g} a second: {found[-1]['tokens_per_second']:,.0f} tokens/s", file=sys.stderr, flush=True)
    finally:
        await client.close()
    return found


async def _ask(client: AsyncOpenAI, model: str, question: str, new_tokens: int, at: float | None = None) -> Heard:
    """Wait for the moment `at`, ask, and listen to the end."""
    if at is not None:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
    heard = Heard(time.perf_counter())
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_completion_tokens=new_tokens,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            heard.pieces_at.append(time.perf_counter())
        if chunk.usage is not None:
            heard.tokens = chunk.usage.completion_tokens
    if not heard.pieces_at or heard.tokens != new_tokens:
        raise SideFailure(f"failed: an answer has {heard.tokens} tokens, and {new_tokens} were asked for")
    return heard


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "p99": float(np.percentile(values, 99))}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until a server answers; False if it ended or took too long."""
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False

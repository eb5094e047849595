"""The generation section of docs/benchmarks.md and its bars, from the results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmark_page import Bar, bars_table, spaced, table, wrapped
from generation_sides import OURS, SIDES, TRANSFORMERS, VLLM
from ratios import Spread, ratio, spread

#: At least so many times a package's output tokens a second, by requests at once.
LEAST_SPEED_RATIOS = {
    "1": {VLLM.package: 1.5, TRANSFORMERS.package: 1.5},
    "32": {VLLM.package: 2.0, TRANSFORMERS.package: 2.5},
}
LEAST_PREFILL_RATIO = 5.0
MOST_ADAPTER_COST = 0.25

_WHAT = """SmolLM2-135M in bf16, greedy. All sides get the same prompts as the same tokens, give answers of the same
length whatever the model says, and run as processes of their own, in turns; a ratio is the median of the ratios of
neighbouring runs (lowest to highest in brackets). Prompts are handed over at once as token ids, and the time runs to
the last token. Tunesmith is the engine that `tunesmith serve` runs; transformers is `generate` on a batch of prompts
of like length, padded on the left; vLLM is its build for CPUs, without compilation, on all cores. Bars compare with a
package's fastest settings."""

Run = dict[str, Any]


def tokens_per_second(wave: Run) -> float:
    """Return output tokens a second, prompts included in the time."""
    return float(wave["tokens"] / wave["seconds"])


def decoded_per_second(wave: Run) -> float:
    """Return output tokens a second from when all requests of a batch had their first one."""
    return float((wave["tokens"] - wave["began_tokens"]) / (wave["seconds"] - wave["began_seconds"]))


def prefilled_per_second(wave: Run) -> float:
    """Return prompts' tokens a second, shared or not, until all requests had their first token."""
    return float(wave["prompt_tokens"] / wave["began_seconds"])


def bars(results: Run) -> list[Bar]:
    """Return the bars of everything that was measured on both sides."""
    found = []
    for name, wanted in LEAST_SPEED_RATIOS.items():
        for package, least in wanted.items():
            reached = best_ratio(results.get("throughput"), package, name, tokens_per_second)
            if reached is not None:
                requests = "1 request" if name == "1" else f"{name} requests at once"
                what = f"{requests}: speed against {SIDES[package].title}"
                found.append(Bar(what, f"{reached.text(2)} x", f"at least {least:g} x", reached.median >= least))
    reached = best_ratio(results.get("shared"), TRANSFORMERS.package, "cold", prefilled_per_second)
    if reached is not None:
        what, wanted_text = "Shared prompt: prefill against transformers", f"at least {LEAST_PREFILL_RATIO:g} x"
        found.append(Bar(what, f"{reached.text(2)} x", wanted_text, reached.median >= LEAST_PREFILL_RATIO))
    if "adapters" in results:
        cost = _adapter_cost(results["adapters"], "four", "one")
        wanted_text = f"at most +{100 * MOST_ADAPTER_COST:g} %"
        found.append(
            Bar("Four adapters against one: time", _percent(cost), wanted_text, cost.median <= MOST_ADAPTER_COST)
        )
    return found


def best_ratio(part: Run | None, package: str, name: str, figure: Callable[[Run], float]) -> Spread | None:
    """Return ours to the fastest settings of a package in one wave; None if it wasn't measured on both."""
    if part is None:
        return None
    ours = _values(part, OURS.name, name, figure)
    theirs = [_values(part, side, name, figure) for side in part["runs"] if SIDES[side].package == package]
    theirs = [values for values in theirs if values]
    if not ours or not theirs:
        return None
    return ratio(ours, max(theirs, key=lambda values: spread(values).median))


def section(results: Run) -> str:
    """Return the section in Markdown; parts that weren't measured aren't there."""
    parts = ["## Generation", "", wrapped(_WHAT), ""]
    found = bars(results)
    if found:
        parts += bars_table(found)
    for name, chapter in _CHAPTERS.items():
        if name in results:
            parts += ["\n".join(chapter(results[name])).strip(), ""]
    parts += ["### Where generation was measured", "", results["machine"], "", _versions(results), ""]
    parts += ["Again: `make bench-generate`, or `.venv/bin/python bench/generate.py`."]
    return "\n".join(parts)


def _throughput(part: Run) -> list[str]:
    facts = part["prompts"]
    lengths = [fact["tokens"] / fact["count"] for fact in facts.values()]
    sentence = (
        f"GSM8K's questions, {min(lengths):.0f} to {max(lengths):.0f} tokens on average, all different; answers of "
        f"{part['new_tokens']} tokens. In brackets of the peers: how many times as fast Tunesmith is."
    )
    head = ("requests at once", *(SIDES[side].title for side in part["runs"]))
    whole = [(name, *_cells(part, name, tokens_per_second)) for name in facts]
    decoding = [(name, *_cells(part, name, decoded_per_second)) for name in facts if part["new_tokens"] > 1]
    return [
        *("### Output tokens a second", "", wrapped(sentence), "", *table(head, whole), ""),
        *(wrapped("Decoding alone, from when all requests of a batch had their first token:"), ""),
        *(*table(head, decoding), "", *_failures(part)),
    ]


def _shared(part: Run) -> list[str]:
    cold = part["prompts"]["cold"]
    sentence = (
        f"{cold['count']} different messages at once under one system prompt: {cold['tokens']:,} tokens, of which all "
        f"begin with the same {cold['common_tokens']}. Cold: nothing was computed before. Warm: other messages under "
        "the same system prompt, right after. Prefill is the prompts' tokens a second, shared or not, until every "
        "request has its first token."
    )
    head = ("", *(SIDES[side].title for side in part["runs"]))
    names = {"cold": "cold", "warm": "warm"}
    prefill = [(f"prefill, {word}", *_cells(part, name, prefilled_per_second)) for name, word in names.items()]
    first = [
        (f"first token of all, {word}, s", *_cells(part, name, lambda wave: wave["began_seconds"], 2, inverse=True))
        for name, word in names.items()
    ]
    return ["### A shared system prompt", "", wrapped(sentence), "", *table(head, [*prefill, *first])]


def _load(part: Run) -> list[str]:
    sentence = (
        "Each side's OpenAI-compatible server, called by the openai client on the same machine; requests arrive at "
        f"random (Poisson), answers of {part['new_tokens']} tokens are streamed. Milliseconds, median and 99th "
        "percentile: to the first piece of text, and between pieces."
    )
    head = ("requests a second", "side", "first token", "p99", "between tokens", "p99", "tokens/s")
    rows = []
    for at, one in enumerate(next(iter(part["runs"].values()))):
        for side, rates in part["runs"].items():
            times = [rates[at][key][q] for key in _LOAD_TIMES for q in ("median", "p99")]
            cells = (f"{1000 * seconds:,.0f}" for seconds in times)
            rows.append((f"{one['rate']:g}", SIDES[side].title, *cells, f"{rates[at]['tokens_per_second']:,.0f}"))
    return ["### Under load", "", wrapped(sentence), "", *table(head, rows), "", *_failures(part)]


_LOAD_TIMES = ("first_token_seconds", "between_tokens_seconds")


def _adapters(part: Run) -> list[str]:
    sentence = (
        f"{part['at_once']} requests at once on Tunesmith, through LoRA adapters of rank {part['rank']} on all linear "
        "layers, which stay beside the base."
    )
    rows = []
    for name, title in (("none", "the base alone"), ("one", "one adapter"), ("four", "four adapters, mixed")):
        speeds = spread([tokens_per_second(run[name]) for run in part["runs"]])
        cost = "" if name == "none" else _percent(_adapter_cost(part, name, "none"))
        rows.append((title, speeds.text(), cost))
    head = ("", "tokens/s", "more time than the base alone")
    return ["### Adapters side by side", "", wrapped(sentence), "", *table(head, rows)]


def _limits(part: Run) -> list[str]:
    measured = part["limits"]
    bandwidth = max(one["bandwidth"] for one in measured)
    weights = measured[0]["weight_bytes"]
    sentence = (
        f"A step reads {weights / 1e6:,.0f} MB of weights; this machine reads {bandwidth / 1e9:.1f} GB/s at best, "
        f"which would allow {bandwidth / weights:,.0f} steps a second. The products are those of one step alone, with "
        "weights laid out as the engine has them, measured right before and after. No tokens are guessed here."
    )
    head = ("requests at once", "tokens/s", "share of the memory's speed", "the products alone, tokens/s",
            "through PyTorch", "GFLOP/s", "share of the products' rate")  # fmt: skip
    rows = []
    for size in part["sizes"]:
        wave = part["waves"][str(size)]
        speed = decoded_per_second(wave)
        text_tokens = wave["prompt_tokens"] / (wave["tokens"] / part["new_tokens"]) + part["new_tokens"] / 2
        read = weights + size * text_tokens * measured[0]["cache_bytes_per_token"]
        packed, plain = (
            size / min(one["step_seconds"][form][str(size)] for one in measured) for form in ("packed", "plain")
        )
        rows.append(
            (
                f"{size}",
                f"{speed:,.0f}",
                f"{100 * read * speed / size / bandwidth:.0f} %",
                f"{packed:,.0f}",
                f"{plain:,.0f}",
                f"{speed * measured[0]['operations_per_token'] / 1e9:,.0f}",
                f"{100 * speed / packed:.0f} %",
            )
        )
    title = "### How close decoding is to the machine's limits"
    return [title, "", wrapped(sentence), "", *table(head, rows), "", *_whole_limits(part)]


def _whole_limits(part: Run) -> list[str]:
    """Return what whole batches, prompts and answers, could reach if only their products took time."""
    cost = part["limits"][0]
    rate, bandwidth = (max(one[name] for one in part["limits"]) for name in ("operations_per_second", "bandwidth"))
    sentence = (
        f"Prompts and answers together: the products alone, at this machine's best matrix rate of {rate / 1e9:,.0f} "
        "GFLOP/s and each step reading all weights once at the memory's best rate, whichever takes longer, would allow "
        "so much. No way of computing this model in bf16 gives more."
    )
    rows = []
    for size in part["sizes"]:
        wave = part["waves"][str(size)]
        steps = wave["tokens"] / size
        prompts = wave["prompt_tokens"] * cost["operations_per_prompt_token"] / rate
        step = max(size * cost["operations_per_token"] / rate, cost["weight_bytes"] / bandwidth)
        most, speed = wave["tokens"] / (prompts + steps * step), tokens_per_second(wave)
        rows.append((f"{size}", f"{speed:,.0f}", f"{most:,.0f}", f"{100 * speed / most:.0f} %"))
    return [wrapped(sentence), "", *table(("requests at once", "tokens/s", "at most", "share"), rows)]


_CHAPTERS: dict[str, Callable[[Run], list[str]]] = {
    "throughput": _throughput,
    "shared": _shared,
    "load": _load,
    "adapters": _adapters,
    "limits": _limits,
}


def _cells(
    part: Run, name: str, figure: Callable[[Run], float], digits: int = 0, *, inverse: bool = False
) -> list[str]:
    """Return each side's figure in one wave, and behind a peer's how many times as good ours is."""
    ours = _values(part, OURS.name, name, figure)
    cells = []
    for side in part["runs"]:
        values = _values(part, side, name, figure)
        if not values:
            cells.append("")
            continue
        cell = spread(values).text(digits) if side == OURS.name else f"{spread(values).median:,.{digits}f}"
        if side != OURS.name and ours:
            times = ratio(values, ours) if inverse else ratio(ours, values)
            cell += f" ({times.median:.1f} x)"
        cells.append(cell)
    return cells


def _values(part: Run, side: str, name: str, figure: Callable[[Run], float]) -> list[float]:
    return [figure(run[name]) for run in part["runs"].get(side, []) if name in run]


def _adapter_cost(part: Run, name: str, other: str) -> Spread:
    """Return how much more time a batch takes than another, as a share."""
    return spread([run[name]["seconds"] / run[other]["seconds"] - 1 for run in part["runs"]])


def _percent(share: Spread) -> str:
    """Return `+12 % (+10 to +15)`."""
    text = f"{100 * share.median:+.0f} %"
    return text if share.low == share.high else f"{text} ({100 * share.low:+.0f} to {100 * share.high:+.0f})"


def _failures(part: Run) -> Sequence[str]:
    return spaced([f"{SIDES[side].title} {reason}." for side, reason in part["failures"].items()])


def _versions(results: Run) -> str:
    """Return a sentence with the libraries of every side."""
    found: dict[str, str] = {}
    for part in ("throughput", "shared"):
        for side, facts in results.get(part, {}).get("sides", {}).items():
            listed = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
            found[SIDES[SIDES[side].package].title] = listed
    return wrapped("; ".join(f"{side}: {versions}" for side, versions in found.items()) + ".") if found else ""

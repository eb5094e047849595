"""The training section of docs/benchmarks.md and its bars, from the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmark_page import Bar, bars_table, spaced, table, wrapped
from ratios import Spread, final_loss, ratio, spread
from sides import BEST_PEER, EXACT_PEER, OURS, SAME_STEPS_PEER, SIDES, Side

MOST_MEMORY_SHARE = 0.5
LEAST_MATRIX_SHARE = 0.6
MOST_STARTUP_SECONDS = 10.0
MOST_LOSS_DIFFERENCE = 0.02

_WHAT = """\
LoRA of rank 16 on all linear layers of SmolLM2-135M in bf16, 64 real rows, 8 in a step, one epoch. All sides get the
same rows as the same tokens, learn the same ones of them, and run as processes of their own, Tunesmith and TRL in
turns; a ratio is the median of the ratios of neighbouring runs (lowest to highest in brackets). Tokens are the rows'
own, shared or not; the first step is left out. Tunesmith's side is what `tunesmith tune` calls, without validation
and proof. TRL runs in several settings, and the bars compare with the fastest; where its rows stand by length,
hardly anything is padding, and its own default, gradient checkpointing, is off unless it is called lean. Losses of
the same steps are compared with TRL in float32 where it ran: in bf16, PyTorch's operations lose small changes that
Tunesmith keeps (see "Small steps in bfloat16"). Memory is the process's highest resident memory, the loading of the
base included."""

_GROWTH_TITLES = {
    "context": "Longer rows (4,096 tokens in each step)",
    "vocabulary": "Larger vocabularies (SmolLM2-135M's shape, random weights)",
    "model": "Larger models (Llama shapes, random weights)",
}


def bars(results: dict[str, Any]) -> list[Bar]:
    """Return the bars of all work loads that were measured on both sides."""
    return [bar for load in results.get("workloads", {}).values() for bar in _bars_of(load)]


def _bars_of(load: dict[str, Any]) -> list[Bar]:
    title, runs = load["title"], load["runs"]
    found = []
    peer = fastest_peer(load)
    if peer is not None:
        speed = _ratio(load, "tokens_per_second", peer)
        wanted = load["least_speed_ratio"]
        found.append(
            Bar(f"{title}: speed against TRL", f"{speed.text(1)} x", f"at least {wanted:g} x", speed.median >= wanted)
        )
        memory = _ratio(load, "peak_memory_bytes", peer)
        found.append(
            Bar(
                f"{title}: memory against TRL",
                f"{memory.text(2)} x",
                f"at most {MOST_MEMORY_SHARE:g} x",
                memory.median <= MOST_MEMORY_SHARE,
            )
        )
    exact = next((side for side in (EXACT_PEER, SAME_STEPS_PEER) if side.name in runs), None)
    if exact is not None:
        difference = loss_difference(load, exact)
        found.append(
            Bar(
                f"{title}: final losses of the same steps, against {exact.title.split(',')[0]}",
                f"{100 * difference:.2f} % apart",
                f"at most {100 * MOST_LOSS_DIFFERENCE:g} %",
                difference <= MOST_LOSS_DIFFERENCE,
            )
        )
    if load["has_rate_bar"]:
        share = _matrix_share(load, OURS.name)
        wanted_text = f"at least {100 * LEAST_MATRIX_SHARE:g} %"
        reached = f"{100 * share.median:.0f} %"
        found.append(
            Bar(f"{title}: share of the matrix rate", reached, wanted_text, share.median >= LEAST_MATRIX_SHARE)
        )
    startup = spread([run["startup_seconds"] for run in runs[OURS.name]])
    reached = startup.text(1, "s")
    wanted_text = f"under {MOST_STARTUP_SECONDS:g} s"
    found.append(Bar(f"{title}: start-up", reached, wanted_text, startup.median < MOST_STARTUP_SECONDS))
    return found


def fastest_peer(load: dict[str, Any]) -> str | None:
    """Return TRL's fastest settings of those that ran, which the bars compare with; None without any."""
    speeds = {
        name: spread([run["tokens_per_second"] for run in runs]).median
        for name, runs in load["runs"].items()
        if SIDES[name].package == BEST_PEER.package and name != EXACT_PEER.name
    }
    return max(speeds, key=lambda name: speeds[name], default=None)


def loss_difference(load: dict[str, Any], peer: Side) -> float:
    """Return by how much the two sides' mean losses over the last quarter of the same steps differ, as a share."""
    runs = load["runs"]
    ours = spread([final_loss(run["losses"]) for run in runs[OURS.name]]).median
    theirs = final_loss(runs[peer.name][0]["losses"])
    return abs(ours - theirs) / theirs


def section(results: dict[str, Any]) -> str:
    """Return the section in Markdown; parts that weren't measured aren't there."""
    parts = ["## Training", "", wrapped(_WHAT), ""]
    loads = results.get("workloads", {})
    if loads:
        parts += bars_table(bars(results))
    for load in loads.values():
        parts += _load(load)
    growth = results.get("growth", {})
    for name, title in _GROWTH_TITLES.items():
        if name in growth:
            parts += [f"### {title}", "", *_growth(growth[name]), ""]
    parts += ["### Where this was measured", "", results["machine"], "", _versions(results), ""]
    parts += ["Again: `make bench-training`, or `.venv/bin/python bench/training.py`."]
    return "\n".join(parts)


def _load(load: dict[str, Any]) -> list[str]:
    """Return one work load's table of sides, and what the rows are."""
    work = load["work"]["steps"]
    row_tokens, tree_tokens = (sum(step[key] for step in work) for key in ("row_tokens", "tree_tokens"))
    targets = sum(step["targets"] for step in work)
    sentence = (
        f"{load['rows']} rows, {row_tokens:,} tokens; {tree_tokens:,} once what a step's rows share is counted once; "
        f"{targets:,} targets. The machine's matrix rate: {load['matrix_rate'] / 1e9:,.0f} GFLOP/s."
    )
    rows = [_side_row(load, name) for name in SIDES if name in load["runs"]]
    head = ("", "tokens/s", "Tunesmith is faster by", "memory, GiB", "share of the matrix rate", "start-up, s", "loss")
    failures = [f"{SIDES[name].title} {reason}." for name, reason in load["failures"].items()]
    return [f"### {load['title']}", "", wrapped(sentence), "", *table(head, rows), "", *spaced(failures)]


def _side_row(load: dict[str, Any], name: str) -> tuple[str, ...]:
    runs = load["runs"][name]
    faster = "" if name == OURS.name else f"{_ratio(load, 'tokens_per_second', name).text(1)} x"
    return (
        SIDES[name].title,
        spread([run["tokens_per_second"] for run in runs]).text(),
        faster,
        spread([run["peak_memory_bytes"] / 2**30 for run in runs]).text(2),
        f"{100 * _matrix_share(load, name).median:.0f} %",
        spread([run["startup_seconds"] for run in runs]).text(1),
        f"{spread([final_loss(run['losses']) for run in runs]).median:.3f}",
    )


def _growth(points: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of one growth: a row for each point, ours and the peer's speed and memory."""
    head = ("", "Tunesmith, tokens/s", "GiB", "TRL, tokens/s", "GiB", "faster by")
    rows = []
    for point in points:
        ours = point["runs"][OURS.name][0]
        cells = [point["at"], f"{ours['tokens_per_second']:,.0f}", f"{ours['peak_memory_bytes'] / 2**30:.2f}"]
        peers = point["runs"].get(BEST_PEER.name)
        if peers:
            speed, memory = peers[0]["tokens_per_second"], peers[0]["peak_memory_bytes"] / 2**30
            cells += [f"{speed:,.0f}", f"{memory:.2f}", f"{ours['tokens_per_second'] / speed:.1f} x"]
        else:
            cells += [point["failures"].get(BEST_PEER.name, "not run"), "", ""]
        rows.append(tuple(cells))
    return table(head, rows)


def _ratio(load: dict[str, Any], figure: str, name: str) -> Spread:
    """Return ours to theirs."""
    ours, theirs = ([run[figure] for run in load["runs"][side]] for side in (OURS.name, name))
    return ratio(ours, theirs)


def _matrix_share(load: dict[str, Any], name: str) -> Spread:
    """Return the share of the matrix rate, by the operations that are needed if shared text is computed once."""
    return spread([run["operations_per_second"] / load["matrix_rate"] for run in load["runs"][name]])


def _versions(results: dict[str, Any]) -> str:
    """Return a sentence with the libraries of every side."""
    found: dict[str, str] = {}
    for load in results.get("workloads", {}).values():
        for name, runs in load["runs"].items():
            side = SIDES[name].title.partition(",")[0].partition(" as ")[0]
            found[side] = ", ".join(f"{package} {version}" for package, version in runs[0]["versions"].items())
    return wrapped("; ".join(f"{side}: {versions}" for side, versions in found.items()) + ".") if found else ""

"""Put rows into groups that must stay on one side of the split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.examples import Example
from tunesmith.prepare.findings import Finding
from tunesmith.prepare.fingerprint import prompt_hash, prompt_words, user_words
from tunesmith.prepare.likeness import groups_of_near_identical, without_boilerplate

#: A group of more than this share of the rows is a template or a chain, not one question asked again and again; kept
#: whole it would bar many kinds of row from the test.
_LARGE_SHARE = 0.1
#: So are groups of more than this share when they hold, together, more than `_MANY_SHARE` of the rows.
_MIDDLING_SHARE = 0.02
_MANY_SHARE = 0.25
#: Smaller groups are always kept whole.
_SMALL_ROWS = 20
#: A group of more than this share of the rows leaves too little for the other side.
_OVERWHELMING_SHARE = 0.5
_PLACES_LISTED = 5


@dataclass(frozen=True, slots=True)
class Grouping:
    """Groups of row indices (ascending), and what had to be done to find them."""

    groups: tuple[tuple[int, ...], ...]
    findings: tuple[Finding, ...]


def group_rows(rows: Sequence[Example], similarity: float) -> Grouping:
    """Group rows whose users say the same, or nearly: words whose shingles' Jaccard is `similarity` or more.

    Groups that hold a large part of the rows are looked at again: by all words of the prompt, without those that most
    of its rows share (an instruction that is pasted into each row makes no two rows alike). Should more than half of
    the rows still hang together, only equal prompts are held together, and in the end nothing. Each such step is a
    finding.
    """
    findings: list[Finding] = []
    found = groups_of_near_identical([user_words(row) for row in rows], similarity)
    whole = _largest_kept_whole([len(group) for group in found], len(rows))
    groups: list[list[int]] = []
    alike: list[int] = []
    for group in found:
        if len(group) <= whole:
            groups.append(group)
        else:
            alike.extend(group)
            groups.extend(_told_apart(rows, group, similarity, findings))
    if alike and not findings:
        message = (
            f"{len(alike):,} rows share most of their words with many others (a template?). Near-identical ones among "
            "them were found by the words in which they differ."
        )
        findings.append(_finding("template", message, rows, alike))
    return Grouping(tuple(tuple(group) for group in sorted(groups)), tuple(findings))


def _largest_kept_whole(sizes: Sequence[int], rows: int) -> int:
    middling = max(_SMALL_ROWS, int(_MIDDLING_SHARE * rows))
    if sum(size for size in sizes if size > middling) > _MANY_SHARE * rows:
        return middling
    return max(_SMALL_ROWS, int(_LARGE_SHARE * rows))


def _told_apart(
    rows: Sequence[Example], group: list[int], similarity: float, findings: list[Finding]
) -> list[list[int]]:
    """Split a large group by what differs between its rows."""
    texts = without_boilerplate([prompt_words(rows[index]) for index in group])
    parts = [[group[position] for position in part] for part in groups_of_near_identical(texts, similarity)]
    overwhelming = _OVERWHELMING_SHARE * len(rows)
    kept: list[list[int]] = []
    for part in parts:
        kept.extend([part] if len(part) <= overwhelming else _by_prompt(rows, part, overwhelming, findings))
    return kept


def _by_prompt(
    rows: Sequence[Example], group: list[int], overwhelming: float, findings: list[Finding]
) -> list[list[int]]:
    """Split a group that holds most of the rows into equal prompts, or into single rows if there is but one prompt."""
    by_prompt: defaultdict[str, list[int]] = defaultdict(list)
    for index in group:
        by_prompt[prompt_hash(rows[index])].append(index)
    parts = list(by_prompt.values())
    if max(len(part) for part in parts) <= overwhelming:
        message = (
            f"{len(group):,} rows are nearly the same, one by one in a chain, and can't all stay on one side of the "
            "split: rows like the test's are in training, so the test's score will flatter."
        )
        findings.append(_finding("near_identical_data", message, rows, group))
        return parts
    message = f"{len(group):,} rows have almost the same prompt, so the test asks what training has seen."
    findings.append(_finding("one_prompt", message, rows, group))
    return [[index] for index in group]


def _finding(code: str, message: str, rows: Sequence[Example], group: list[int]) -> Finding:
    places = tuple(place for index in group[:_PLACES_LISTED] if (place := rows[index].place) is not None)
    return Finding(code, message, len(group), places)

"""Look at the rows for what may spoil a training: contradictions, imbalance, too little."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from tunesmith.data.examples import Conversation, Place
from tunesmith.data.recognise import Recognition
from tunesmith.prepare.findings import Finding
from tunesmith.prepare.fingerprint import answer_text, prompt_hash

_PLACES_LISTED = 20
_FEW_ROWS = 50
_DOMINANT_SHARE = 0.5
_SHOWN_CHARACTERS = 60


def inspect_rows(rows: Sequence[Conversation]) -> tuple[Finding, ...]:
    """Return what a person should know about the rows, none of which stops the training."""
    found = (_few(rows), _conflicts(rows), _dominant_answer(rows), _unanswered(rows), _spaces(rows))
    return tuple(finding for finding in found if finding is not None)


def unlearnt_findings(recognition: Recognition, ignored: Mapping[str, int]) -> tuple[Finding, ...]:
    """Return what of the file's content nothing is learnt from: columns, and keys of messages."""
    findings = []
    if recognition.unused_columns:
        names = ", ".join(f"`{column}`" for column in recognition.unused_columns)
        more = " Rows marked as bad there are learnt like good ones." if "label" in recognition.unused_columns else ""
        findings.append(Finding("unused_columns", f"Nothing is learnt from these columns: {names}.{more}"))
    if ignored:
        names = ", ".join(f"`{key}` ({count:,} rows)" for key, count in sorted(ignored.items()))
        message = f"Nothing is learnt from these keys of messages: {names}."
        findings.append(Finding("unused_message_keys", message, max(ignored.values())))
    return tuple(findings)


def unlearnt_of_files(files: Sequence[tuple[str, Recognition, Mapping[str, int]]]) -> list[Finding]:
    """Return `unlearnt_findings` of files (path, form, ignored keys); of several, each finding names its file."""
    return [
        dataclasses.replace(finding, message=f"{path}: {finding.message}") if len(files) > 1 else finding
        for path, recognition, ignored in files
        for finding in unlearnt_findings(recognition, ignored)
    ]


def _few(rows: Sequence[Conversation]) -> Finding | None:
    if len(rows) >= _FEW_ROWS:
        return None
    message = f"{len(rows)} rows are few: they can teach a tone or a form, seldom a skill, and prove little."
    return Finding("few_rows", message, len(rows))


def _conflicts(rows: Sequence[Conversation]) -> Finding | None:
    answers: defaultdict[str, set[str]] = defaultdict(set)
    asked: defaultdict[str, list[Conversation]] = defaultdict(list)
    for row in rows:
        key = prompt_hash(row)
        answers[key].add(answer_text(row))
        asked[key].append(row)
    conflicting = [row for key, same in asked.items() if len(answers[key]) > 1 for row in same]
    if not conflicting:
        return None
    prompts = sum(1 for different in answers.values() if len(different) > 1)
    message = (
        f"{len(conflicting):,} rows have the prompt of another row but a different answer "
        f"({prompts:,} {'prompt' if prompts == 1 else 'prompts'}). They are kept, on one side of the split."
    )
    return Finding("conflicting_answers", message, len(conflicting), _places(conflicting))


def _dominant_answer(rows: Sequence[Conversation]) -> Finding | None:
    answer, count = Counter(answer_text(row) for row in rows).most_common(1)[0]
    if count < 3 or count < _DOMINANT_SHARE * len(rows):
        return None
    shown = answer if len(answer) <= _SHOWN_CHARACTERS else f"{answer[:_SHOWN_CHARACTERS]}..."
    message = f"{count / len(rows):.0%} of the rows have the answer {shown!r}; always giving it would look good."
    return Finding("dominant_answer", message, count)


def _unanswered(rows: Sequence[Conversation]) -> Finding | None:
    trailing = [row for row in rows if row.messages[-1].role != "assistant"]
    if not trailing:
        return None
    message = f"{len(trailing):,} rows end without an answer; what comes after the last answer isn't learnt from."
    return Finding("ends_without_answer", message, len(trailing), _places(trailing))


def _spaces(rows: Sequence[Conversation]) -> Finding | None:
    padded = [row for row in rows if row.reference != row.reference.strip()]
    if not padded:
        return None
    message = f"{len(padded):,} answers begin or end with blanks or line ends, and these are learnt as well."
    return Finding("blanks_around_answers", message, len(padded), _places(padded))


def _places(rows: Sequence[Conversation]) -> tuple[Place, ...]:
    return tuple(row.place for row in rows[:_PLACES_LISTED] if row.place is not None)

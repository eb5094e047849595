"""What a run says about its base's architecture before it trains: why it is slow, which weights stay as they are."""

from __future__ import annotations

from tunesmith.models.load import LoadedModel
from tunesmith.models.side_by_side import why_one_by_one
from tunesmith.models.size import expert_stacks
from tunesmith.record.events import EventLog
from tunesmith.specs.tune import AdapterSpec, FullSpec


def note_architecture(loaded: LoadedModel, adapter: AdapterSpec, events: EventLog) -> None:
    """Add an event for each thing about the base that makes this run slower or its adapter smaller.

    Args:
        loaded: the base, without an adapter yet.
        adapter: what will be trained.
        events: the run's events.

    Raises:
        ModelError: the base can't be trained at all.
    """
    reason = why_one_by_one(loaded.model)
    if reason is not None:
        events.add(
            "one_row_at_a_time",
            f"This base has {reason}: its rows are computed one at a time, so nothing is shared between them, and "
            "answers are generated one after the other. Results are the same, only slower.",
            level="warning",
            reason=reason,
        )
    stacks = [] if isinstance(adapter, FullSpec) else expert_stacks(loaded.model)
    if stacks:
        parameters = sum(weight.numel() for _, weight in stacks)
        share = parameters / sum(weight.numel() for weight in loaded.model.parameters())
        events.add(
            "no_adapter_on_experts",
            f"The experts' weights ({share:.0%} of this base, such as {stacks[0][0]}) get no adapter: they are stacks "
            "of matrices, and adapters sit on linear layers. Attention and the other linear layers learn.",
            level="warning",
            parameters=parameters,
            modules=sorted({name.rsplit(".", 1)[0] for name, _ in stacks}),
        )

"""A base in memory and the rows as it sees them: what planning, training and the proof all need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation
from tunesmith.errors import DataError, SpecError
from tunesmith.models.adapters.adapter import Adapter
from tunesmith.models.adapters.attach import adapter_in, add_adapter, base_quantisation, go_on_with_adapter
from tunesmith.models.load import LoadedModel, load_base
from tunesmith.models.quantised import Nf4
from tunesmith.models.resolve import resolve_start
from tunesmith.models.size import ModelSize, model_size
from tunesmith.models.versions import ModelVersion, verify
from tunesmith.prepare.lengths import RowLength, limit_lengths
from tunesmith.prepare.pipeline import prepare
from tunesmith.prepare.prepared import PreparedData
from tunesmith.prepare.replay import with_replay
from tunesmith.record.home import Home
from tunesmith.runs.windows import WINDOW_TOKENS, prepare_windows, training_windows, validation_windows
from tunesmith.specs.data import DataSpec
from tunesmith.specs.tune import AdapterSpec, LoraSpec, PretrainSpec, TuneSpec
from tunesmith.train.loop import TrainingData
from tunesmith.train.mixing import mixture
from tunesmith.train.plan import Plan, make_plan
from tunesmith.train.settings import Amount, resolve_limits, resolve_optimisation
from tunesmith.train.sft import Row, encode

#: Tokens computed in one pass where the user doesn't say: enough to fill the machine, little enough for its memory.
_TOKENS_PER_MICROBATCH = {"cpu": 2048, "cuda": 16384}


@dataclass(frozen=True)
class Base:
    """A loaded base with its chat renderer and its size; `start` is the tuned model whose adapter is tuned further."""

    loaded: LoadedModel
    renderer: ChatRenderer
    size: ModelSize
    start: ModelVersion | None = None

    @classmethod
    def load(cls, spec: TuneSpec, home: Home) -> Base:
        """Resolve and load the spec's base.

        Raises:
            ModelError: it can't be found or used.
        """
        found = resolve_start(spec.base, home)
        if found.version is None:
            kept = base_quantisation(spec.adapter)
        else:
            verify(found.version)
            said = found.version.made.quantisation
            kept = None if said is None else Nf4.from_json(said, found.version.name)
        loaded = load_base(found.base, spec.limits.dtype, quantisation=kept)
        return cls(loaded, ChatRenderer(loaded.tokenizer), model_size(found.base.folder), found.version)

    def _own_adapter(self, start: ModelVersion, spec: TuneSpec) -> AdapterSpec:
        """Return the settings of the adapter that is tuned further.

        Raises:
            SpecError: the spec asks for others.
        """
        own = adapter_in(start.folder, self.loaded.model, self.loaded.quantisation)
        if spec.adapter not in (own, LoraSpec()):
            raise SpecError(
                f"{start.name} is tuned further as it is: its adapter has its own settings already.",
                where=start.name,
                fix="Leave the adapter's settings out, or start from the base.",
                code="adapter_is_given",
                param="adapter",
            )
        return own

    def add_adapter(self, spec: AdapterSpec) -> Adapter:
        """Put what is trained on the model, in place: a fresh adapter, or that of the tuned model to start from.

        Raises:
            SpecError: it names a layer that the model doesn't have.
            ModelError: the model can't take it, or the tuned model's files are broken.
        """
        model = self.loaded.model
        return add_adapter(model, spec) if self.start is None else go_on_with_adapter(model, self.start.folder)

    def prepare(self, spec: TuneSpec) -> tuple[TuneSpec, PreparedData[Any]]:
        """Read, check and split the data under this base's tokenizer, and replace every `auto` of the spec.

        Paths of files become absolute, so that the resolved spec repeats the run from anywhere.

        Raises:
            DataError: the data can't be used.
            SpecError: a tuned model is to be tuned further with other settings of its adapter.
        """
        if self.start is not None:
            spec = spec.model_copy(update={"adapter": self._own_adapter(self.start, spec)})
        dtype: Literal["bfloat16", "float32"] = "bfloat16" if self.loaded.dtype == torch.bfloat16 else "float32"
        is_text = isinstance(spec.method, PretrainSpec)
        asked = spec.limits
        if is_text and asked.max_tokens == "auto":
            asked = asked.model_copy(update={"max_tokens": WINDOW_TOKENS})
        limits = resolve_limits(
            asked,
            context_tokens=self.loaded.context_tokens,
            dtype=dtype,
            tokens_per_microbatch=_TOKENS_PER_MICROBATCH[self.loaded.device.type],
        )
        assert not isinstance(limits.max_tokens, str)
        prepared: PreparedData[Any]
        if is_text:
            prepared, amount = prepare_windows(spec.data, self.renderer.tokenizer, limits.max_tokens)
        else:
            prepared, amount = _limited(prepare(spec.data), self.renderer, limits.max_tokens, spec.data)
        prepared = with_replay(prepared, spec.data)
        if not prepared.train:
            raise DataError(
                "No rows are left to learn from.",
                where=spec.data.where,
                fix="Add rows, or set aside fewer (data.test_fraction, data.validation_fraction).",
                code="too_few_examples",
            )
        hidden = self.loaded.model.config.get_text_config().hidden_size
        optimisation = resolve_optimisation(spec, amount, hidden=hidden)
        changes = {"limits": limits, "optimisation": optimisation, "data": spec.data.with_absolute_paths()}
        name = self.loaded.source.name if self.start is None else self.start.name
        return spec.model_copy(update={**changes, "base": name}), prepared

    def workshop(
        self,
        spec: TuneSpec,
        train: Sequence[Any],
        validation: Sequence[Any],
        replay: Sequence[Conversation] = (),
    ) -> Workshop:
        """Render the rows for a resolved spec: conversations, or documents for `pretrain`.

        `replay` are general rows that are learnt along.

        Raises:
            DataError: the base's chat template refuses a row.
        """
        max_tokens = spec.limits.max_tokens
        assert not isinstance(max_tokens, str)
        # A general row whose answer lies behind the longest length has nothing to learn.
        general = [row for row in encode(replay, self.renderer, max_tokens) if row]
        if isinstance(spec.method, PretrainSpec):
            windows = training_windows(train, spec.data, self.renderer.tokenizer, max_tokens)
            spread = validation_windows(validation, spec.data, self.renderer.tokenizer, max_tokens)
            return Workshop(spec, self, windows.rows, spread, general, tuple(windows.sources))
        own, watched = (encode(side, self.renderer, max_tokens) for side in (train, validation))
        return Workshop(spec, self, own, watched, general, tuple(row.source for row in train))


@dataclass(frozen=True)
class Workshop:
    """A base with rendered rows, for one resolved spec; `sources` are the numbers of the training rows' sources."""

    spec: TuneSpec
    base: Base
    train: Sequence[Row]
    validation: Sequence[Row]
    replay: Sequence[Row] = ()
    sources: Sequence[int] = ()

    @property
    def data(self) -> TrainingData:
        """The rows as the loop takes them."""
        share = self.spec.data.replay.share if self.spec.data.replay else 0.0
        weights = [file.weight for file in self.spec.data.files]
        mixed = mixture(self.sources, weights, self.spec.data.mixing_temperature)
        return TrainingData(self.train, self.validation, mixed, replay=self.replay, replay_share=share)

    def plan(self) -> Plan:
        """Return what the run will take."""
        return make_plan(self.spec, self.base.size, self.data, self.base.loaded.device)


def _limited(
    prepared: PreparedData[Conversation], renderer: ChatRenderer, max_tokens: int, data: DataSpec
) -> tuple[PreparedData[Conversation], Amount]:
    """Drop, cut or refuse rows that are longer than `max_tokens` once rendered, as `data.too_long` says.

    Also returns how much there is to learn in what is left.
    """
    learnt_tokens: dict[int, int] = {}

    def measure(row: Conversation) -> RowLength:
        sequences = renderer.for_training(row)
        longest = max(len(sequence.token_ids) for sequence in sequences)
        learnt_tokens[id(row)] = sum(sequence.cut(max_tokens).learnt_tokens for sequence in sequences)
        return RowLength(longest, learnt_tokens[id(row)])

    limited = limit_lengths(prepared, measure, max_tokens, data.too_long)
    return limited, Amount(len(limited.train), sum(learnt_tokens[id(row)] for row in limited.train))

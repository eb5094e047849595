"""`TuneSpec`: everything that a training run is asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tunesmith.specs.base import Spec
from tunesmith.specs.data import DataSpec

#: A value that the run resolves from the data's size; the resolved number is shown and kept in the run folder.
Auto = Literal["auto"]


class LearningSpec(Spec):
    """What all methods that learn given words have in common."""

    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of each target's probability spread over the whole vocabulary."
    )
    embedding_noise: float = Field(
        0.0,
        ge=0.0,
        le=1000.0,
        description="Strength of the noise on embeddings in training (NEFTune's alpha, arXiv:2310.05914: 5).",
    )


class SftSpec(LearningSpec):
    """Supervised fine-tuning: learn the assistant's words."""

    kind: Literal["sft"] = Field("sft", description="The method: `sft`, supervised fine-tuning.")


class PretrainSpec(LearningSpec):
    """Domain adaptation: go on with the base's own training on plain documents; every token is learnt."""

    kind: Literal["pretrain"] = Field("pretrain", description="The method: `pretrain`, domain adaptation.")


class LoraSpec(Spec):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685)."""

    kind: Literal["lora"] = Field("lora", description="The adapter: `lora`.")
    rank: int = Field(16, ge=1, le=1024, description="Width of the adapter. Wider can learn more, needs more memory.")
    alpha: float = Field(32.0, gt=0, description="Scale of the adapter; its output is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the adapter's inputs dropped in training.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the linear layers to adapt, or `all-linear` (all but the output layer)."
    )
    modules_to_save: tuple[str, ...] = Field(
        (), description="Names of modules that are trained whole beside the adapter, such as `embed_tokens`."
    )
    rank_stabilised: bool = Field(
        False, description="Scale by alpha / sqrt(rank), which suits wide adapters (rsLoRA, arXiv:2312.03732)."
    )
    dora: bool = Field(
        False, description="Train each weight's length apart from its direction (DoRA, arXiv:2402.09353); slower."
    )
    initialisation: Literal["zero", "pissa"] = Field(
        "zero",
        description="`zero`: the adapter begins without effect. `pissa`: it begins as the weights' principal part "
        "(arXiv:2404.02948), which learns faster.",
    )
    b_rate_ratio: float = Field(
        1.0, ge=1.0, le=64.0, description="B's learning rate as a multiple of A's (LoRA+, arXiv:2402.12354: 16)."
    )


class QloraSpec(LoraSpec):
    """LoRA on a base whose weights are kept in 4 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

    kind: Literal["qlora"] = Field("qlora", description="The adapter: `qlora`.")  # type: ignore[assignment]
    double_quantisation: bool = Field(True, description="Quantise the quantisation's own factors too.")


class FullSpec(Spec):
    """All weights are trained."""

    kind: Literal["full"] = Field("full", description="The adapter: `full`, which is none; every weight moves.")
    rounding: Literal["master", "stochastic"] = Field(
        "master",
        description="How bfloat16 weights take small steps: through a float32 copy (`master`), or by rounding at "
        "random (`stochastic`), which needs 4 bytes a weight less.",
    )


def _kind_or(default: str) -> BeforeValidator:
    """Let a tagged choice be given by its name alone, or without its tag, which is then `default`."""

    def tagged(value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": default, **value} if isinstance(value, dict) else value

    return BeforeValidator(tagged)


Method = Annotated[SftSpec | PretrainSpec, Field(discriminator="kind"), _kind_or("sft")]
AdapterSpec = Annotated[LoraSpec | QloraSpec | FullSpec, Field(discriminator="kind"), _kind_or("lora")]


class OptimisationSpec(Spec):
    """How the weights move: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with warm-up and decay."""

    learning_rate: Literal["auto", "find"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto",
        description="The highest step size. `auto` resolves it from the adapter and the base's width; `find` tries "
        "rising rates on some rows first (arXiv:1506.01186).",
    )
    batch_size: Auto | Annotated[int, Field(ge=1, le=65536)] = Field(
        "auto", description="Rows in one optimiser step. `auto` resolves it from the number of rows."
    )
    epochs: Auto | Annotated[float, Field(gt=0, le=1000)] = Field(
        "auto", description="Passes over the training rows. `auto` resolves it from the number of rows."
    )
    optimiser: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="`adamw_8bit` keeps its running means in 8 bits (arXiv:2110.02861)."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear",
        description="How the learning rate falls after warm-up: to zero in a line, along a cosine, not at all.",
    )
    warmup_fraction: float = Field(0.05, ge=0.0, le=0.9, description="Share of the steps in which the rate rises.")
    weight_decay: float = Field(0.0, ge=0.0, le=10.0, description="AdamW's decoupled weight decay.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW's decay of the gradient's running mean.")
    beta2: float = Field(0.999, ge=0.0, lt=1.0, description="AdamW's decay of the squared gradient's running mean.")
    max_gradient_norm: float = Field(1.0, gt=0.0, description="Gradients longer than this are scaled down to it.")
    validate_every_steps: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Optimiser steps between two measurements of the validation loss."
    )
    early_stop_on: Literal["loss", "score"] = Field(
        "loss",
        description="What says which weights are best: the validation loss, or the score of answers to its rows.",
    )
    patience: int = Field(
        3, ge=0, description="Stop after this many validations without a better loss; 0 never stops early."
    )


class EvaluationSpec(Spec):
    """How the result is proved on the locked test rows."""

    measure: Literal["auto", "json", "label", "text"] = Field(
        "auto",
        description="`json`: exact object match and field F1; `label`: accuracy and macro F1; `text`: chrF and "
        "ROUGE-L; `auto` chooses from the training rows' answers.",
    )
    compare_base: bool = Field(True, description="Measure the untuned base on the same rows.")
    max_output_tokens: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Longest answer allowed in evaluation. `auto`: from the longest reference answer."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the confidence intervals.")
    batch_size: int = Field(32, ge=1, le=1024, description="Answers generated side by side.")
    forgetting_rows: int = Field(
        20,
        ge=0,
        le=200,
        description="General rows whose loss is measured before and after training, to tell what was forgotten: "
        "held-out rows of `data.replay`, or short instructions that come with Tunesmith. 0: not measured.",
    )


class LimitsSpec(Spec):
    """Bounds on tokens and arithmetic."""

    max_tokens: Auto | Annotated[int, Field(ge=8)] = Field(
        "auto", description="Longest row in tokens. `auto`: what the base can take, at most 4,096."
    )
    tokens_per_microbatch: Auto | Annotated[int, Field(ge=8)] = Field(
        "auto",
        description="Tokens computed in one forward pass; changes memory and speed, never the result. `auto`: as many "
        "as the plan finds room for.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of the base's weights and activations. `auto`: bfloat16 where it is fast."
    )
    memory_bytes: Auto | Annotated[int, Field(ge=1 << 20)] = Field(
        "auto", description="Memory that the run may use. `auto`: what is free when it starts, less a reserve."
    )
    keep_checkpoints: int = Field(2, ge=1, description="How many of the newest checkpoints are kept, besides the best.")


class TuneSpec(Spec):
    """What a training run is asked for: complete, hashable, replayable."""

    base: str = Field(
        "smollm2-135m",
        description="The model to start from: an embedded name, a folder, a .gguf file, a Hub id; or a tuned model's "
        "`ft:` name, whose adapter is tuned further with its own settings.",
    )
    data: DataSpec = Field(description="The rows to learn from.")
    name: str | None = Field(
        None, min_length=1, max_length=64, description="A short name for the result, used in its `ft:` name."
    )
    method: Method = Field(default_factory=SftSpec, description="How to learn.")
    adapter: AdapterSpec = Field(default_factory=LoraSpec, description="What is trained.")
    optimisation: OptimisationSpec = Field(default_factory=OptimisationSpec, description="How the weights move.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="How the result is proved.")
    limits: LimitsSpec = Field(default_factory=LimitsSpec, description="Bounds on tokens and arithmetic.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of everything random: order, initial adapter, dropout.")

    @model_validator(mode="after")
    def _texts_have_no_answers(self) -> Self:
        """Refuse to measure answers where documents are learnt."""
        if isinstance(self.method, PretrainSpec):
            if self.evaluation.measure != "auto":
                raise ValueError(f"pretrain is measured by perplexity, not by `{self.evaluation.measure}`")
            if self.optimisation.early_stop_on == "score":
                raise ValueError("pretrain has no answers to score; optimisation.early_stop_on is `loss`")
        return self

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str | None) -> str | None:
        return None if name is None else plain_name(name)


def plain_name(name: str) -> str:
    """Return a name in lower case and with hyphens, as OpenAI's suffixes are.

    Raises:
        ValueError: it can't be part of a model's name.
    """
    plain = name.lower().replace("_", "-").replace(" ", "-")
    if not all(c.isascii() and (c.isalnum() or c in "-.") for c in plain) or not plain.strip("-."):
        raise ValueError("a name holds letters, digits, '-' and '.'")
    return plain

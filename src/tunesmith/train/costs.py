"""What a pass costs in memory and arithmetic, from the counts of the model and of the pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from tunesmith.learn.attention import KEPT_KEYS, MAX_SCORES
from tunesmith.learn.native_attention import has_room
from tunesmith.learn.passes import Passes
from tunesmith.models.adapters.panels import COPIES, Panels
from tunesmith.models.size import LinearSize, ModelSize
from tunesmith.native.calls import kernels
from tunesmith.specs.tune import FullSpec, LoraSpec, QloraSpec, TuneSpec
from tunesmith.train.loads import Load

#: Python, torch, transformers and what else a run needs on the CPU, with the kernels in C or through PyTorch's own
#: operations, whose library keeps room for itself; cuBLAS's work space on a GPU. Measured.
_PROCESS_BYTES = {"kernels": 700 << 20, "cpu": 870 << 20, "cuda": 96 << 20}
#: Passes of many sizes leave holes in the heap: the C library holds so much more than is in use. Measured over 16 steps
#: of four kinds of rows (`bench/plan.py`) on the CPU; PyTorch's own allocator of GPUs is tighter (not measured).
_HEAP = {"kernels": 1.1, "cpu": 1.45, "cuda": 1.1}
#: What a layer keeps of a token for its backward pass, in numbers of the model's format: so many for each output of its
#: linear layers and for each unit of its width. Counted on SmolLM2 with the kernels (`learn/kernels`), and where
#: trained norms or richer adapters keep the layers' own ways of computing.
_KEPT_WITH_KERNELS, _KEPT_WITHOUT = (1.0, 3.4), (1.15, 10.0)
#: What padding adds to the probabilities that attention keeps.
_PADDING = 1.2
#: Gradients of activations that exist at once in a backward pass, in kept layers.
_LAYERS_IN_BACKWARD = 1.0
#: Copies of a block's scores in float32 that attention holds at once.
_SCORE_COPIES = 3
#: Bytes of a target's logits and their gradient for each entry of the vocabulary (number format and float32).
_LOGIT_BYTES = 6
_DEFAULT_LOGITS_BYTES = {"cpu": 48 << 20, "cuda": 1536 << 20}
#: What isn't a matrix product takes time by the layers' width alone, so its part falls as models grow: so many times
#: layers x width / weights of the linear layers, of the products' time. With the kernels in C and without, measured on
#: CPUs (`bench/plan.py`, and growing models in `bench/training.py`). On GPUs a fixed share is assumed (not measured).
_BESIDE_PRODUCTS = {"kernels": 2500, "cpu": 5000}
_SHARE_ON_GPU = 0.55
#: Share of that rate where the kernels have no copies of the weights to multiply with (`bench/weight_copies.py`).
_SHARE_WITHOUT_COPIES = 0.8
#: How fast optimisers pass over weights, gradients and running means, in bytes a second.
_OPTIMISER_RATE = {"cpu": 6e9, "cuda": 1.5e12}


@dataclass(frozen=True, slots=True)
class Memory:
    """Expected bytes at the peak, by what they are for.

    `weights` are the base's, `copies` those that the kernels multiply with; `trained` is what is trained on top of it,
    with gradients and the optimiser's state.
    """

    weights: int
    copies: int
    trained: int
    activations: int
    attention: int
    logits: int
    process: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())

    @property
    def of_pass(self) -> int:
        """The part that smaller passes make smaller."""
        return self.activations + self.attention + self.logits


class Costs:
    """Costs of passes of one resolved spec on one base and device."""

    def __init__(self, size: ModelSize, spec: TuneSpec, device: torch.device) -> None:
        self.size = size
        self.device = device
        self.dtype = torch.float32 if spec.limits.dtype == "float32" else torch.bfloat16
        self._adapter = spec.adapter
        self._state_bytes = 2 if spec.optimisation.optimiser == "adamw_8bit" else 8
        self._layers = max(1, size.layers)
        self._tokens_per_pass = spec.limits.tokens_per_microbatch

    def first_passes(self) -> Passes:
        """Return the fastest way to compute steps, where memory is plentiful."""
        assert not isinstance(self._tokens_per_pass, str)
        return Passes(self._tokens_per_pass, copied_weights=self.copied_bytes > 0)

    @property
    def has_native_kernels(self) -> bool:
        """Whether the kernels in C compute, where they can."""
        return self.device.type == "cpu" and self.dtype == Panels.dtype and kernels() is not None

    @property
    def trained_parameters(self) -> int:
        """Numbers that training moves."""
        if isinstance(self._adapter, FullSpec):
            return self.size.parameters
        rank, dora = self._adapter.rank, self._adapter.dora
        low_rank = sum(
            rank * (linear.inputs + linear.outputs) + (linear.outputs if dora else 0)
            for linear in self.size.linears
            if _is_adapted(linear, self._adapter)
        )
        whole = [linear.parameters for linear in self.size.linears if _leaf(linear) in self._adapter.modules_to_save]
        tables = sum(name in ("embed_tokens", "lm_head", "wte") for name in self._adapter.modules_to_save)
        return low_rank + sum(whole) + tables * self.size.vocabulary * self.size.hidden

    @property
    def optimiser_bytes(self) -> int:
        """Bytes that the optimiser takes at its first step: running means, and float32 copies of coarse weights."""
        copies = 4 if isinstance(self._adapter, FullSpec) and self._keeps_master else 0
        return self.trained_parameters * (self._state_bytes + copies)

    def memory(self, load: Load, passes: Passes) -> Memory:
        """Return the expected peak of a pass."""
        kept = self.kept_bytes_per_token
        recomputed = min(passes.recomputed_layers, self._layers)
        layers = self._layers - recomputed + _LAYERS_IN_BACKWARD
        if self._keeps_scores and load.pairs <= KEPT_KEYS * load.tokens:
            kept += _PADDING * self.size.attention_heads * load.pairs / max(1, load.tokens) * self.dtype.itemsize
        per_token = layers * kept + (recomputed + 2) * self.size.hidden * self.dtype.itemsize
        scores = min(MAX_SCORES, load.pairs) * self.size.attention_heads * 4 if self._keeps_scores else 0
        if passes.loss_chunk_tokens is None:
            logits = min(
                _DEFAULT_LOGITS_BYTES.get(self.device.type, 48 << 20), load.learnt * self.size.vocabulary * _LOGIT_BYTES
            )
        else:
            logits = min(passes.loss_chunk_tokens, load.learnt) * self.size.vocabulary * _LOGIT_BYTES
        place = "kernels" if self.has_native_kernels else self.device.type
        heap = _HEAP.get(place, _HEAP["cpu"])
        return Memory(
            weights=self.weight_bytes,
            copies=self.copied_bytes if passes.copied_weights else 0,
            trained=self._own_bytes + self.optimiser_bytes,
            activations=int(heap * load.tokens * per_token),
            attention=int(heap * _SCORE_COPIES * scores),
            logits=int(heap * logits),
            process=_PROCESS_BYTES.get(place, _PROCESS_BYTES["cpu"]),
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the base's weights in memory."""
        whole = self.size.weight_bytes(self.dtype)
        if not isinstance(self._adapter, QloraSpec):
            return whole
        # NF4: four bits a weight, a factor for 64 weights in float32, or in 8 bits (Dettmers et al. 2023, section 3).
        factor_bytes = 0.127 / 8 if self._adapter.double_quantisation else 4 / 64
        return int(whole - self.size.linear_parameters * (self.dtype.itemsize - 0.5 - factor_bytes))

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copies of frozen weights that the kernels in C can multiply with; 0 where they can't."""
        if isinstance(self._adapter, FullSpec) or not self.has_native_kernels:
            return 0
        is_plain = not isinstance(self._adapter, QloraSpec)
        adapted = sum(one.parameters for one in self.size.linears if is_plain and _is_adapted(one, self._adapter))
        return COPIES * (adapted + self.size.vocabulary * self.size.hidden) * self.dtype.itemsize

    @property
    def kept_bytes_per_token(self) -> float:
        """Bytes that a layer keeps of one token for its backward pass, on average."""
        outputs = sum(linear.outputs for linear in self.size.linears) / self._layers
        of_outputs, of_width = _KEPT_WITH_KERNELS if self._takes_kernels else _KEPT_WITHOUT
        return (of_outputs * outputs + of_width * self.size.hidden) * self.dtype.itemsize

    def matrix_share(self, passes: Passes) -> float:
        """Return the share of the rate of matrix products that passes should reach."""
        if self.device.type != "cpu":
            return _SHARE_ON_GPU
        k = _BESIDE_PRODUCTS["kernels" if self.has_native_kernels else "cpu"]
        share = 1 / (1 + k * self._layers * self.size.hidden / max(1, self._active_parameters))
        return share if passes.copied_weights or not self.copied_bytes else share * _SHARE_WITHOUT_COPIES

    def operations(self, load: Load, passes: Passes) -> float:
        """Return the floating-point operations of a pass forward and backward."""
        forward = self.forward_operations(load)
        # The gradients of the activations cost as much again, those of the weights too, where they are trained.
        factor = 3 if isinstance(self._adapter, FullSpec) else 2
        again = min(passes.recomputed_layers, self._layers) / self._layers
        # Attention's backward pass computes the scores again (Dao et al. 2022): five products for two.
        return forward * (factor + again) + 1.5 * self._attention_operations(load)

    def forward_operations(self, load: Load) -> float:
        """Return the floating-point operations of a pass forward."""
        linear = 2 * self._active_parameters * load.tokens
        head = 2 * self.size.vocabulary * self.size.hidden * load.learnt
        return linear + head + self._attention_operations(load)

    def optimiser_seconds(self) -> float:
        """Return about how long the optimiser takes for a step."""
        rate = _OPTIMISER_RATE.get(self.device.type, _OPTIMISER_RATE["cpu"])
        return 2 * (self._own_bytes + self.optimiser_bytes) / rate

    @property
    def _active_parameters(self) -> int:
        """Weights of linear layers that one token goes through."""
        return self.size.linear_parameters + self.size.active_expert_parameters

    def _attention_operations(self, load: Load) -> float:
        """Two products of queries, keys and values; blocks compute about the whole square."""
        return 4 * load.pairs * 2 * self.size.query_width * self._layers

    @property
    def _own_bytes(self) -> int:
        """Bytes of what is trained beside the base's weights, and of its gradients."""
        if isinstance(self._adapter, FullSpec):
            return self.size.parameters * self.dtype.itemsize
        return self.trained_parameters * (4 + 4)

    @property
    def _keeps_scores(self) -> bool:
        """Whether attention's scores and probabilities ever exist: on a CPU, where its kernel in C can't be used."""
        if self.device.type != "cpu" or self.size.attention_heads == 0:
            return False
        head = self.size.query_width // self.size.attention_heads
        fits = has_room(self.size.attention_heads, max(1, self.size.key_value_width // head), head)
        return not (self.has_native_kernels and fits and not self.size.bends_scores)

    @property
    def _takes_kernels(self) -> bool:
        """Whether adapted layers are plain ones (see `LoraLinear.is_plain`)."""
        adapter = self._adapter
        if isinstance(adapter, FullSpec | QloraSpec):
            return False
        return not (adapter.dora or adapter.dropout or adapter.initialisation == "pissa")

    @property
    def _keeps_master(self) -> bool:
        return isinstance(self._adapter, FullSpec) and self._adapter.rounding == "master" and self.dtype.itemsize < 4


def _is_adapted(linear: LinearSize, adapter: LoraSpec) -> bool:
    return adapter.target_modules == "all-linear" or _leaf(linear) in adapter.target_modules


def _leaf(linear: LinearSize) -> str:
    return linear.name.rsplit(".", 1)[-1]

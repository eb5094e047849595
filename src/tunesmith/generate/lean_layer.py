"""A decoder layer with few calls: for one token, transformers' own layer spends most of its time between products.

The layer is put together from the original's parts and then held against it (see `generate.forward`); what isn't the
same in result keeps the original.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.generate.chain import Chain
from tunesmith.generate.layout import StepLayout
from tunesmith.generate.linear_map import AdapterRows, LinearMap
from tunesmith.generate.native_attention import can_attend
from tunesmith.models.attention import Layout
from tunesmith.native.calls import LANES, kernels_for
from tunesmith.native.layers import LayerParts, NativeNorm

Norm = Callable[[Tensor], Tensor]
Rotation = tuple[Tensor, Tensor]


@dataclass
class Step:
    """What all layers share during one forward pass."""

    layout: Layout | None = None
    rows: Sequence[AdapterRows] = ()
    _rotations: dict[int, Rotation] = field(default_factory=dict)

    def begin(self, layout: Layout | None, rows: Sequence[AdapterRows]) -> None:
        """Set what the pass is about; None ends it."""
        self.layout, self.rows = layout, rows
        self._rotations.clear()

    def rotation(self, embeddings: tuple[Tensor, Tensor]) -> Rotation:
        """Return cosines and signed sines (T, 1, D) for `_rotated`, made once for all layers of a kind."""
        cos, sin = embeddings
        found = self._rotations.get(id(cos))
        if found is None:
            half = sin.shape[-1] // 2
            signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
            found = self._rotations[id(cos)] = cos[0].unsqueeze(1), signed.unsqueeze(1)
        return found


@dataclass(frozen=True)
class AttentionCall:
    """What the original layer asked of the layout."""

    layer: int
    scale: float
    window_tokens: int | None
    softcap: float | None


class LeanLayer:
    """One decoder layer: attention, then a feed-forward layer, each with its residual.

    Args:
        name: the layer's dotted name in the model.
        module: transformers' layer.
        call: what it asks of the layout.
        step: the pass it is used in.
        pack: whether copies of the weights may be made.

    Raises:
        AttributeError: the layer has other parts. (So do TypeError and ValueError mean.)
    """

    def __init__(self, name: str, module: nn.Module, call: AttentionCall, step: Step, *, pack: bool) -> None:
        self._call, self._step = call, step
        attention: Any = module.self_attn
        self._head_size: int = attention.head_dim
        inputs = ["qkv_proj"] if hasattr(attention, "qkv_proj") else ["q_proj", "k_proj", "v_proj"]
        self._qkv = _map(f"{name}.self_attn", attention, inputs, pack=pack)
        self._out = _map(f"{name}.self_attn", attention, ["o_proj"], pack=pack)
        self._query_norm, self._key_norm = (_optional_norm(attention, part) for part in ("q_norm", "k_norm"))
        config = attention.config
        self._query_heads: int = config.num_attention_heads
        self._key_heads: int = config.num_key_value_heads
        self._is_native = (
            self._qkv.native is not None
            and call.softcap is None
            and can_attend(self._query_heads, self._key_heads, self._head_size)
        )
        self._before = norm_of(module.input_layernorm)  # type: ignore[arg-type]
        if hasattr(module, "pre_feedforward_layernorm"):  # Gemma normalises what a part gives, too
            self._after: Norm | None = norm_of(module.post_attention_layernorm)  # type: ignore[arg-type]
            self._before_mlp = norm_of(module.pre_feedforward_layernorm)  # type: ignore[arg-type]
            self._after_mlp: Norm | None = norm_of(module.post_feedforward_layernorm)  # type: ignore[arg-type]
        else:
            self._after = self._after_mlp = None
            self._before_mlp = norm_of(module.post_attention_layernorm)  # type: ignore[arg-type]
        self._mlp = GatedMlp.of(f"{name}.mlp", module.mlp, step, pack=pack)  # type: ignore[arg-type]
        #: The layers that are computed in one call, this one among them, and whether it is the first; see `chain`.
        self.chain: Chain | None = None
        self.is_first = False

    @property
    def maps(self) -> list[LinearMap]:
        """Every map of the layer."""
        return [self._qkv, self._out, *(self._mlp.maps if isinstance(self._mlp, GatedMlp) else [])]

    def __call__(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Map (1, T, H) to (1, T, H)."""
        flat = hidden[0]
        rows = self._step.rows
        if self.chain is not None:
            if self.is_first:
                self.chain.begin(flat, self._step.rotation(position_embeddings), self._step.layout, rows)
            if self.chain.result is not None:
                return self.chain.result if self.is_first else hidden
        attended = self._attend(self._before(flat), self._step.rotation(position_embeddings))
        if self._after is None:
            flat = self._out.added_to(flat, attended, rows)
        else:
            flat = flat + self._after(self._out(attended, rows))
        inner = self._before_mlp(flat)
        if not isinstance(self._mlp, GatedMlp):
            result = self._mlp(inner.unsqueeze(0))
            found: Tensor = (result[0] if isinstance(result, tuple) else result)[0]
            flat = flat + (found if self._after_mlp is None else self._after_mlp(found))
        elif self._after_mlp is None:
            flat = self._mlp.added_to(flat, inner)
        else:
            flat = flat + self._after_mlp(self._mlp(inner))
        return flat.unsqueeze(0)

    def parts(self) -> LayerParts | None:
        """Return the layer as the kernels compute it, or None if one of its parts isn't theirs."""
        mlp, before, between = self._mlp, self._before, self._before_mlp
        if not self._is_native or self._after is not None or not isinstance(mlp, GatedMlp) or not mlp.is_silu:
            return None
        products = [product for made in self.maps if (product := made.native) is not None]
        if len(products) < len(self.maps) or not isinstance(before, NativeNorm) or not isinstance(between, NativeNorm):
            return None
        head_norms = None
        if self._query_norm is not None:
            if not isinstance(self._query_norm, NativeNorm) or not isinstance(self._key_norm, NativeNorm):
                return None
            head_norms = self._query_norm, self._key_norm
        qkv, out, gate, up, down = products
        return LayerParts(
            index=self._call.layer,
            before=before,
            between=between,
            head_norms=head_norms,
            qkv=qkv,
            out=out,
            gate=gate,
            up=up,
            down=down,
            heads=self._query_heads,
            key_heads=self._key_heads,
            size=self._head_size,
            scale=self._call.scale,
            window_tokens=self._call.window_tokens,
        )

    def _attend(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Map (T, H) to (T, query heads x D)."""
        heads, keys = self._query_heads, self._key_heads
        together = self._qkv(x, self._step.rows).view(len(x), heads + 2 * keys, self._head_size)
        layout = self._step.layout
        assert layout is not None
        if self._is_native and isinstance(layout, StepLayout):
            return self._attend_natively(together, rotation, layout)
        if self._query_norm is None or self._key_norm is None:
            rotated = _rotated(together[:, : heads + keys], rotation)
            query, key = rotated[:, :heads], rotated[:, heads:]
        else:
            query = _rotated(self._query_norm(together[:, :heads]), rotation)
            key = _rotated(self._key_norm(together[:, heads : heads + keys]), rotation)
        attended = layout.attend(
            self._call.layer,
            query.transpose(0, 1).unsqueeze(0),
            key.transpose(0, 1).unsqueeze(0),
            together[:, heads + keys :].transpose(0, 1).unsqueeze(0),
            scale=self._call.scale,
            window_tokens=self._call.window_tokens,
            softcap=self._call.softcap,
        )
        return attended.reshape(len(x), -1)

    def _attend_natively(self, together: Tensor, rotation: Rotation, layout: StepLayout) -> Tensor:
        """Map (T, all heads, D), which is changed, to (T, query heads x D)."""
        heads, keys = self._query_heads, self._key_heads
        if self._query_norm is not None and self._key_norm is not None:
            query, key = together[:, :heads], together[:, heads : heads + keys]
            query.copy_(self._query_norm(query))
            key.copy_(self._key_norm(key))
        return layout.attend_natively(
            self._call.layer, together, heads, rotation, scale=self._call.scale, window_tokens=self._call.window_tokens
        )


class GatedMlp:
    """`down(act(gate(x)) * up(x))` with few calls."""

    def __init__(self, gate: LinearMap, up: LinearMap, down: LinearMap, act: nn.Module, step: Step) -> None:
        self.maps = [gate, up, down]
        self._act, self._step = act, step
        self.is_silu = isinstance(act, nn.SiLU) or type(act).__name__ == "SiLUActivation"

    @classmethod
    def of(cls, name: str, module: nn.Module, step: Step, *, pack: bool) -> GatedMlp | nn.Module:
        """Return the lean form of a gated layer with three linear parts, or the layer itself."""
        names = ("gate_proj", "up_proj", "down_proj")
        act = getattr(module, "act_fn", None)
        if not isinstance(act, nn.Module) or not all(hasattr(module, part) for part in names):
            return module
        gate, up, down = (_map(name, module, [part], pack=pack) for part in names)
        return cls(gate, up, down, act, step)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (T, H) to (T, H)."""
        return self.maps[2](self._inner(x), self._step.rows)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return `residual + self(x)`."""
        return self.maps[2].added_to(residual, self._inner(x), self._step.rows)

    def _inner(self, x: Tensor) -> Tensor:
        gate, up, _ = self.maps
        rows = self._step.rows
        if self.is_silu:
            bare = gate.bare(rows), up.bare(rows)
            if bare[0] is not None and bare[1] is not None:
                return bare[0].gated(x, bare[1])  # type: ignore[arg-type]
            if gate.native is not None and up.native is not None:
                return gate.native.kernels.gate(gate(x, rows), up(x, rows))
        active: Tensor = self._act(gate(x, rows))
        return active.mul_(up(x, rows))


def norm_of(module: nn.Module) -> Norm:
    """Return a normalisation with few calls; one of another form stays what it is."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return module
    size = [len(weight)]
    factor = 1 + weight.detach().to(torch.promote_types(weight.dtype, torch.float32))

    def plain(x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, size, weight, epsilon)

    def adding_one(x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x.to(factor.dtype), size, factor, epsilon).to(x.dtype)

    forms: list[Norm] = [plain, adding_one]
    kernels = kernels_for(weight)
    if kernels is not None and size[0] % LANES == 0:
        forms = [NativeNorm(kernels, f, epsilon) for f in (weight.detach().float(), factor)] + forms
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, *size, generator=generator).mul_(3).to(weight.device, weight.dtype)
    expected = module(probe)
    tolerance = 8 * torch.finfo(weight.dtype).eps
    return next((f for f in forms if torch.allclose(f(probe), expected, rtol=tolerance, atol=tolerance)), module)


def _optional_norm(module: nn.Module, name: str) -> Norm | None:
    norm = getattr(module, name, None)
    return None if norm is None else norm_of(norm)


def _map(prefix: str, module: nn.Module, names: Sequence[str], *, pack: bool) -> LinearMap:
    return LinearMap({f"{prefix}.{name}": getattr(module, name) for name in names}, pack=pack)


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn (T, heads, D) by its positions (Su et al. 2021, arXiv:2104.09864), halves as pairs."""
    cos, signed_sin = rotation
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, -1), signed_sin)

"""Attention over pages, against attention written out, in float64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.generate.chunks import Piece
from tunesmith.generate.layout import StepLayout
from tunesmith.generate.pages import PAGE_TOKENS, PageMemory, pages_for

_TOTAL, _KEY_HEADS, _GROUPS, _SIZE = 90, 2, 3, 4


def written_out(query, keys, values, position, scale, window, softcap):
    """Attention of one query (H, D) at `position` to keys and values (K, T, D) of its text."""
    outputs = []
    for head, q in enumerate(query):
        first = 0 if window is None else max(0, position - window + 1)
        scores = scale * (keys[head // _GROUPS, first : position + 1] @ q)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        outputs.append(torch.softmax(scores, 0) @ values[head // _GROUPS, first : position + 1])
    return torch.stack(outputs)


@st.composite
def texts(draw):
    """Texts as (pages, position, length): some share pages, and pages lie anywhere."""
    order = draw(st.permutations(range(_TOTAL)).map(list)) if draw(st.booleans()) else list(range(_TOTAL))
    shared = [order.pop(0) for _ in range(draw(st.integers(0, 3)))]
    found = []
    for _ in range(draw(st.integers(1, 6))):
        begins = shared[: draw(st.sampled_from([0, 1, len(shared), len(shared)]))][: len(shared)]
        least = len(begins) * PAGE_TOKENS  # shared pages are full and written already
        position = least + draw(st.integers(0, 150))
        length = draw(st.sampled_from([1, 1, 1, 2, 70, 300]))
        own = [order.pop(0) for _ in range(pages_for(position + length) - len(begins))]
        found.append(([*begins, *own], position, length))
    return found


@settings(max_examples=60, deadline=None)
@given(texts(), st.sampled_from([None, 1, 16, 100]), st.sampled_from([None, 2.0]), st.integers(0, 10**6))
def test_pages_give_what_is_written_out(found, window, softcap, seed):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    memory = PageMemory(_TOTAL)
    keys, values = memory.layer(0, draw(_KEY_HEADS, 1, _SIZE))
    keys.copy_(draw(*keys.shape))  # what other texts left behind
    values.copy_(draw(*values.shape))
    decoding = [Piece(*text) for text in found if text[2] == 1]
    chunks = [Piece(*text) for text in found if text[2] > 1]
    layout = StepLayout(memory, decoding, chunks, torch.device("cpu"))
    pieces = [*decoding, *chunks]
    count = sum(piece.length for piece in pieces)
    query, key, value = (draw(heads, count, _SIZE) for heads in (_KEY_HEADS * _GROUPS, _KEY_HEADS, _KEY_HEADS))
    query, key, value = (torch.cat([x, x[:, :1].repeat(1, layout.padding, 1)], 1)[None] for x in (query, key, value))
    out = layout.attend(0, query, key, value, scale=0.7, window_tokens=window, softcap=softcap)
    assert out.shape == (1, count + layout.padding, _KEY_HEADS * _GROUPS, _SIZE)
    assert layout.positions.tolist()[:count] == [p.position + i for p in pieces for i in range(p.length)]
    start = 0
    for piece in pieces:
        k, v = (kept[list(piece.pages)].transpose(0, 1).flatten(1, 2) for kept in (keys, values))
        stop = piece.position + piece.length
        assert torch.equal(k[:, piece.position : stop], key[0, :, start : start + piece.length])
        for i in {0, piece.length // 2, piece.length - 1}:
            true = written_out(query[0, :, start + i], k, v, piece.position + i, 0.7, window, softcap)
            torch.testing.assert_close(out[0, start + i], true, rtol=1e-9, atol=1e-9)
        start += piece.length
    if layout.padding:
        assert torch.equal(out[0, -1], out[0, 0])

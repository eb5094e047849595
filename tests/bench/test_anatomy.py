"""The anatomy of a step: what counts as which part, and how many operations it takes."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from anatomy import kernel_kind, kind, operations, section


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: torch.ones(3, 5) @ torch.ones(5, 7), 2 * 3 * 5 * 7),
        (lambda: torch.addmm(torch.ones(3, 7), torch.ones(3, 5), torch.ones(5, 7)), 2 * 3 * 5 * 7),
        (lambda: torch.ones(3, 7).addmm_(torch.ones(3, 5), torch.ones(5, 7)), 2 * 3 * 5 * 7),
        (lambda: torch.bmm(torch.ones(2, 3, 5), torch.ones(2, 5, 7)), 2 * 2 * 3 * 5 * 7),
        (lambda: torch.baddbmm(torch.ones(1, 1, 1), torch.ones(2, 3, 5), torch.ones(2, 5, 7)), 2 * 2 * 3 * 5 * 7),
        (lambda: torch.ones(3, 5).exp_(), 0),
    ],
)
def test_operations_are_counted_from_the_profile(call, expected):
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        call()
    events = profiled.key_averages(group_by_input_shape=True)
    assert sum(event.count * operations(event.key, event.input_shapes) for event in events) == expected


def test_kinds():
    assert kind("aten::mm", [[900, 576], [576, 1536]], 49_152) == "products with the layers' weights"
    assert kind("aten::mm", [[900, 576], [576, 16]], 49_152) == "products with the adapters"
    assert kind("aten::mm", [[128, 576], [576, 49_152]], 49_152) == "products with the vocabulary"
    assert kind("aten::bmm", [[6, 300, 64], [6, 64, 200]], 49_152) == "attention"
    assert kind("aten::_softmax", [[6, 300, 200]], 49_152) == "attention"
    assert kind("aten::index_copy_", [[900, 64]], 49_152) == "moving and number formats"
    assert kind("aten::mul", [[900, 64]], 49_152) == "element by element"
    assert kind("_GatedMlpBackward", [[900, 64]], 49_152) == "the layers' own bookkeeping"


def test_kinds_of_kernels():
    assert kernel_kind("product", [576, 1536], 49_152) == "products with the layers' weights"
    assert kernel_kind("product", [16, 1536], 49_152) == "products with the adapters"
    assert kernel_kind("product", [49_152, 576], 49_152) == "products with the vocabulary"
    assert kernel_kind("pull_tree", [], 49_152) == "attention"
    assert kernel_kind("gate_backward", [], 49_152) == "element by element"


def test_the_section_says_the_limit():
    lines = {"products with the layers' weights": (2e6, 800 * 10**9), "element by element": (2e6, 0)}
    text = section(4.0, 1000, lines, 400e9)
    assert "| products with the layers' weights | 50 % | 400 GFLOP/s |" in text
    assert "takes 4.00 s (250 tokens/s)" in text
    assert "would take 2.00 s" in text
    assert "500 tokens/s would be the limit" in text

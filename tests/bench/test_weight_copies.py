"""What copies of weights gain: measured on a tiny model, written as a table."""

from tiny_models import save_tiny_model
from tunesmith.models.size import model_size
from tunesmith.native.calls import kernels
from weight_copies import Gain, measure, section


def test_the_section_says_what_is_gained_and_taken():
    text = section([Gain("1B", 5.0, 4.5, 3 * 2**30)])
    assert "| model | without copies | with copies | less time | memory of the copies |" in text
    assert "| 1B | 5.00 s | 4.50 s | 10 % | 3.00 GiB |" in text


def test_both_ways_are_measured(home, tmp_path):
    folder = save_tiny_model("smollm2", tmp_path / "tiny")
    found = measure("tiny", folder, home)
    size = model_size(folder)
    linear = sum(one.parameters for one in size.linears)
    copied = 2 * 2 * (linear + size.vocabulary * size.hidden) if kernels() is not None else 0
    assert found.without_seconds > 0 < found.with_seconds and found.copied_bytes == copied

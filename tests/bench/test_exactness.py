"""What rounding does to the first steps: the section says how far each way is from the first."""

from exactness import section


def test_the_section_says_how_far_each_way_is_away():
    text = section([("float32", [2.0, 1.0]), ("a", [2.02, 1.0]), ("b", [2.0, 1.25])])
    assert "| step | float32 | a | b |" in text
    assert "| 2 | 1.000 | 1.000 | 1.250 |" in text
    assert "From float32, a is at most 1.0 % away; b is at most 25.0 % away." in " ".join(text.split())

"""The benchmark of the plan: its page says by how much the plan was wrong."""

from plan import Planned, section


def test_the_page_says_how_wrong_the_plan_was():
    text = section([Planned("Rows", 2_200_000_000, 2_000_000_000, 30.0, 40.0)])
    assert "| Rows | 2.20 GB | 2.00 GB | +10% | 30 s | 40 s | -25% |" in text

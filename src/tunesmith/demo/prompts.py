"""What the demo asks of the untuned base, and how it tunes: every number of the demo stands here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: The bundled rows; README.md beside them has their credit and licence.
ROWS = Path(__file__).parent / "bookings.jsonl"

#: What a careful engineer would write after a day of trying.
CAREFUL_PROMPT = """\
You read what guests write to a restaurant and turn it into booking details as JSON.

Answer with one JSON object and nothing else: no explanation, no code fence, no text before or after it. The object has
at most these fields, in this order, and every value is a string copied from the guest's message word for word:
- "people": how many people the booking is for, for example "4", "2 adults and 1 child" or "10 people".
- "date": the day of the booking, for example "tomorrow", "next Friday", "14 July" or "05/08/2018".
- "time": the time of the booking, for example "8pm", "19:30" or "quarter past six".
- "first_name": the first name of the person who books.
- "last_name": the last name of the person who books.

Rules:
1. Leave out every field that the message says nothing about. Never write null, an empty string or a guess.
2. Copy the words exactly as the guest wrote them: don't translate, correct, complete or reformat them.
3. If the guest changes a booking, give the new details, not the old ones.
4. If a line that begins with "Restaurant:" says what was asked for, use it to understand a short answer: after "How
many people?" the answer "6" is the number of people, after "Which time?" it is a time.
5. If the message holds no booking details at all, such as a question about food or the address, answer {}.

For example, "Guest: A table for two tomorrow at 8pm, please. Maria Rossi." becomes
{"people": "two", "date": "tomorrow", "time": "8pm", "first_name": "Maria", "last_name": "Rossi"}"""

#: How many solved rows the second way of asking shows.
EXAMPLES = 8

#: A message to try the finished model with.
QUESTION = "Guest: A table for 3 next Friday at 7:30pm, please. Ana Moreno"


def settings() -> dict[str, Any]:
    """Return what the demo asks for, as plain settings of a `TuneSpec`; the base is the default one."""
    return {
        "name": "bookings",
        "data": {
            "path": str(ROWS),
            "validation_fraction": 0.1,
            "test_fraction": 0.13,
            "max_validation_rows": 150,
            "max_test_rows": 200,
        },
        "adapter": {"rank": 16},
        "optimisation": {"epochs": 1.5, "batch_size": 16, "learning_rate": 1e-3, "validate_every_steps": 38},
        # The base is asked in two better ways than with the rows' own one-line prompt. The longest right answer has 41
        # tokens; a base that doesn't stop by itself need not ramble on for longer.
        "evaluation": {"compare_base": False, "max_output_tokens": 48},
    }

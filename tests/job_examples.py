"""Examples that no job learns from, and what is said about them. Upload looks at lines, validation at their meaning."""

from job_api import chat

GOOD = [chat(f"q{n}", "a") for n in range(11)]
CALL = {"id": "c1", "type": "function", "function": {"name": "dim", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "dim", "parameters": {"type": "object"}}}
ASKED = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
DONE = {"role": "tool", "tool_call_id": "c1", "content": "done"}
PREFERENCE = {"input": {"messages": [ASKED]}, "preferred_output": [SAID], "non_preferred_output": [SAID]}
BAD = "invalid_training_file"
#: An example that isn't good: the rule, the code of the failed job, and what the message holds.
EXAMPLES = {
    "V5 and B10 mixed forms": (PREFERENCE, BAD, "Unexpected file format"),
    "V7 no messages": ({"message": []}, BAD, "Example 4 (line 4) is missing key 'messages'"),
    "V8 an extra key": (
        chat("q", "a", weight=1),
        "invalid_file_format",
        'Example 4 (line 4) contains an extra "weight".',
    ),
    "V9 no list": ({"messages": "hello"}, BAD, "messages: isn't a list"),
    "V9 empty": ({"messages": []}, BAD, "messages: is empty"),
    "V10 no role": ({"messages": [{"content": "q"}, SAID]}, BAD, "messages[0]: has no role"),
    "V10 and B08 a strange role": ({"messages": [{**ASKED, "role": "bird"}, SAID]}, BAD, "messages[0].role"),
    "V11 and B08 no content": ({"messages": [ASKED, {**SAID, "content": None}]}, BAD, "messages[1].content"),
    "V11 empty content": ({"messages": [{**ASKED, "content": " "}, SAID]}, BAD, "messages[0].content"),
    "V12 an extra key of a message": (
        {"messages": [{**ASKED, "mood": "x"}, SAID]},
        "invalid_file_format",
        'extra "mood"',
    ),
    "V13 and B08 no assistant": ({"messages": [ASKED]}, BAD, "messages"),
    "V14 and B08 a weight": ({"messages": [ASKED, {**SAID, "weight": 2}]}, BAD, "messages[1].weight"),
    "V14 a weight of a user": ({"messages": [{**ASKED, "weight": 1}, SAID]}, BAD, "messages[0].weight"),
    "V15 and B09 nothing to learn": ({"messages": [ASKED, {**SAID, "weight": 0}]}, BAD, "nothing to learn"),
    "V15 the end is no answer": ({"messages": [ASKED, SAID, ASKED]}, BAD, "messages[2].role"),
    "V17 and B08 an orphan": (
        {"messages": [ASKED, {"role": "tool", "tool_call_id": "x", "content": "1"}, SAID]},
        BAD,
        "messages[1].tool_call_id",
    ),
    "V17 no answer to a call": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}, ASKED, SAID], "tools": [TOOL]},
        BAD,
        "messages[2]",
    ),
    "V18 a tool's name": (chat("q", "a", tools=[{**TOOL, "function": {"name": "a b"}}]), BAD, "tools[0].function.name"),
    "V18 a tool's parameters": (
        chat("q", "a", tools=[{**TOOL, "function": {"name": "a", "parameters": 1}}]),
        BAD,
        "tools[0].function.parameters",
    ),
    "V18 a call's name": (
        {
            "messages": [
                ASKED,
                {**SAID, "tool_calls": [{**CALL, "function": {"name": "a b", "arguments": "{}"}}]},
                DONE,
                SAID,
            ]
        },
        BAD,
        "messages[1].tool_calls[0].function.name",
    ),
    "V18 too many tools": (chat("q", "a", tools=[TOOL] * 129), BAD, "129 tools"),
    "V19 no boolean": (chat("q", "a", parallel_tool_calls="no"), BAD, "parallel_tool_calls"),
    "V19 two calls": (
        {
            "messages": [ASKED, {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "c2"}]}],
            "parallel_tool_calls": False,
            "tools": [TOOL],
        },
        BAD,
        "messages[1].tool_calls",
    ),
    "V22 an image of the assistant": (
        {"messages": [ASKED, {**SAID, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        BAD,
        "messages[1].content[0]",
    ),
    "V23 audio": (
        {"messages": [{**ASKED, "content": [{"type": "input_audio", "input_audio": {}}]}, SAID]},
        BAD,
        "messages[0].content[0]",
    ),
}

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.lm.toolcalls import (
    CallArguments,
    CallEnd,
    CallStart,
    Text,
    ToolCallParser,
    declare,
    render_call,
    render_result,
)


def join(pieces):
    """Neighbouring pieces of text or of arguments as one."""
    joined = []
    for piece in pieces:
        if joined and isinstance(piece, Text | CallArguments) and type(joined[-1]) is type(piece):
            joined[-1] = type(piece)(joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def parse(text, cuts=()):
    parser, pieces = ToolCallParser(), []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pieces += parser.push(text[start:stop])
    return pieces + parser.flush()


def test_calls_and_text():
    text = "One moment." + render_call("weather", '{"city": "Köln"}') + render_call("time", "{}") + " Done."
    assert join(parse(text)) == [
        Text("One moment."),
        *[CallStart("weather"), CallArguments('{"city": "Köln"}'), CallEnd(closed=True)],
        *[CallStart("time"), CallArguments("{}"), CallEnd(closed=True)],
        Text(" Done."),
    ]


def test_the_name_comes_with_its_line_and_arguments_as_they_grow():
    parser = ToolCallParser()
    assert parser.push("Hm <tool_") == [Text("Hm ")]
    assert parser.push("call>function\nwea") == []
    assert parser.push("ther\n") == [CallStart("weather")]
    assert parser.push('{"a"') == [CallArguments('{"a"')]
    assert parser.push(": 1}</tool") == [CallArguments(": 1}")]
    assert parser.push("_call>") == [CallEnd(closed=True)]
    assert parser.flush() == []


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("<tool_call>other\nx", [Text("<tool_call>other\nx")]),
        ("a < b </tool_call>", [Text("a < b </tool_call>")]),
        ("<tool_call>function\nname", [Text("<tool_call>function\nname")]),
        ("<tool_call>function\nname\n{", [CallStart("name"), CallArguments("{"), CallEnd(closed=False)]),
        ("<tool_call>function\nname\n", [CallStart("name"), CallEnd(closed=False)]),
        (
            "<tool_call><tool_call>function\nn\n</tool_call>",
            [Text("<tool_call>"), CallStart("n"), CallEnd(closed=True)],
        ),
    ],
)
def test_what_does_not_follow_the_format_is_not_lost(text, pieces):
    assert join(parse(text)) == pieces


fragments = ["<tool_call>", "</tool_call>", "function", "function\n", "name\n", '{"a": 1}', "\n", "<", "text"]


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(fragments), max_size=8).map("".join), data=st.data())
def test_cutting_changes_nothing(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert join(parse(text, cuts)) == join(parse(text))


def test_declaration_and_result():
    tool = {"name": "weather", "parameters": {"type": "object"}}
    assert json.loads(declare([tool])) == [{"type": "function", "function": tool}]
    assert render_result("weather", "rain") == "function_output\nweather\nrain"

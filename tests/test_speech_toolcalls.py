"""Tool calls found in streamed text, and checked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio.errors import InputError
from stepaudio.speech.roles import Tool
from stepaudio.speech.toolcalls import Attempt, CallError, CallFinder, Toolbox

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIMER = Tool(
    "set_timer", "", {"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]}
)
BARE = '{"name": "get_weather", "arguments": {"city": "上海 {\\"}"}}'


def find(*pieces: str) -> tuple[str, list[str]]:
    """All text joined, and the raw attempts."""
    finder = CallFinder()
    parts = [part for piece in pieces for part in finder.push(piece)] + finder.flush()
    text = "".join(part for part in parts if isinstance(part, str))
    return text, [part.raw for part in parts if isinstance(part, Attempt)]


@pytest.mark.parametrize(
    "dress",
    [
        "{}",
        "<tool_call>\n{}\n</tool_call>",
        "<tool_call>{}",
        "```json\n{}\n```",
        "```\n{}\n```",
        "```json\n<tool_call>\n{}\n</tool_call>\n```",
        "<tools>\n{}\n</tools>",
        "[{}]",
    ],
)
def test_a_call_is_found_in_every_dress(dress: str) -> None:
    assert find(dress.replace("{}", BARE)) == ("", [BARE])


def test_several_calls_and_text_around_them() -> None:
    other = '{"name": "set_timer", "arguments": {"seconds": 5}}'
    text, calls = find(
        f"One moment.\n<tool_call>\n{BARE}\n</tool_call>\n<tool_call>\n{other}\n</tool_call>Done {{ok}}."
    )
    assert text == "One moment.\nDone {ok}."
    assert calls == [BARE, other]
    assert find(f"[{BARE}, {other}]") == ("", [BARE, other])


@pytest.mark.parametrize(
    "text",
    [
        "Plain words, a < b, `code`, {braces}, [1] and }.",
        "```python\nprint({'name': 1})\n```",
        '{"city": "Paris"}',
        "[[[[[[{",
        "<tool_",
        "{",
        '{  "na',
        "[" * 5000,
    ],
)
def test_what_is_no_call_comes_out_as_it_went_in(text: str) -> None:
    assert find(text) == (text, [])
    assert find(*text) == (text, [])


def test_words_are_not_held_back() -> None:
    finder = CallFinder()
    assert finder.push("Hello, ") == ["Hello, "]
    assert finder.push("5 <") == ["5 "]
    assert finder.push(" 6") == ["< 6"]


def test_a_call_comes_out_with_its_last_brace() -> None:
    finder = CallFinder()
    assert [part for char in BARE[:-1] for part in finder.push(char)] == []
    assert finder.push(BARE[-1]) == [Attempt(BARE)]


def test_a_call_that_breaks_off_is_an_attempt() -> None:
    assert find("Yes. " + BARE[:-2]) == ("Yes. ", [BARE[:-2]])


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "```",
        "```json",
        "\n",
        " ",
        "{",
        "}",
        "[",
        "]",
        ",",
        '"name"',
        ": ",
        "Hi",
        "<",
        BARE,
        "城",
    ]
)


@given(st.lists(FRAGMENTS, max_size=12).map("".join), st.data())
def test_any_way_of_cutting_gives_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert find(*pieces) == find(text)


def arguments(raw: dict[str, Any], tool: Tool = WEATHER) -> Any:
    call = Toolbox([WEATHER, TIMER]).parse(json.dumps({"name": tool.name, "arguments": raw}))
    assert call is not None
    return call.arguments


@pytest.mark.parametrize(
    ("raw", "mended"),
    [
        ({"city": "Rome", "days": "5"}, {"city": "Rome", "days": 5}),
        ({"city": "Rome", "days": 2.0}, {"city": "Rome", "days": 2}),
        ({"city": "Rome", "unit": "Celsius"}, {"city": "Rome", "unit": "celsius"}),
        ({"city": "Rome", "unit": None, "days": None}, {"city": "Rome", "unit": None}),
        ({"city": 75001}, {"city": "75001"}),
    ],
)
def test_harmless_slips_are_mended(raw: dict[str, Any], mended: dict[str, Any]) -> None:
    if mended.get("unit", "") is None:  # an enum without a type may mean null, so null is left to the validator
        with pytest.raises(CallError):
            arguments(raw)
    else:
        assert arguments(raw) == mended


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"city": ["Rome"]},
        {"city": "Rome", "unit": "kelvin"},
        {"city": "Rome", "days": 0},
        {"city": "Rome", "days": 1.5},
        {"city": "Rome", "days": "many"},
        {"city": "Rome", "when": "now"},
    ],
)
def test_what_is_not_valid_is_refused_and_names_the_tool(raw: dict[str, Any]) -> None:
    with pytest.raises(CallError) as caught:
        arguments(raw)
    assert caught.value.tool == WEATHER


def test_shapes_that_other_models_write() -> None:
    box = Toolbox([TIMER])
    for raw in (
        '{"type": "function", "function": {"name": "set_timer", "parameters": {"seconds": 3}}}',
        '{"function": "set_timer", "arguments": {"seconds": 3}}',
        '{"name": "set_timer", "arguments": "{\\"seconds\\": 3}"}',
    ):
        call = box.parse(raw)
        assert call is not None
        assert (call.name, call.arguments) == ("set_timer", {"seconds": 3})


def test_an_object_of_another_kind_is_no_call() -> None:
    assert Toolbox([TIMER]).parse('{"name": "Ann", "age": 7}') is None


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(CallError, match=r"no tool named 'fly'.*set_timer") as caught:
        Toolbox([TIMER]).parse('{"name": "fly", "arguments": {}}')
    assert caught.value.tool is None


LEAVES = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3), max_leaves=5
)


@given(VALUES)
def test_a_call_that_comes_through_is_valid(value: Any) -> None:
    import jsonschema

    try:
        call = Toolbox([WEATHER]).check("get_weather", {"city": value, "days": value})
    except CallError:
        return
    jsonschema.validate(call.arguments, dict(WEATHER.parameters))


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([TIMER, TIMER], "auto"),
        ([TIMER], "get_weather"),
        ([], "required"),
        ([Tool("two words")], "auto"),
        ([Tool("auto")], "auto"),
        ([Tool("t", "", {"type": "array"})], "auto"),
        ([Tool("t", "", {"type": "object", "properties": {"a": {"type": "nonsense"}}})], "auto"),
    ],
)
def test_bad_tools_are_refused(tools: list[Tool], choice: str) -> None:
    with pytest.raises(InputError):
        Toolbox(tools, choice)


def test_a_schema_never_makes_us_fetch() -> None:
    remote = Tool("t", "", {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/x.json"}}})
    with pytest.raises(InputError, match="t"):
        Toolbox([remote]).check("t", {"a": 1})

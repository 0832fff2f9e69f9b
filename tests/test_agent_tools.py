"""Schemas from functions, and the ledger of calls."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.agent.tools import ClientTools, FunctionTools, ToolLedger, ToolSpec, decode, encode, json_schema
from stepaudio.errors import InputError, NotFoundError
from stepaudio.speech.roles import Tool, ToolCall


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclass
class Place:
    city: str
    radius: float = 1.0


def weather(place: Place, days: int = 1, unit: Unit = Unit.C, hours: list[int] | None = None) -> str:
    """The weather somewhere,
    for a while.

    Args:
        place: Where to look.
        days (int): How many days.
    """
    return f"{place.city} {place.radius} {days} {unit.name} {hours}"


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (list, {"type": "array", "items": {}}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (Unit, {"enum": ["celsius", "fahrenheit"]}),
        (
            Place,
            {
                "type": "object",
                "properties": {"city": {"type": "string"}, "radius": {"type": "number"}},
                "additionalProperties": False,
                "required": ["city"],
            },
        ),
    ],
)
def test_schemas(hint: object, schema: dict) -> None:
    assert json_schema(hint) == schema


def test_a_function_becomes_a_tool() -> None:
    tools = FunctionTools()
    tools.add(weather, read_only=True, timeout=5)
    (spec,) = tools.specs()
    assert (spec.tool.name, spec.tool.description) == ("weather", "The weather somewhere, for a while.")
    assert spec.tool.read_only
    assert spec.timeout == 5
    properties = spec.tool.parameters["properties"]
    assert properties["place"]["description"] == "Where to look."
    assert properties["days"]["description"] == "How many days."
    assert spec.tool.parameters["required"] == ["place"]
    arguments = {"place": {"city": "Paris", "radius": 2}, "unit": "fahrenheit", "hours": [1]}
    assert tools.run(ToolCall("c", "weather", arguments)) == "Paris 2.0 1 F [1]"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "place is missing"),
        ({"place": {"city": "x"}, "speed": 1}, "speed is not a parameter"),
        ({"place": {"city": 3}}, "3 is not of type str"),
        ({"place": {"city": "x"}, "days": "two"}, "'two' is not of type int"),
        ({"place": {"city": "x"}, "days": True}, "True is not of type int"),
        ({"place": {"city": "x"}, "unit": "kelvin"}, "kelvin"),
        ({"place": {"city": "x"}, "hours": ["a"]}, "list"),
    ],
)
def test_arguments_that_do_not_fit_are_told(arguments: dict, complaint: str) -> None:
    tools = FunctionTools()
    tools.add(weather)
    with pytest.raises(InputError, match=complaint):
        tools.run(ToolCall("c", "weather", arguments))


def test_what_cannot_be_a_tool_is_refused() -> None:
    tools = FunctionTools()

    def open_ended(*names: str) -> None: ...
    def strange(where: complex) -> None: ...

    for function in (open_ended, strange):
        with pytest.raises(InputError):
            tools.add(function)
    tools.add(weather)
    with pytest.raises(InputError):
        tools.add(weather)
    with pytest.raises(NotFoundError):
        tools.run(ToolCall("c", "nobody", {}))


def test_client_tools_run_at_the_client() -> None:
    tools = ClientTools([Tool("look")])
    assert [spec.client_side for spec in tools.specs()] == [True]
    with pytest.raises(NotFoundError):
        tools.run(ToolCall("c", "look", {}))


def test_results_are_text_or_json() -> None:
    assert encode("plain") == "plain"
    assert json.loads(encode({"p": Place("Köln"), "u": Unit.C})) == {
        "p": {"city": "Köln", "radius": 1.0},
        "u": "celsius",
    }
    assert encode(None) == "null"
    assert encode("half \ud83d") == "half ?"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_decoding_gives_the_type_or_refuses(value: object) -> None:
    for hint, type_ in ((int, int), (Place, Place), (Unit, Unit), (list[int], list), (dict[str, str], dict)):
        try:
            assert isinstance(decode(hint, value), type_)
        except InputError:
            continue


# ---------------------------------------------------------------- the ledger


def spec(timeout: float = 10.0, client_side: bool = False) -> ToolSpec:
    return ToolSpec(Tool("t"), timeout, client_side)


def one(call_id: str) -> ToolCall:
    return ToolCall(call_id, "t", {})


def test_calls_run_once_and_no_more_than_the_limit_at_a_time() -> None:
    ledger = ToolLedger(limit=2)
    started = [call.id for i in range(4) for call, _ in ledger.request(one(f"c{i}"), spec(), 0.0)]
    assert started == ["c0", "c1"]
    assert ledger.request(one("c0"), spec(), 0.0) == []
    assert ledger.settle("c0")
    assert not ledger.settle("c0")
    assert not ledger.settle("c3")  # not even started
    assert [call.id for call, _ in ledger.start(1.0)] == ["c2"]
    assert ledger.request(one("c0"), spec(), 2.0) == []


def test_deadlines_count_from_the_start_of_the_call() -> None:
    ledger = ToolLedger(limit=1)
    ledger.request(one("a"), spec(5.0), 0.0)
    ledger.request(one("b"), spec(5.0), 0.0)
    assert ledger.deadline == 5.0
    assert ledger.expired(4.9) == []
    assert ledger.expired(5.0) == ["a"]
    ledger.settle("a")
    ledger.start(5.0)
    assert ledger.deadline == 10.0


def test_a_dropped_call_never_runs_and_its_result_is_not_wanted() -> None:
    ledger = ToolLedger(limit=1)
    ledger.request(one("a"), spec(), 0.0)
    ledger.request(one("b"), spec(), 0.0)
    assert ledger.drop(["a", "b", "nobody"]) == ["a"]
    assert ledger.start(1.0) == []
    assert not ledger.settle("a")
    assert ledger.request(one("b"), spec(), 1.0) == []
    assert ledger.request(one("client"), spec(client_side=True), 1.0) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("rsdt"), st.integers(0, 5)), max_size=60), st.integers(1, 3))
def test_any_order_of_things(steps: list[tuple[str, int]], limit: int) -> None:
    ledger, started, settled, now = ToolLedger(limit), [], [], 0.0
    for step, number in steps:
        now += 1.0
        call_id = f"c{number}"
        if step == "r":
            started += [call.id for call, _ in ledger.request(one(call_id), spec(), now)]
        elif step == "s" and ledger.settle(call_id):
            settled.append(call_id)
        elif step == "d":
            ledger.drop([call_id])
        started += [call.id for call, _ in ledger.start(now)]
        assert ledger.running <= limit
    assert len(set(started)) == len(started)
    assert len(set(settled)) == len(settled)
    assert set(settled) <= set(started)

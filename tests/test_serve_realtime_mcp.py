"""Tools that run at the server, as the protocol tells of them: those of real MCP servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from realtime_fixtures import TalkBundle, client, speech
from serve_fixtures.live import Live, live, until
from stepaudio.agent.mcp import McpServer, McpTools
from stepaudio.speech.roles import Message, Tool, ToolCall
from test_agent_mcp import STDIO, free_port, http_server

PATIENCE = 60


def answer(messages: list[Message], tools: list[Tool]) -> list[str | ToolCall]:
    """Calls the tool that the user names with its first word, and tells its result."""
    last = messages[-1]
    if last.role == "tool":
        return [f"It says {last.content[:40]}."]
    name, *words = last.content.split()
    if not any(tool.name == name for tool in tools):
        return [f"I have no {name}."]
    return [ToolCall("x", name, {"city": " ".join(words)} if words else {})]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    with http_server(number):
        yield number


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    bundle = TalkBundle()
    with live(bundle, offers={"mcp": McpTools([STDIO])}, session_mcp=True) as running:
        bundle.responder.answer = answer
        yield running


def ask(talk: Any, server: Live, words: str) -> str:
    server.bundle.transcriber.lines = [words]
    talk.say(speech())
    for _ in range(2):
        done = talk.until("response.done", timeout=PATIENCE)["response"]
        if done["output"][0]["type"] == "message":
            return str(done["output"][0]["content"][0]["transcript"])
    raise AssertionError("no words came")


def test_a_tool_of_the_servers_own(server: Live) -> None:
    with client(server.url) as talk:
        assert ask(talk, server, "weather Paris") == "It says sunny in Paris."
        kinds = [kind for kind in talk.types() if "mcp" in kind]
        assert kinds == [
            "response.mcp_call_arguments.delta",
            "response.mcp_call_arguments.done",
            "response.mcp_call.in_progress",
            "response.mcp_call.completed",
        ]
        (call,) = [e["item"] for e in talk.all("conversation.item.done") if e["item"]["type"] == "mcp_call"]
        assert (call["server_label"], call["name"], call["output"]) == ("house", "weather", "sunny in Paris")
        assert not [e for e in talk.events if e.get("item", {}).get("type", "").startswith("function_call")]
        # Every item that another one follows has been told of.
        told = {e["item"]["id"] for e in talk.all("conversation.item.added")}
        assert {e["previous_item_id"] for e in talk.all("conversation.item.added")} <= {None, *told}
        talk.send("conversation.item.retrieve", item_id=call["id"])
        assert talk.until("conversation.item.retrieved")["item"] == call
        talk.send("conversation.item.delete", item_id=call["id"])
        assert talk.until("conversation.item.deleted")["item_id"] == call["id"]


def test_a_server_that_dies_in_the_middle(server: Live) -> None:
    with client(server.url) as talk:
        assert "error" in ask(talk, server, "die")  # the model is told
        assert talk.all("response.mcp_call.failed")
        (call,) = [e["item"] for e in talk.all("conversation.item.done") if e["item"]["type"] == "mcp_call"]
        assert (call["output"], call["error"]["type"]) == (None, "tool_execution_error")
        assert "Connection closed" in call["error"]["message"]
        assert ask(talk, server, "weather Rome") == "It says sunny in Rome."


def test_a_beta_client_is_spared_of_it(server: Live) -> None:
    with client(server.url, strict=False, additional_headers={"OpenAI-Beta": "realtime=v1"}) as talk:
        server.bundle.transcriber.lines = ["weather Bern"]
        talk.say(speech())
        for _ in range(2):
            done = talk.until("response.done", timeout=PATIENCE)["response"]
        assert done["output"][0]["content"][0]["transcript"] == "It says sunny in Bern."
        assert "mcp" not in str(talk.events)


def mcp_tool(port: int, **fields: Any) -> dict[str, Any]:
    tool = {"type": "mcp", "server_label": "far", "server_url": f"http://127.0.0.1:{port}/mcp"}
    return {**tool, "require_approval": "never", **fields}


def test_a_server_that_the_client_names(server: Live, port: int) -> None:
    with client(server.url) as talk:
        before = talk.update(tools=[mcp_tool(port, authorization="secret", allowed_tools=["shout", "weather"])])
        assert "secret" not in str(before)
        talk.until("mcp_list_tools.completed", timeout=PATIENCE)
        kinds = talk.types()
        wanted = ["session.updated", "mcp_list_tools.in_progress", "conversation.item.added"]
        assert kinds[kinds.index("session.updated") :][:3] == wanted
        (listed,) = [e["item"] for e in talk.all("conversation.item.done")]
        assert (listed["server_label"], [tool["name"] for tool in listed["tools"]]) == ("far", ["weather", "shout"])
        # The server's own weather comes first.
        assert ask(talk, server, "weather Wien") == "It says sunny in Wien."
        assert "error" in ask(talk, server, "shout loud")  # it is asked, and says what it lacks
        talk.update(tools=[], instructions="Go on.")
        assert ask(talk, server, "weather Graz") == "It says sunny in Graz."
        assert ask(talk, server, "far_weather") == "I have no far_weather."
    until(lambda: server.app.state.realtime.sessions == 0)


def test_a_server_that_cannot_be_reached_is_told(server: Live) -> None:
    with client(server.url) as talk:
        talk.update(tools=[mcp_tool(9)])
        assert "far" in talk.until("error", timeout=PATIENCE)["error"]["message"]
        assert talk.all("mcp_list_tools.failed")
        assert ask(talk, server, "weather Lyon") == "It says sunny in Lyon."


def test_what_a_client_may_not_name(server: Live, port: int) -> None:
    with client(server.url) as talk:
        for fields in ({"require_approval": "always"}, {"server_url": "file:///etc"}, {"server_label": "a b"}):
            error = talk.update(tools=[mcp_tool(port, **fields)])["error"]
            assert (error["code"], error["param"]) == ("invalid_value", f"session.tools.0.{next(iter(fields))}")
        assert talk.update(tools=[mcp_tool(port)] * 2)["error"]["param"] == "session.tools"
    with live(TalkBundle()) as closed, client(closed.url) as talk:
        assert talk.update(tools=[mcp_tool(port)])["error"]["code"] == "mcp_not_allowed"


def test_a_server_that_does_not_start_stops_the_start() -> None:
    with live(TalkBundle(), offers={"mcp": McpTools([McpServer("gone", "/no/such/program")])}) as running:
        running.thread.join(PATIENCE)
        assert "gone" in str(running.state.failure)

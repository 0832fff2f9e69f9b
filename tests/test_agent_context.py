"""Items, prompts and the token budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.agent.context import (
    AUDIO_TOKENS_PER_SECOND,
    PENDING_RESULT,
    CallItem,
    Context,
    ContextConfig,
    Item,
    MessageItem,
    OutputItem,
    estimate_tokens,
)
from stepaudio.agent.errors import RequestError
from stepaudio.errors import InputError
from stepaudio.speech.roles import ToolCall
from virtual_time import check_messages


def user(item_id: str, text: str | None = "hi", **more: object) -> MessageItem:
    return MessageItem(item_id, "user", text, **more)  # type: ignore[arg-type]


def agent(item_id: str, text: str, reply: str = "r") -> MessageItem:
    return MessageItem(item_id, "assistant", text, reply_id=reply)


def call(item_id: str, reply: str | None = "r") -> CallItem:
    return CallItem(item_id, ToolCall(f"c{item_id}", "look", {}), reply_id=reply)


def output(item_id: str, of: str, text: str = "42") -> OutputItem:
    return OutputItem(item_id, f"c{of}", text)


def context(*items: Item, instructions: str = "Be brief.", **config: float) -> Context:
    made = Context(ContextConfig(**config))  # type: ignore[arg-type]
    made.instructions = instructions
    for item in items:
        made.add(item)
    return made


def rows(made: Context) -> list[str]:
    return [f"{m.role}:{m.content}{'+' * len(m.tool_calls)}" for m in made.render()]


def test_items_are_placed_by_id() -> None:
    made = context(user("a"), user("b"))
    assert made.add(user("c"), "root") is None
    assert made.add(user("d"), "a") == "a"
    assert made.add(user("e")) == "b"
    assert [item.id for item in made.items] == ["c", "a", "d", "b", "e"]
    assert made.last_id == "e"
    assert made.get("d").id == "d"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda c: c.add(user("a")), "item_exists"),
        (lambda c: c.add(user("root")), "item_exists"),
        (lambda c: c.add(user("x"), "nobody"), "item_not_found"),
        (lambda c: c.get("nobody"), "item_not_found"),
        (lambda c: c.delete("nobody"), "item_not_found"),
        (lambda c: c.add(OutputItem("o3", "nobody", "")), "call_not_found"),
        (lambda c: c.add(output("o2", "f")), "call_answered"),
        (lambda c: c.add(CallItem("f2", ToolCall("cf", "look", {}))), "call_exists"),
        (lambda c: c.update("f", text="x"), "item_not_message"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, code: str) -> None:
    made = context(user("a"), call("f"), output("o", "f"))
    before = (made.items, made.version)
    with pytest.raises(RequestError) as refused:
        change(made)
    assert refused.value.code == code
    assert (made.items, made.version) == before


def test_a_late_transcript_finds_its_item() -> None:
    made = context(user("a", None), agent("b", "Hello."))
    assert rows(made) == ["system:Be brief.", "assistant:Hello."]
    made.update("a", text="Good day.")
    assert rows(made) == ["system:Be brief.", "user:Good day.", "assistant:Hello."]


def test_calls_are_answered_where_their_results_are() -> None:
    made = context(user("a"), agent("b", "Let me see."), call("c"), call("d"))
    assert rows(made)[2:] == ["assistant:Let me see.++", f"tool:{PENDING_RESULT}", f"tool:{PENDING_RESULT}"]
    made.add(output("o1", "c", "1"))
    made.add(output("o2", "d", "2"))
    assert rows(made)[2:] == ["assistant:Let me see.++", "tool:1", "tool:2"]


def test_a_late_result_moves_its_call_behind_what_was_said_meanwhile() -> None:
    made = context(agent("b", "Let me see."), call("c"), user("u", "Thanks."), agent("v", "Welcome.", "r2"))
    made.add(output("o", "c", "1"))
    assert rows(made)[1:] == ["assistant:Let me see.", "user:Thanks.", "assistant:Welcome.", "assistant:+", "tool:1"]


def test_a_call_takes_its_result_with_it() -> None:
    made = context(call("c"), output("o", "c"))
    assert [item.id for item in made.delete("c")] == ["c", "o"]
    assert made.items == []
    made = context(call("c"), output("o", "c"))
    made.delete("o")
    assert made.awaits("cc")


def test_every_change_of_the_text_raises_the_version() -> None:
    made = context(user("a"))
    seen = made.version
    made.update("a", status="incomplete", seconds=2.0)
    assert made.version == seen
    made.update("a", text="other")
    assert made.version > seen


# ---------------------------------------------------------------- the budget


def test_the_oldest_give_way_to_a_summary_and_stay_retrievable() -> None:
    made = context(
        MessageItem("s", "system", "Speak English."),
        *(user(f"u{i}", "word " * 20) for i in range(10)),
        call("c"),
        user("last", "And now?"),
        budget=200, summarise_at=0.7, keep=0.4,
    )  # fmt: skip
    fold = made.fold()
    assert fold is not None
    assert "u0" in fold.item_ids
    assert not {"s", "c", "last"} & set(fold.item_ids)
    assert [m.role for m in fold.messages] == ["system", "user"]
    made.apply(fold, "Much was said.")
    assert made.get("u0").text == "word " * 20
    assert made.tokens <= 200 * 0.4 + estimate_tokens("Earlier in this conversation: Much was said.")
    assert made.fold() is None
    first = made.render()[0]
    assert first.content.startswith("Be brief.")
    assert "Much was said." in first.content
    assert "user:And now?" in rows(made)
    assert "system:Speak English." in rows(made)
    assert f"tool:{PENDING_RESULT}" in rows(made)


def test_the_next_summary_contains_the_last_one() -> None:
    made = context(*(user(f"u{i}", "word " * 20) for i in range(10)), budget=200)
    made.apply(made.fold(), "Once upon a time.")  # type: ignore[arg-type]
    for i in range(10, 20):
        made.add(user(f"u{i}", "word " * 20))
    assert "Once upon a time." in made.fold().messages[1].content  # type: ignore[union-attr]


def test_when_the_summary_is_late_the_prompt_fits_all_the_same() -> None:
    made = context(*(user(f"u{i}", "word " * 20) for i in range(40)), user("last", "And now?"), budget=200)
    messages = made.render()
    assert sum(estimate_tokens(m.content) for m in messages) <= 200
    assert messages[0].content == "Be brief."
    assert messages[-1].content == "And now?"


def test_an_impossible_budget_is_refused() -> None:
    for bad in ({"budget": 10}, {"keep": 0.9}, {"summarise_at": 0.0}):
        with pytest.raises(InputError):
            ContextConfig(**bad)  # type: ignore[arg-type]


def test_the_ratio_of_audio_to_text() -> None:
    made = context(user("a", "word " * 16, seconds=6.0), user("b", "typed"), user("c", None, seconds=3.0))
    assert made.audio_ratio == pytest.approx(6.0 * AUDIO_TOKENS_PER_SECOND / estimate_tokens("word " * 16))
    assert context().audio_ratio == 0.0


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.randoms(use_true_random=False))
def test_any_history_renders_to_a_prompt_that_every_template_takes(kinds: list[int], rng) -> None:
    made = context(budget=64 + rng.randrange(400))
    for n, kind in enumerate(kinds):
        item_id = f"i{n}"
        unanswered = [i for i in made.items if isinstance(i, CallItem) and made.awaits(i.call.id)]
        if kind < 3:
            made.add(user(item_id, rng.choice((None, "hello " * 5))))
        elif kind < 5:
            made.add(agent(item_id, "yes " * 5, f"r{n % 3}"))
        elif kind < 7:
            made.add(call(item_id, rng.choice((None, f"r{n % 3}"))), rng.choice((None, "root")))
        elif kind < 9 and unanswered:
            made.add(OutputItem(item_id, rng.choice(unanswered).call.id, "42"), rng.choice((None, "root")))
        elif made.items:
            made.delete(rng.choice(made.items).id)
        if rng.random() < 0.2 and (fold := made.fold()):
            made.apply(fold, "So far.")
        check_messages(made.render())

"""Cutting streamed text into clauses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio.speech.clauses import MAX_CHARS, ClauseCutter
from stepaudio.speech.reading.words import dictionary

dictionary()  # loading it takes longer than hypothesis allows one example


def cut(text: str, *, eager: bool = True) -> list[str]:
    cutter = ClauseCutter(eager=eager)
    return [*cutter.push(text), *cutter.flush()]


_TEXT = st.lists(
    st.sampled_from(
        [
            *("Hello", " ", " the", " and", " world", ". ", ", ", "! ", "3.14", "Dr.", " e.g. ", "U.S.", "\n", "\n\n"),
            *(
                "- ",
                "1. ",
                "```",
                "**",
                "你好",
                "，",
                "。",
                "和",
                "的",
                "3：30",
                "……",
                "”",
                "“",
                "?",
                " https://a.b/c ",
                "😀",
            ),
        ]
    ),
    max_size=60,
).map("".join)


@given(st.one_of(_TEXT, st.text(max_size=200)), st.lists(st.integers(1, 7), max_size=40), st.booleans())
def test_clauses_do_not_depend_on_how_the_text_comes(text: str, sizes: list[int], eager: bool) -> None:
    cutter = ClauseCutter(eager=eager)
    clauses, rest = [], text
    for size in sizes:
        clauses += cutter.push(rest[:size])
        rest = rest[size:]
    clauses += [*cutter.push(rest), *cutter.flush()]
    assert clauses == cut(text, eager=eager)


@given(st.one_of(_TEXT, st.text(max_size=1500)), st.booleans())
def test_joined_clauses_are_the_text(text: str, eager: bool) -> None:
    clauses = cut(text, eager=eager)
    assert "".join(clauses) == text
    assert all(0 < len(clause) <= MAX_CHARS for clause in clauses)


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("Hello there! How are you?", ["Hello there! ", "How are you?"]),
        ("你好！我是语音助手。今天天气很好。", ["你好！", "我是语音助手。", "今天天气很好。"]),
        ("她说：“你好。”然后走了。", ["她说：“你好。”", "然后走了。"]),
        ('He said "yes." Then he left.', ['He said "yes." ', "Then he left."]),
        ("No. I will not.", ["No. ", "I will not."]),
        ("You and I. Nobody else.", ["You and I. ", "Nobody else."]),
        ("# Title\n\nText here.", ["# Title\n\n", "Text here."]),
        ("- one\n- two\n", ["- one\n", "- two\n"]),
        ("Wait… what?", ["Wait… ", "what?"]),
    ],
)
def test_ends_of_sentences_and_lines(text: str, clauses: list[str]) -> None:
    assert cut(text) == clauses


@pytest.mark.parametrize(
    "text",
    [
        "It is 3.14 or 1,000.50.",
        "Dr. Smith met J. R. Lee.",
        "Ask the U.S. team.",
        "See e.g. this one.",
        "Look at No. 5 here.",
        "At 3:30 p.m. sharp.",
        "Go to https://a.com/x?y=1,2;3 now.",
        "1. First of all.",
        "下午3：30见",
    ],
)
def test_no_cut_inside(text: str) -> None:
    assert cut(text, eager=False) == [text]


def test_first_clause_is_short_when_the_text_is_still_being_written() -> None:
    text = "The weather in Paris is going to be really lovely this afternoon and nobody will need a coat."
    first, *rest = cut(text)
    assert first == "The weather in Paris "
    assert len(rest) == 1
    assert cut(text, eager=False) == [text]


def test_first_clause_is_out_before_the_sentence_ends() -> None:
    assert ClauseCutter().push("人工智能是计算机科学的一个重要分支") == ["人工智能"]


def test_second_clause_is_rendered_while_the_first_is_heard() -> None:
    text = "北京是一座历史悠久的城市，拥有丰富的文化遗产，和独特的文化氛围。"
    assert cut(text) == ["北京是一座", "历史悠久的城市，", "拥有丰富的文化遗产，和独特的文化氛围。"]
    assert cut(text, eager=False) == ["北京是一座历史悠久的城市，", "拥有丰富的文化遗产，和独特的文化氛围。"]


def test_long_sentence_is_cut_before_a_function_word() -> None:
    clauses = cut("word " * 33 + "and " + "word " * 20, eager=False)
    assert [clause.split()[0] for clause in clauses] == ["word", "and"]


def test_wrapped_lines_are_one_sentence() -> None:
    text = "This line of the paragraph is wrapped by an editor at\nsome column and goes on here."
    assert cut(text, eager=False) == [text]


def test_flush_starts_anew() -> None:
    cutter = ClauseCutter()
    cutter.push("Half a sen")
    assert cutter.flush() == ["Half a sen"]
    assert cutter.flush() == []
    assert [*cutter.push("Next. "), *cutter.flush()] == ["Next. "]

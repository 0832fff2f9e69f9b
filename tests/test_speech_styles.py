from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepaudio.errors import InputError
from stepaudio.speech.roles import Voice
from stepaudio.speech.styles import in_style, leading_label


@pytest.mark.parametrize(
    ("text", "label", "written", "rest"),
    [
        ("(happy)Hello (you)", "happy", "(happy)", "Hello (you)"),
        ("（四川话）你好", "四川话", "（四川话）", "你好"),
        ("  (slow and tired) x", "slow and tired", "  (slow and tired)", " x"),
        ("Hello (happy)", "", "", "Hello (happy)"),
        ("()x", "", "", "()x"),
        ("((a))x", "", "", "((a))x"),
        ("(one\nline)x", "", "", "(one\nline)x"),
        ("(open", "", "", "(open"),
        ("(" + "a" * 101 + ")x", "", "", "(" + "a" * 101 + ")x"),
        ("", "", "", ""),
    ],
)
def test_labels(text, label, written, rest):
    for pieces in ([text], list(text)):
        found = leading_label(pieces)
        assert (found[0], found[1], "".join(found[2])) == (label, written, rest)


@given(st.text(alphabet="() （）a\n", max_size=12), st.lists(st.integers(0, 12), max_size=4))
def test_no_character_is_lost_and_cuts_change_nothing(text, cuts):
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    label, written, rest = leading_label(pieces)
    rest = "".join(rest)
    assert written + rest == text
    assert (label, written) == leading_label([text])[:2]


def test_only_as_much_is_waited_for_as_could_be_a_label():
    read = []

    def pieces():
        for piece in ("(hap", "py) and", " more"):
            read.append(piece)
            yield piece

    assert leading_label(pieces())[0] == "happy"
    assert read == ["(hap", "py) and"]


class Plain:
    rate, voices = 24_000, (Voice("a", ("en",)),)

    def default_voice(self, language): ...
    def speak(self, clause, *, voice, speed=1.0, cancel=None): ...
    def close(self): ...


class Styled(Plain):
    def styled(self, style):
        return style


def test_styles_are_checked():
    assert in_style(Styled(), " sad ") == "sad"
    with pytest.raises(InputError, match="no styles"):
        in_style(Plain(), "sad")
    for bad in ("", "(sad)", "a\nb", "a" * 101):
        with pytest.raises(InputError, match="1 to 100"):
            in_style(Styled(), bad)

"""The live benchmark: what it plays is decided by the seed, what it measures is known in closed form."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from realtime_fixtures import TalkBundle
from serve_fixtures.fakes import tone
from serve_fixtures.live import live
from stepaudio.audio.encode import write
from stepaudio.audio.pcm import Samples
from stepaudio.bench.live import clips as clip_source
from stepaudio.bench.live.bench import Options, server
from stepaudio.bench.live.clips import RATE, Clip, Clips, quietest, read_folder, trimmed, word_gap
from stepaudio.bench.live.measure import heard, quantiles, speculations, turns, units, words_heard
from stepaudio.bench.live.player import FRAME, Microphone, Target, play
from stepaudio.bench.live.recording import Chunk, Cut, Loudspeaker, Recording, Said
from stepaudio.bench.live.report import render, render_steps, report
from stepaudio.bench.live.run import Step, find_most, play_all
from stepaudio.bench.live.scenarios import KINDS, Conversation, Cue, Line, Turn, build
from stepaudio.errors import InputError
from stepaudio.speech.roles import Word


def loud(seconds: float) -> Samples:
    return np.full(round(seconds * RATE), 0.5, np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.float32)


def library() -> Clips:
    turns = {
        language: tuple(Clip(f"{language}{i}", "a b c d", language, loud(2.0 + i / 10), gap=1.0) for i in range(5))
        for language in ("en", "zh")
    }
    murmurs = {language: (Clip(f"{language}-mm", "mm", language, loud(0.3)),) for language in ("en", "zh")}
    return Clips(turns, murmurs)


# ---------------------------------------------------------------- what is said


def test_conversations_are_decided_by_the_seed() -> None:
    first, again = (build(library(), conversations=6, seed=3) for _ in range(2))
    assert first == again
    assert first != build(library(), conversations=6, seed=4)
    assert build(library(), conversations=3, seed=3) == first[:3]
    json.dumps([asdict(conversation) for conversation in first])


def test_every_kind_of_turn_comes_once_and_nothing_is_interrupted_at_the_start() -> None:
    conversations = build(library(), conversations=20, seed=1)
    for conversation in conversations:
        assert sorted(turn.kind for turn in conversation.turns) == sorted(KINDS)
        assert conversation.turns[0].kind != "barge_in"
    assert [conversation.language for conversation in conversations[:4]] == ["en", "zh", "en", "zh"]


def test_the_lines_of_each_kind() -> None:
    for conversation in build(library(), conversations=20, seed=2):
        for turn in conversation.turns:
            first, *rest = turn.lines
            assert first.cue.after == ("reply" if turn.kind == "barge_in" else "quiet")
            if turn.kind == "pause":  # the two parts are the clip, and the pause lies between
                assert (first.start, first.end, rest[0].start, rest[0].end) == (0.0, 1.0, 1.0, None)
                assert rest[0].cue.after == "line"
                assert 0.3 <= rest[0].cue.delay <= 1.2
            elif turn.kind == "false_start":  # a beginning, then all of it
                assert (first.end, rest[0].start, rest[0].end) == (1.0, 0.0, None)
            elif turn.kind == "backchannel":
                assert rest[0].murmur
                assert rest[0].cue.after == "reply"
            else:
                assert not rest


def test_clips_without_a_gap_cannot_make_pauses() -> None:
    whole = {"en": (Clip("en", "a b c", "en", loud(2.0)),)}
    with pytest.raises(InputError, match="gap"):
        build(Clips(whole, library().backchannels), conversations=1, seed=0)
    with pytest.raises(InputError, match="murmur"):
        build(Clips(library().turns, {}), conversations=1, seed=0)


def test_a_clip_reaches_from_its_first_audible_sample_to_its_last() -> None:
    samples, lead = trimmed(np.concatenate([silence(0.5), loud(1.0) * 0.1, silence(0.3)]))
    assert (len(samples), lead) == (RATE, 0.5)
    assert np.abs(samples).max() == pytest.approx(0.5)
    with pytest.raises(InputError, match="silent"):
        trimmed(silence(1.0))


def test_a_pause_is_put_where_a_recording_is_quiet() -> None:
    assert quietest(np.concatenate([loud(1.0), silence(0.06), loud(0.9)])) == pytest.approx(1.03, abs=0.02)
    assert quietest(loud(2.0)) is None
    assert quietest(silence(0.01)) is None


def test_a_pause_is_put_between_the_two_words_nearest_to_the_middle() -> None:
    assert word_gap([(0.5, 0.6), (1.1, 1.2), (1.9, 2.0)], lead=0.1, seconds=2.0) == pytest.approx(1.05)
    assert word_gap([(0.2, 0.2)], lead=0.0, seconds=2.0) is None


def test_a_folder_of_recordings(tmp_path: Path) -> None:
    rows = [
        {"path": "a.wav", "text": "one two three", "lang": "en", "seconds": 2.0},
        {"path": "b.wav", "text": "one", "lang": "en", "seconds": 2.0},  # no pause fits into a single word
        {"path": "c.wav", "text": "one two three", "lang": "en", "seconds": 9.0},
        {"path": "d.wav", "text": "想听歌曲", "lang": "zh", "seconds": 2.0},
    ]
    for row in rows:
        write(tmp_path / str(row["path"]), [tone(2.0)], 16_000)
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = read_folder(tmp_path, most=5, seed=0)
    assert {language: [clip.name for clip in some] for language, some in found.items()} == {
        "en": ["a.wav"],
        "zh": ["d.wav"],
    }


@pytest.mark.parametrize("manifest", [None, "no json", '{"path": "a.wav"}', ""])
def test_a_folder_that_cannot_be_used(tmp_path: Path, manifest: str | None) -> None:
    if manifest is not None:
        (tmp_path / "manifest.jsonl").write_text(manifest, encoding="utf-8")
    with pytest.raises(InputError):
        read_folder(tmp_path, most=5, seed=0)


# ---------------------------------------------------------------- the microphone and the loudspeaker


def test_the_microphone_puts_lines_where_they_belong() -> None:
    microphone = Microphone()
    line = np.arange(1, 1001, dtype=np.float32) / 1000
    assert microphone.say(line, 0.05) == pytest.approx(0.05)
    frames = [microphone.frame() for _ in range(3)]
    late = microphone.say(line, 0.01)  # that has gone by: it begins with the next frame
    assert late == pytest.approx(3 * FRAME / RATE)
    track = np.concatenate([*frames, *(microphone.frame() for _ in range(4))])
    expected = np.zeros(7 * FRAME, np.float32)
    expected[1200:2200] += line
    expected[3 * FRAME : 3 * FRAME + 1000] += line
    np.testing.assert_array_equal(track, expected)


def conversation(*kinds: str, murmur: bool = False) -> Conversation:
    line = Line("clip", Cue("quiet", 0.5))
    several = {"pause": (line, line), "backchannel": (line, Line("mm", Cue("reply", 1.0), murmur=True))}
    return Conversation("1-en", "en", tuple(Turn(kind, several.get(kind, (line,))) for kind in kinds))  # type: ignore[arg-type]


def test_the_loudspeaker_plays_one_chunk_after_the_other_until_it_is_stopped() -> None:
    recording = Recording(conversation("plain"), True)
    speaker = Loudspeaker(recording)
    speaker.play("r", "i", loud(1.0), 10.0)
    speaker.play("r", "i", loud(1.0), 10.2)
    assert [chunk.start for chunk in recording.chunks] == [10.0, 11.0]
    assert speaker.busy(11.9)
    (cut,) = speaker.stop({"r"}, 11.25)
    assert (cut.item_id, cut.at, cut.played) == ("i", 11.25, 1.25)
    assert not speaker.busy(11.25)
    speaker.play("r", "i", loud(1.0), 11.3)  # on its way when it was stopped
    assert len(recording.chunks) == 2
    speaker.play("s", "j", loud(1.0), 12.0)
    assert recording.chunks[-1].start == 12.0
    assert speaker.stop(set(), 14.0) == []  # it had been played


# ---------------------------------------------------------------- what is measured


def recorded(
    talk: Conversation, said: list[tuple[int, int, float, float]], replies: list[tuple[str, float, float]]
) -> Recording:
    """Lines as (turn, line, start, seconds), replies as (id, start, seconds), each with 0.1 s of silence around."""
    recording = Recording(talk, True)
    quiet = silence(0.1)
    for turn, line, start, seconds in said:
        samples = np.concatenate([quiet, loud(seconds), quiet])
        recording.said.append(Said(turn, line, start - 0.1, samples))
    for name, start, seconds in replies:
        samples = np.concatenate([quiet, loud(seconds), quiet])
        recording.chunks.append(Chunk(name, name, start - 0.1, samples, len(samples)))
    return recording


def test_latency_is_from_the_last_audible_sample_to_the_first() -> None:
    recording = recorded(
        conversation("plain", "plain"), [(0, 0, 1.0, 2.0), (1, 0, 8.0, 1.0)], [("r", 3.7, 2.0), ("s", 9.4, 1.0)]
    )
    first, second = turns(recording)
    assert first.latency == pytest.approx(0.7, abs=1e-3)
    assert second.latency == pytest.approx(0.4, abs=1e-3)
    assert not first.missed
    assert not first.cut_in
    assert first.stopped is None
    assert not first.talked_over
    assert first.gave_way is None


def test_a_reply_while_the_user_has_more_to_say_is_a_false_cut_in() -> None:
    talk = conversation("pause")
    said = [(0, 0, 1.0, 1.0), (0, 1, 3.0, 1.0)]
    (between,) = turns(recorded(talk, said, [("r", 2.5, 0.3), ("s", 4.5, 1.0)]))
    (during,) = turns(recorded(talk, said, [("r", 3.5, 0.3), ("s", 4.5, 1.0)]))
    (after,) = turns(recorded(talk, said, [("s", 4.5, 1.0)]))
    assert (between.cut_in, during.cut_in, after.cut_in) == (True, True, False)
    assert between.latency == during.latency == after.latency == pytest.approx(0.5, abs=1e-3)


def test_turns_without_a_reply_are_missed_and_so_are_those_that_were_never_said() -> None:
    talk = conversation("plain", "pause", "plain")
    recording = recorded(talk, [(0, 0, 1.0, 1.0), (1, 0, 9.0, 1.0)], [("r", 10.5, 1.0)])
    assert [turn.missed for turn in turns(recording)] == [True, True, True]


def test_a_reply_that_was_never_played_is_none() -> None:
    recording = recorded(conversation("plain"), [(0, 0, 1.0, 1.0)], [("r", 2.5, 1.0)])
    recording.chunks[0].played = 0
    assert turns(recording)[0].missed


def test_a_barge_in_is_timed_until_the_agent_is_silent() -> None:
    talk = conversation("plain", "barge_in")
    said = [(0, 0, 1.0, 1.0), (1, 0, 4.0, 1.5)]
    recording = recorded(talk, said, [("r", 2.5, 5.0), ("s", 6.0, 1.0)])
    assert turns(recording)[1].talked_over
    recording.cuts.append(Cut("r", 4.6, 2.2))
    stopped = turns(recording)[1]
    assert stopped.stopped == pytest.approx(0.6, abs=1e-3)
    assert not stopped.talked_over
    assert stopped.latency == pytest.approx(0.5, abs=1e-3)
    over = recorded(talk, said, [("r", 2.5, 1.0), ("s", 6.0, 1.0)])  # it had ended by itself
    assert turns(over)[1].stopped is None
    assert not turns(over)[1].talked_over
    ending = recorded(talk, said, [("r", 2.5, 1.8), ("s", 6.0, 1.0)])  # it ends before anybody could have stopped it
    assert turns(ending)[1].stopped is None
    assert not turns(ending)[1].talked_over


def test_the_agent_should_go_on_at_a_murmur() -> None:
    talk = conversation("backchannel", "plain")
    recording = recorded(talk, [(0, 0, 1.0, 1.0), (0, 1, 3.5, 0.3), (1, 0, 9.0, 1.0)], [("r", 2.5, 4.0)])
    assert turns(recording)[0].gave_way is False
    recording.cuts.append(Cut("r", 3.9, 1.4))
    assert turns(recording)[0].gave_way is True
    unheard = recorded(talk, [(0, 0, 1.0, 1.0), (0, 1, 7.5, 0.3)], [("r", 2.5, 4.0)])
    assert turns(unheard)[0].gave_way is None


def evenly(text: str, seconds: float) -> list[Word]:
    words = text.split()
    each = seconds / len(words)
    return [Word(word, i * each, (i + 1) * each) for i, word in enumerate(words)]


def test_words_are_counted_by_what_was_played_of_them() -> None:
    text = "The sky is blue, since air scatters it."
    words = evenly(text, 8.0)
    assert [words_heard(text, words, played) for played in (0.0, 0.6, 3.4, 3.6, 8.0)] == [0, 1, 3, 4, 8]


def test_words_that_the_judge_heard_differently_are_aligned() -> None:
    text = "It was 1912 when they met in Rome."  # 8 words
    words = evenly("It was nineteen twelve when they met in room", 9.0)
    assert words_heard(text, words, 6.6) == 6  # up to "met"
    assert words_heard(text, words, 9.0) == 8
    assert words_heard(text, [], 9.0) == 0


def test_chinese_is_counted_by_the_character() -> None:
    assert units("你好，world 3.") == ["你", "好", "world", "3"]
    assert words_heard("天空是蓝色的。", [Word("天空", 0.0, 1.0), Word("是蓝色的", 1.0, 3.0)], 1.8) == 4


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=12), st.floats(0, 13))
def test_where_the_judge_hears_the_text_itself_the_count_is_that_of_its_words(text: list[str], played: float) -> None:
    words = evenly(" ".join(text), float(len(text)))
    assert words_heard(" ".join(text), words, played) == sum(word.start + 0.5 <= played for word in words)


def test_the_heard_prefix_is_off_by_the_words_that_history_has_too_many() -> None:
    recording = recorded(conversation("plain", "barge_in"), [], [("item", 1.0, 4.0)])
    recording.texts["item"] = "one two three four"
    recording.cuts = [Cut("item", 3.1, 2.1, heard="one two three"), Cut("unknown", 9.0, 1.0)]
    guess = {"type": "stepaudio.item.heard", "item_id": "item", "by": "playback", "text": "one", "seconds": 1.0}
    recording.events.append((3.2, guess))
    (measured,) = heard(recording, lambda samples, language: evenly("one two three four", len(samples) / RATE))
    assert (measured.error, measured.guess_error, measured.words) == (1, -1, 2)


def test_quantiles() -> None:
    assert quantiles([0.4, 0.1, 0.2, 0.3, 0.5]) == {"n": 5, "mean": 0.3, "p50": 0.3, "p95": 0.48}
    assert quantiles([])["p50"] is None


def speculated(committed: bool, lead: float, tokens: int, reason: str = "") -> tuple[float, dict[str, object]]:
    fields = {"committed": committed, "reason": reason, "lead": lead, "tokens": tokens, "seconds": tokens / 10}
    return 0.0, {"type": "stepaudio.speculation", **fields}


def test_what_speculation_cost() -> None:
    recording = Recording(conversation("plain"), True)
    recording.events = [speculated(True, 0.5, 9), speculated(False, 0.2, 4, "changed"), speculated(True, 0.7, 3)]
    told = speculations([recording])
    assert (told["started"], told["committed"], told["commit_rate"]) == (3, 2, 0.6667)
    assert told["lead_seconds"]["mean"] == pytest.approx(0.6)
    assert (told["wasted_tokens"], told["wasted_seconds"], told["discarded"]) == (4, 0.4, {"changed": 1})


# ---------------------------------------------------------------- how many are too many


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_search_finds_the_most_sessions(capacity: int, most: int) -> None:
    async def measure(sessions: int) -> Step:
        return Step(sessions, 1.0 if sessions <= capacity else 2.0, 0)

    steps = asyncio.run(find_most(measure, limit=1.5, most=most))
    good = max((step.sessions for step in steps if step.within(1.5)), default=0)
    assert good == min(capacity, most)
    assert len(steps) <= 2 * most.bit_length() + 1
    assert len({step.sessions for step in steps}) == len(steps)


def test_missed_turns_are_never_within_the_limit() -> None:
    assert not Step(1, 0.5, 1).within(1.0)
    assert not Step(1, None, 0).within(1.0)


# ---------------------------------------------------------------- the report


def two_arms() -> list[Recording]:
    talk = conversation("plain", "pause")
    said = [(0, 0, 1.0, 1.0), (1, 0, 6.0, 1.0), (1, 1, 8.0, 1.0)]
    fast = recorded(talk, said, [("r", 2.4, 1.0), ("s", 9.6, 1.0)])
    slow = recorded(talk, said, [("r", 2.9, 1.0), ("s", 10.1, 1.0)])
    slow.speculation = False
    return [fast, slow]


def test_the_report_compares_both_arms() -> None:
    figures = report(two_arms(), lambda samples, language: [], {"seed": 0})
    assert figures["arms"]["speculation"]["latency"]["p50"] == pytest.approx(0.5, abs=1e-3)
    assert figures["saved"]["p50_seconds"] == pytest.approx(0.5, abs=1e-3)
    assert figures["saved"]["p50_share"] == pytest.approx(0.5, abs=1e-3)
    assert len(figures["turns"]) == 4
    json.dumps(figures, allow_nan=False)
    console = Console(width=100, record=True, file=None)
    with console.capture() as printed:
        console.print(render(figures))
    assert "0.50 / 0.59 (2)" in printed.get()
    with console.capture() as printed:
        console.print(render_steps([Step(1, 0.8, 0), Step(2, None, 5)], 1.0))
    assert "0.80 s" in printed.get()


def test_the_report_of_one_arm_has_nothing_to_compare() -> None:
    figures = report(two_arms()[1:], lambda samples, language: [], {})
    assert list(figures["arms"]) == ["no_speculation"]
    assert figures["saved"] is None


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from stepaudio.bench.live.plot import check_plot, plot

    check_plot(tmp_path / f"run{suffix}")
    plot(two_arms(), tmp_path / f"run{suffix}")
    head = (tmp_path / f"run{suffix}").read_bytes()[:100]
    assert head.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    with pytest.raises(InputError):
        check_plot(tmp_path / "run.txt")


# ---------------------------------------------------------------- against a server


def test_a_conversation_with_a_live_server() -> None:
    bundle = TalkBundle()
    bundle.transcriber.lines = ["tell me a long story please"]
    bundle.responder.answer = lambda messages, tools: [f"word{i} " for i in range(25)]
    clips = {"ask": Clip("ask", "tell me", "en", loud(0.8)), "stop": Clip("stop", "no", "en", loud(1.0))}
    talk = Conversation(
        "1-en",
        "en",
        (
            Turn("plain", (Line("ask", Cue("quiet", 0.2)),)),
            Turn("barge_in", (Line("stop", Cue("reply", 0.8)),)),
        ),
    )
    session = {"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 600}}}}
    with live(bundle) as running:
        target = Target(running.url, session=session)
        (recording, plain) = asyncio.run(play_all([talk], clips, target, arms=(True, False), idle=2))
    assert (recording.speculation, plain.speculation) == (True, False)
    assert recording.errors == plain.errors == []
    first, second = turns(recording)
    assert first.latency is not None
    assert 0 < first.latency < 20
    assert second.latency is not None
    assert second.stopped is not None
    (cut,) = recording.cuts[:1]
    assert cut.heard is not None
    (measured,) = heard(recording, lambda samples, language: evenly(recording.texts[cut.item_id], len(samples) / RATE))
    assert abs(measured.error) <= 1
    assert speculations([recording])["started"] >= 1
    assert speculations([plain])["started"] == 0
    user, agent = recording.tracks()
    assert np.abs(user).max() == np.float32(0.5)
    assert np.abs(agent).max() > 0.4


def test_a_server_that_is_not_there_is_an_error_of_the_recording() -> None:
    talk = conversation("plain")
    recording = asyncio.run(play(talk, {}, Target("http://127.0.0.1:9"), speculation=True))
    assert len(recording.errors) == 1
    assert turns(recording)[0].missed


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", "ws://127.0.0.1:8000/v1/realtime?model=default"),
        ("https://host/v1/", "wss://host/v1/realtime?model=default"),
        ("ws://host/base/v1?model=small", "ws://host/base/v1/realtime?model=small"),
    ],
)
def test_the_address_of_a_server(url: str, address: str) -> None:
    assert Target(url).address == address


def test_an_address_that_is_none() -> None:
    with pytest.raises(InputError, match="address"), server(Options("tiny", url="localhost:8000")):
        pass


@pytest.mark.weights
def test_the_bundles_voices_speak_what_is_asked() -> None:
    from stepaudio.speech.bundle import Bundle
    from stepaudio.speech.bundle_spec import read_spec

    with Bundle(read_spec("tiny")) as bundle:
        spoken = clip_source.synthesise_turns(bundle, most=1, seed=0)
    for clip in (clip for some in spoken.values() for clip in some):
        assert clip.gap is not None
        assert 0.3 * clip.seconds <= clip.gap <= 0.7 * clip.seconds

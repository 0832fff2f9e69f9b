"""Strict counting: what failed lowers a score by exactly what it has to, and nothing is asked twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval_fixtures import RATE, Faulty, Scripted, Telepath, heard, judge, sound
from stepaudio.errors import InputError
from stepaudio.eval import results
from stepaudio.eval.items import Audio, Call, Clip, Item, Output, Reply, Request, Turn
from stepaudio.eval.metrics.errors import count_errors
from stepaudio.eval.results import TaskResult
from stepaudio.eval.runner import collect, empty, run_task
from stepaudio.eval.store import Store
from stepaudio.eval.tasks import TASKS, open_task
from stepaudio.eval.tasks.base import Task
from stepaudio.eval.tasks.following import Manner, changed
from stepaudio.eval.tasks.tools import matches
from stepaudio.speech.roles import Tool

SENTENCES = [f"sentence number {word} of the set" for word in ("alpha", "beta", "gamma delta", "epsilon", "zeta")] * 6
SHARES = [0.0, 0.3, 1.0]


def value(result: TaskResult, metric: str, subset: str = "all") -> float:
    return next(f.value for f in result.figures if (f.metric, f.subset) == (metric, subset))


def run(task: Task, items: list[Item], system: Scripted, folder: Path, **options: object) -> TaskResult:
    store = Store(folder)
    instruments = options.pop("instruments", None) or Telepath(store)
    return run_task(task, items, system, store, instruments, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what a failure costs


@pytest.mark.parametrize("share", SHARES)
def test_a_failed_transcript_has_deleted_every_word(share: float, tmp_path: Path) -> None:
    items = [heard(text, number) for number, text in enumerate(SENTENCES)]
    said = {item.id: str(item.reference["text"]).replace("set", "sea") for item in items}  # one word in each is wrong
    faulty = Faulty(Scripted(lambda request: [Reply(said[request.id])]), share)
    result = run(open_task("asr"), items, faulty, tmp_path)
    words = [len(text.split()) for text in SENTENCES]
    errors = [n if faulty.fails(item.id) else 1 for n, item in zip(words, items, strict=True)]
    assert value(result, "WER") == pytest.approx(sum(errors) / sum(words))
    assert value(result, "not a transcript") == pytest.approx(sum(map(faulty.fails, said)) / len(items))
    assert [row.id for row in result.failed] == [item.id for item in items if faulty.fails(item.id)]
    assert all(figure.failed == len(result.failed) for figure in result.figures if figure.metric == "WER")


def test_kimis_quirk_drops_what_failed(tmp_path: Path) -> None:
    items = [heard(text, number) for number, text in enumerate(SENTENCES)]
    said = {item.id: str(item.reference["text"]) for item in items}
    said["000"], said["001"] = "null", "wrong"
    faulty = Faulty(Scripted(lambda request: [Reply(said[request.id])]), 0.3)
    strict = run(open_task("asr"), items, faulty, tmp_path)
    lenient = run(open_task("asr", "kimi_compat"), items, faulty, tmp_path)
    kept = [item for item in items if not faulty.fails(item.id) and item.id != "000"]
    errors = {item.id: count_errors(SENTENCES[int(item.id)].split(), said[item.id].split()) for item in kept}
    assert value(lenient, "WER") == pytest.approx(
        sum(e.total for e in errors.values()) / sum(e.length for e in errors.values())
    )
    assert value(lenient, "WER") < value(strict, "WER")
    assert len(lenient.rows) == len(items)  # but they are still listed


@pytest.mark.parametrize("share", SHARES)
def test_missing_speech_gets_the_worst_of_everything(share: float, tmp_path: Path) -> None:
    prompt = Clip(sample_wav())
    items = [Item(Request(f"{n:02}", "say", "en", text, prompt), {}, "set") for n, text in enumerate(SENTENCES)]
    audio = {item.id: Audio(sound(0.5, 200 + n), RATE) for n, item in enumerate(items)}
    store = Store(tmp_path)
    instruments = Telepath(store)
    faulty = Faulty(Scripted(lambda request: [Reply(request.text, audio[request.id], seconds=0.1)]), share)
    for item in items:
        instruments.said[audio[item.id].digest] = item.request.text.replace("of the", "")
    result = run_task(open_task("tts"), items, faulty, store, instruments)
    lengths = [len(text.split()) for text in SENTENCES]
    failed = [faulty.fails(item.id) for item in items]
    errors = [n if bad else 2 for n, bad in zip(lengths, failed, strict=True)]
    assert value(result, "WER") == pytest.approx(sum(errors) / sum(lengths))
    rates = [error / n for error, n in zip(errors, lengths, strict=True)]
    assert value(result, "WER (seed_en)") == pytest.approx(np.mean(rates))
    assert value(result, "DNSMOS") == pytest.approx(np.mean([1.0 if bad else 3.0 for bad in failed]), abs=0.01)
    assert value(result, "similarity") == pytest.approx(1 - np.mean(failed))
    assert sum(row.error is not None for row in result.rows) == sum(failed)
    if share == 0.3:
        seed = run_task(open_task("tts", "seed_compat"), items, faulty, store, instruments)
        good = [rate for rate, bad in zip(rates, failed, strict=True) if not bad]
        assert value(seed, "WER (seed_en)") == pytest.approx(np.mean(good))


def sample_wav() -> bytes:
    from stepaudio.audio.encode import encode

    return encode(sound(), RATE, "wav")


@pytest.mark.parametrize("share", SHARES)
def test_a_missing_answer_is_wrong(share: float, tmp_path: Path) -> None:
    turns = (Turn("What is the capital of France?", Clip(sample_wav())),)
    items = [Item(Request(f"{n:02}", "converse", "en", turns=turns), {"answers": ["Paris"]}, "set") for n in range(40)]
    good = Scripted(lambda request: [Reply("It is Paris." if int(request.id) % 4 else "It is Lyon.")])
    faulty = Faulty(good, share)
    decided, _ = judge(
        lambda prompt, tool: {"reason": "", "right": "Paris." in prompt.split("<answer>")[1]}, Store(tmp_path)
    )
    instruments = Telepath(Store(tmp_path), judge=decided)
    result = run(open_task("qa"), items, faulty, tmp_path, instruments=instruments)
    right = np.mean([int(item.id) % 4 > 0 and not faulty.fails(item.id) for item in items])
    assert value(result, "contains (text)") == pytest.approx(right)
    assert value(result, "judged right") == pytest.approx(right)
    assert value(result, "contains (speech)") == 0  # nothing was said aloud


@pytest.mark.parametrize("share", SHARES)
def test_a_missing_letter_is_wrong_but_for_the_quirks(share: float, tmp_path: Path) -> None:
    turns = (Turn("How?", Clip(sample_wav())),)
    reference = {"options": ["on foot", "by bus", "by car", "by bike"], "answer": 0}
    items = [Item(Request(f"{n:02}", "converse", "en", turns=turns), reference, "set") for n in range(60)]
    faulty = Faulty(Scripted(lambda request: [Reply("on foot")]), share)
    strict, ultra, voice = (
        run(open_task("listening", protocol), items, faulty, tmp_path)
        for protocol in ("strict", "ultraeval_compat", "voicebench_compat")
    )
    missing = [faulty.fails(item.id) for item in items]
    assert value(strict, "accuracy") == pytest.approx(1 - np.mean(missing))
    assert value(strict, "no option") == pytest.approx(np.mean(missing))
    # Where the answer is missing, A is right as often as the shuffle puts the right option first.
    lucky = [row.shown["right"] == "A" for row in strict.rows]
    assert value(ultra, "accuracy") == pytest.approx(
        np.mean([not m or at_a for m, at_a in zip(missing, lucky, strict=True)])
    )
    assert value(voice, "accuracy") >= value(strict, "accuracy")
    assert value(run(open_task("listening", "voicebench_compat"), items, faulty, tmp_path), "accuracy") == value(
        voice, "accuracy"
    )


def test_options_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    reference = {"options": list("wxyz"), "answer": 0}
    items = [Item(Request(f"{n:02}", "converse", "zh", turns=(Turn("?"),)), reference) for n in range(40)]
    task = open_task("listening")
    first, again, other = (task.prepare(items, seed) for seed in (1, 1, 2))
    assert [i.reference for i in first] == [i.reference for i in again] != [i.reference for i in other]
    assert {i.reference["answer"] for i in first} == {0, 1, 2, 3}
    assert all(i.reference["options"][i.reference["answer"]] == "w" for i in first)
    assert "A. " in (first[0].request.instructions or "")


@pytest.mark.parametrize("share", SHARES)
def test_a_missing_call_is_a_miss(share: float, tmp_path: Path) -> None:
    tools = (Tool("weather"), Tool("timer"))
    wanted = {"name": "weather", "arguments": {"city": ["Paris"]}}
    items = [
        Item(
            Request(f"{n:02}", "converse", "en", turns=(Turn("?"),), tools=tools),
            {"call": wanted if n % 2 else None},
            "set",
        )
        for n in range(40)
    ]

    def answer(request: Request) -> list[Reply]:
        number = int(request.id)
        if number % 2:  # every fifth names the wrong city
            return [Reply(calls=(Call("weather", {"city": "Lyon" if number % 5 == 0 else "Paris"}),))]
        return [Reply("hello", calls=(Call("timer", {}),) if number % 8 == 0 else ())]  # some are false alarms

    faulty = Faulty(Scripted(answer), share)
    result = run(open_task("tools"), items, faulty, tmp_path)
    alive = [n for n in range(40) if not faulty.fails(f"{n:02}")]
    hits, alarms = [n for n in alive if n % 2], [n for n in alive if n % 8 == 0]
    assert value(result, "trigger recall") == pytest.approx(len(hits) / 20)
    if hits or alarms:
        assert value(result, "trigger precision") == pytest.approx(len(hits) / (len(hits) + len(alarms)))
    right = [n for n in hits if n % 5]
    assert value(result, "tool accuracy") == pytest.approx(len(hits) / 20)
    assert value(result, "argument accuracy") == pytest.approx(len(right) / 20)
    quiet = [n for n in alive if n % 2 == 0 and n % 8]
    assert value(result, "success") == pytest.approx((len(right) + len(quiet)) / 40)


@pytest.mark.parametrize("share", SHARES)
def test_an_unanswered_dialogue_scores_worst(share: float, tmp_path: Path) -> None:
    items = [Item(Request(f"{n:02}", "converse", "en", turns=(Turn("a"), Turn("b"))), {}, "gaming") for n in range(30)]
    decided, _ = judge(
        lambda prompt, tool: {"reason": "", "factual": True, "relevant": False, "score": 4}, Store(tmp_path)
    )
    faulty = Faulty(Scripted(lambda request: [Reply("x"), Reply("y")]), share)
    result = run(open_task("dialogues"), items, faulty, tmp_path, instruments=Telepath(Store(tmp_path), judge=decided))
    alive = 1 - np.mean([faulty.fails(item.id) for item in items])
    assert value(result, "factuality") == pytest.approx(alive)
    assert value(result, "relevance") == 0
    assert value(result, "chat score") == pytest.approx(4 * alive + 1 * (1 - alive))
    assert value(result, "answered") == pytest.approx(alive)


def test_half_a_dialogue_is_unanswered(tmp_path: Path) -> None:
    items = [Item(Request(n, "converse", "en", turns=(Turn("a"), Turn("b"))), {}, "gaming") for n in "12"]
    result = run(open_task("dialogues"), items, Scripted(lambda request: [Reply("x"), Reply("")]), tmp_path)
    assert value(result, "answered") == 0


def test_requirements_that_depend_on_one_that_failed_fail(tmp_path: Path) -> None:
    questions = [
        {"question": "short?", "rule": "model_length:[1,5]", "of": "reply"},
        {"question": "polite?", "dep": [0]},
        {"question": "true?"},
        {"question": "no rest?", "rule": "model_forbidden_word:[rest]", "of": "reply"},
        {"question": "two parts?", "rule": "model_number:[2,2]"},
    ]
    items = [
        Item(Request(n, "converse", "en", turns=(Turn("go"),)), {"questions": questions}, "set")
        for n in ("long", "none")
    ]

    def decide(prompt: str, tool: object) -> dict[str, object]:
        return {"parts": "much || too long"} if "Copy the parts" in prompt else {"reason": "", "yes": True}

    decided, model = judge(decide, Store(tmp_path))
    system = Scripted(lambda request: [Reply("much too long")] if request.id == "long" else [])
    result = run(
        open_task("instructions"), items, system, tmp_path, instruments=Telepath(Store(tmp_path), judge=decided)
    )
    rows = {row.id: row for row in result.rows}
    assert rows["long"].scores["DRFR"] == [3, 5]  # not short, so not politely short; true; no "rest"; two parts
    assert rows["long"].scores["by rule"] == [1, 2]
    assert rows["none"].scores == {"DRFR": [0, 5], "by rule": [0, 2]}
    assert len(model.asked) == 3  # a missing reply is not even shown to the judge


def test_how_something_was_said_is_measured_against_the_usual_voice() -> None:
    usual = Manner(pace=4.0, pitch=200.0, level=0.1)
    assert changed({"manner": "faster"}, usual, Manner(5.0, 200.0, 0.1), "hi")
    assert not changed({"manner": "faster"}, usual, Manner(4.2, 200.0, 0.1), "hi")
    assert changed({"manner": "softer"}, usual, Manner(4.0, 200.0, 0.05), "hi")
    assert not changed({"manner": "lower"}, usual, None, "hi")
    assert changed({"language": "zh"}, None, None, "你好")
    assert not changed({"language": "zh"}, None, None, "hello")


def test_arguments_match_by_stated_rules() -> None:
    wanted = {"name": "f", "arguments": {"city": ["Paris", "巴黎"], "seconds": 300}}
    assert matches(Call("f", {"city": "paris, France", "seconds": 300, "unit": "c"}), wanted)
    assert not matches(Call("f", {"city": "Par", "seconds": 300}), wanted)
    assert not matches(Call("f", {"city": "Paris", "seconds": 30}), wanted)
    assert not matches(Call("f", {"city": "Paris"}), wanted)
    assert not matches(Call("g", {"city": "Paris", "seconds": 300}), wanted)


# ---------------------------------------------------------------- keeping


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    items = [heard(text, number) for number, text in enumerate(SENTENCES)]
    whole = run(open_task("asr"), items, Scripted(lambda request: [Reply("something")]), tmp_path / "whole")
    store = Store(tmp_path / "cut")
    first = Scripted(lambda request: [Reply("something")])
    collect(items[:11], first, store)  # and then the machine lost power
    (tmp_path / "cut" / "ab").mkdir(exist_ok=True)
    (tmp_path / "cut" / "ab" / "abc.1.part").write_text("{", encoding="utf-8")
    second = Scripted(lambda request: [Reply("something")])
    resumed = run(open_task("asr"), items, second, tmp_path / "cut")
    assert sorted(first.asked + second.asked) == [item.id for item in items]
    assert resumed.figures == whole.figures
    assert [row.scores for row in resumed.rows] == [row.scores for row in whole.rows]


def test_failures_are_tried_again(tmp_path: Path) -> None:
    items = [heard(text, number) for number, text in enumerate(SENTENCES)]
    faulty = Faulty(Scripted(lambda request: [Reply("x")]), 0.5)
    run(open_task("asr"), items, faulty, tmp_path)
    mended = Faulty(Scripted(lambda request: [Reply("x")]), 0.0)
    result = run(open_task("asr"), items, mended, tmp_path)
    assert not result.failed
    assert sorted(mended.asked) == [item.id for item in items if faulty.fails(item.id)]


def test_a_recording_that_changes_is_asked_again(tmp_path: Path) -> None:
    first, other = heard("a", 1), heard("a", 2)
    system = Scripted(lambda request: [Reply("x")])
    same_name = Item(Request(first.id, "transcribe", "en", clip=other.request.clip), first.reference, "set")
    for items in ([first], [first], [same_name]):
        run(open_task("asr"), items, system, tmp_path)
    assert system.asked == [first.id, first.id]


def test_what_is_kept_comes_back_whole(tmp_path: Path) -> None:
    audio = Audio(sound(), RATE)
    output = Output((Reply("text", audio, (Call("f", {"a": [1, "ü"]}),), 1.5, 0.25, "heard"), Reply("two")))
    store = Store(tmp_path)
    store.keep("ab12", output)
    back = store.output("ab12")
    assert back is not None
    assert back.replies[1] == output.replies[1]
    one = back.replies[0]
    assert (one.text, one.calls, one.seconds, one.first, one.heard) == (
        "text",
        output.replies[0].calls,
        1.5,
        0.25,
        "heard",
    )
    assert one.audio is not None
    assert np.array_equal(one.audio.samples, audio.samples)
    assert store.output("cd34") is None


def test_a_recording_that_is_gone_is_a_failure(tmp_path: Path) -> None:
    item = Item(Request("x", "transcribe", "en", clip=Clip(tmp_path / "gone.wav")), {"text": "one two"}, "set")
    result = run(open_task("asr"), [item], Scripted(lambda request: [Reply("one two")]), tmp_path)
    assert value(result, "WER") == 1
    assert "gone.wav" in (result.rows[0].error or "")


def test_silence_is_empty() -> None:
    request = Request("x", "say", "en", "hello")
    assert empty(request, Output((Reply(audio=Audio(np.zeros(100, np.float32), RATE)),)))
    assert not empty(request, Output((Reply(audio=Audio(sound(), RATE)),)))
    assert empty(Request("x", "converse", "en"), Output((Reply(" "),)))
    assert not empty(Request("x", "converse", "en"), Output((Reply("", calls=(Call("f", {}),)),)))


def test_a_run_is_saved_and_read_again(tmp_path: Path) -> None:
    items = [heard(text, number) for number, text in enumerate(SENTENCES)]
    task = run(open_task("asr"), items, Scripted(lambda request: [Reply("x")]), tmp_path)
    saved = results.Run("s", "s", {"asr": task}, {"seed": 0})
    results.save(saved, tmp_path / "r")
    again = results.load(tmp_path / "r")
    assert again.tasks["asr"].figures == task.figures
    assert again.tasks["asr"].rows == task.rows
    (tmp_path / "r" / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is not a run"):
        results.load(tmp_path / "r")


def test_every_task_but_live_opens() -> None:
    for name in TASKS:
        if name != "live":
            assert open_task(name).name == name
    with pytest.raises(InputError, match="kimi_compat"):
        open_task("asr", "seed_compat")

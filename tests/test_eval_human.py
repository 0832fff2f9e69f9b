"""Listening tests: plans that can be gone on with, ratings that are kept, figures known by hand, and the page in a real
browser."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eval_fixtures import RATE, sound
from stepaudio.audio.encode import write
from stepaudio.errors import InputError, NotFoundError
from stepaudio.eval.human.analysis import analyse, bradley_terry, mos, strengths
from stepaudio.eval.human.ratings import Rating, Ratings
from stepaudio.eval.human.study import SCALES, Study, read_study

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def study(tmp_path: Path, kind: str = "mos", systems: str = "ab", items: int = 6, **more: object) -> Study:
    lines = [f'kind = "{kind}"', *(f"{name} = {json.dumps(value)}" for name, value in more.items())]
    for number, name in enumerate(systems):
        for item in range(items):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            write(folder / f"{item}.wav", sound(0.1, 200 + 100 * number), RATE)
        lines += ["[[system]]", f'name = "{name}"', f'audio = "{name}"']
    (tmp_path / "study.toml").write_text("\n".join(lines), encoding="utf-8")
    return read_study(tmp_path / "study.toml")


# ---------------------------------------------------------------- plans


def test_a_plan_is_the_same_when_the_rater_comes_back_and_another_for_another(tmp_path: Path) -> None:
    plan = study(tmp_path)
    assert plan.plan("x") == plan.plan("x") != plan.plan("y")


def test_every_recording_comes_once_before_any_comes_again(tmp_path: Path) -> None:
    plan = study(tmp_path, trials=12, attention_every=0)
    heard = Counter((trial.item, trial.systems) for trial in plan.plan("x"))
    assert len(heard) == 12
    assert set(heard.values()) == {1}
    short = study(tmp_path, trials=4, attention_every=0).plan("x")
    assert Counter(trial.systems for trial in short) == {("a",): 2, ("b",): 2}


def test_which_is_first_is_drawn(tmp_path: Path) -> None:
    plan = study(tmp_path, "pairwise", "abc", items=20, trials=60, attention_every=0).plan("x")
    first = Counter(trial.systems[0] for trial in plan)
    assert all(count >= 10 for count in first.values())
    assert {frozenset(trial.systems) for trial in plan} == {frozenset(p) for p in ("ab", "ac", "bc")}


def test_attention_items_lie_between_trials(tmp_path: Path) -> None:
    plan = study(tmp_path, trials=12, attention_every=4).plan("x")
    assert [trial.number for trial in plan if trial.wanted is not None] == [4, 9]
    assert sum(trial.wanted is None for trial in plan) == 12


def test_the_page_is_not_told_names(tmp_path: Path) -> None:
    plan = study(tmp_path)
    assert len({plan.token(system, item) for system in "ab" for item in plan.items}) == 12
    assert "a" not in plan.audio or plan.token("a", "0") != plan.token("b", "0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("kind = 'mos'\ncolour = 1", "unknown key 'colour'"),
        ("kind = 'mushra'", "kind is one of"),
        ("kind = 'cmos'\n[[system]]\nname='a'\naudio='a'", "at least 2"),
        ("kind = 'mos'\n[[system]]\nname='a'\naudio='none'", "no audio of a"),
        ("kind = 'mos'\n[[system]]\nname='a'", "needs audio, or run and task"),
        ("kind =", "not valid TOML"),
    ],
)
def test_a_study_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "0.wav", sound(0.1), RATE)
    (tmp_path / "s.toml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_study(tmp_path / "s.toml")
    with pytest.raises(NotFoundError):
        read_study(tmp_path / "none.toml")


# ---------------------------------------------------------------- ratings


def test_the_first_answer_stays_and_the_scale_holds(tmp_path: Path) -> None:
    plan = study(tmp_path)
    with Ratings(tmp_path / "r.sqlite") as ratings:
        ratings.add_rater("x")
        trial = plan.plan("x")[0]
        ratings.rate(plan, "x", trial, 4.5, 3.0)
        ratings.rate(plan, "x", trial, 1.0, 3.0)
        with pytest.raises(InputError, match="scale"):
            ratings.rate(plan, "x", trial, 6.0, 3.0)
        assert [each.value for each in ratings.all()] == [4.5]
        assert ratings.answered("x") == {trial.number}
    with Ratings(tmp_path / "r.sqlite") as again:
        assert again.knows("x")
        assert len(again.all()) == 1
    (tmp_path / "other").write_text("no database, but long enough to be looked at" * 10, encoding="utf-8")
    with pytest.raises(InputError, match="cannot be used"):
        Ratings(tmp_path / "other")


def rating(rater: str, item: str, first: str, value: float, second: str | None = None) -> Rating:
    return Rating(rater, item, first, second, None, value)


def test_a_mean_opinion_score_and_its_interval() -> None:
    rows = mos([rating(r, i, "a", v) for r, i, v in (("x", "1", 4), ("x", "2", 2), ("y", "1", 5), ("y", "2", 3))])
    assert rows[0]["value"] == 3.5
    assert rows[0]["low"] >= 2
    assert rows[0]["high"] <= 5
    same = mos([rating(r, i, "a", 3) for r in "xyz" for i in "123"])[0]
    assert (same["low"], same["high"]) == (3, 3)
    assert mos([rating("x", "1", "a", 4)])[0]["low"] is None


def test_bradley_terry_of_two_in_closed_form() -> None:
    """With half a win and half a loss against a common opponent of strength 1, the likelihood equations of two systems
    with w of n wins are solved by symmetry: strengths s and 1/s with w = n s²/(1 + s²) + s/(1 + s) - 1/2."""
    wins = np.array([[0, 9.0], [3.0, 0]])
    a, b = bradley_terry(wins)
    assert a == pytest.approx(-b)
    s = np.exp(a)
    assert 12 * s**2 / (1 + s**2) + s / (1 + s) - 0.5 == pytest.approx(9.0, abs=1e-6)
    assert bradley_terry(np.array([[0, 4.0], [4.0, 0]])) == pytest.approx([0, 0])


def test_bradley_terry_recovers_strengths() -> None:
    truth = np.array([1.0, 0.2, -0.4, -0.8])
    chance = 1 / (1 + np.exp(truth[None, :] - truth[:, None]))
    wins = 2000 * chance * (1 - np.eye(4))
    assert bradley_terry(wins) == pytest.approx(truth - truth.mean(), abs=0.01)


def test_one_that_always_wins_stays_finite() -> None:
    found = strengths([rating(r, i, "a", -1, "b") for r in "xy" for i in "12"])
    assert [row["system"] for row in found] == ["a", "b"]
    assert np.isfinite(found[0]["strength"])
    assert (found[0]["wins"], found[0]["n"]) == (4, 4)


def test_ties_are_half_and_order_does_not_matter() -> None:
    straight = strengths([rating("x", "1", "a", -1, "b"), rating("x", "2", "a", 0, "b")])
    swapped = strengths([rating("x", "1", "b", 1, "a"), rating("x", "2", "b", 0, "a")])
    assert [row["strength"] for row in straight] == [row["strength"] for row in swapped]
    assert straight[0]["wins"] == 1.5


def test_careless_raters_are_left_out(tmp_path: Path) -> None:
    plan = study(tmp_path, trials=8, attention_every=2, headphones=True)
    with Ratings(tmp_path / "r.sqlite") as ratings:
        for rater, careful, headphones in (("good", True, True), ("rash", False, True), ("loud", True, False)):
            ratings.add_rater(rater)
            ratings.set_headphones(rater, headphones)
            for trial in plan.plan(rater):
                wanted = trial.wanted if careful else 6 - (trial.wanted or 3)
                value = 4.0 if trial.wanted is None else wanted
                if careful or trial.wanted is None or abs(wanted - trial.wanted) > 1:
                    ratings.rate(plan, rater, trial, value or 1.0, 1.0)
        rash = [each for each in ratings.all() if each.rater == "rash" and each.wanted is not None]
        found = analyse(plan, ratings)
    assert found["raters"] == (1 if rash else 2)
    assert found["left_out"] == (2 if rash else 1)
    assert {row["value"] for row in found["systems"]} == {4.0}


def test_nobody_left_is_said(tmp_path: Path) -> None:
    plan = study(tmp_path)
    with Ratings(tmp_path / "r.sqlite") as ratings, pytest.raises(InputError, match="0 raters"):
        analyse(plan, ratings)


def test_cmos_is_signed_by_the_order(tmp_path: Path) -> None:
    plan = study(tmp_path, "cmos", headphones=False, attention_every=0, trials=6)
    with Ratings(tmp_path / "r.sqlite") as ratings:
        for rater in ("x", "y"):
            ratings.add_rater(rater)
            for trial in plan.plan(rater):
                ratings.rate(plan, rater, trial, 2 if trial.systems[1] == "b" else -2, 1.0)  # b is better by 2
        found = analyse(plan, ratings)
    assert {row["system"]: row["cmos"] for row in found["systems"]} == {"a": -2.0, "b": 2.0}
    assert found["systems"][0]["system"] == "b"


# ---------------------------------------------------------------- the page


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[object]:
    uvicorn = pytest.importorskip("uvicorn")
    from stepaudio.eval.human.server import create_app

    stops = []

    def start(plan: Study) -> str:
        import socket

        ratings = Ratings(tmp_path / "ratings.sqlite")
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(plan, ratings), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.01)

        def stop() -> None:
            server.should_exit = True
            thread.join(20)
            ratings.close()
            listener.close()

        stops.append(stop)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for stop in stops:
        stop()


def test_requests_that_cannot_be_are_refused(serve: object, tmp_path: Path) -> None:
    url = serve(study(tmp_path))  # type: ignore[operator]
    for path, status in (("/api/next?rater=nobody", 400), ("/audio/unknown", 404), ("/page/server.py", 404)):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(url + path, timeout=30)
        assert error.value.code == status


@pytest.fixture
def browser() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as player:
        opened = player.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield opened
        opened.close()


def listen(page: object) -> None:
    """Hear what is there to its end."""
    page.evaluate(  # type: ignore[attr-defined]
        """() => Promise.all([...document.querySelectorAll("#players audio")].map((audio) => new Promise((done) => {
             audio.addEventListener("ended", done); audio.play(); })))"""
    )


def answer_tones(page: object, right: bool) -> None:
    """Tell which tone is the softest, as someone with headphones hears it, or wrongly."""
    for number in range(6):
        softest = page.evaluate(  # type: ignore[attr-defined]
            """async (number) => {
              const rater = localStorage.getItem("stepaudio-rater");
              const data = await (await fetch(`/api/tones/${number}?rater=${rater}`)).arrayBuffer();
              const sound = await new AudioContext().decodeAudioData(data);
              const part = sound.length / 3, left = sound.getChannelData(0);
              const levels = [0, 1, 2].map((k) => {
                let sum = 0;
                for (let i = Math.floor(k * part); i < (k + 1) * part; i++) sum += left[i] ** 2;
                return sum;
              });
              return levels.indexOf(Math.min(...levels));
            }""",
            number,
        )
        page.get_by_role("button", name="Play the tones").click()  # type: ignore[attr-defined]
        page.wait_for_selector("#tone-answers:not(:disabled)", timeout=60_000)  # type: ignore[attr-defined]
        chosen = softest if right else (softest + 1) % 3
        page.locator(f"#tone-answers button[value='{chosen}']").click()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["mos", "pairwise"])
def test_a_rater_goes_through_a_study(kind: str, serve: object, browser: object, tmp_path: Path) -> None:
    plan = study(tmp_path, kind, items=3, trials=3, attention_every=2, headphones=kind == "mos")
    url = serve(plan)  # type: ignore[operator]
    context = browser.new_context()  # type: ignore[attr-defined]
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.get_by_role("button", name="Begin").click()
    if kind == "mos":
        page.wait_for_selector("#headphones:not([hidden])", timeout=60_000)
        answer_tones(page, right=False)
        page.wait_for_selector("#problem:not([hidden])", timeout=60_000)
        answer_tones(page, right=True)
    for number in range(4):
        page.wait_for_selector(f"#next[data-trial='{number}']", state="attached", timeout=60_000)
        page.wait_for_selector("#trial:not([hidden])", timeout=60_000)
        assert page.locator("#next").is_disabled()  # nothing was heard
        if number == 1:  # closed in between, and opened again
            page.reload()
            page.get_by_role("button", name="Begin").click()
            page.wait_for_selector("#trial:not([hidden])", timeout=60_000)
        wanted = page.locator("#attention")
        value = SCALES[plan.kind][1]
        if wanted.is_visible():
            rater = page.evaluate("localStorage.getItem('stepaudio-rater')")
            value = plan.plan(rater)[number].wanted or 0.0
        page.locator(f"#choices input[value='{value:g}']").check()
        assert page.locator("#next").is_disabled()  # it has to be heard to the end
        listen(page)
        page.wait_for_selector("#next:not(:disabled)", timeout=60_000)
        page.locator("#next").click()
    page.wait_for_selector("#end:not([hidden])", timeout=60_000)
    assert errors == []
    assert not any("/a/" in address or "system" in address for address in asked)
    with sqlite3.connect(tmp_path / "ratings.sqlite") as base:
        assert base.execute("SELECT count(*), count(wanted) FROM ratings").fetchone() == (4, 1)
    with Ratings(tmp_path / "ratings.sqlite") as ratings:
        found = analyse(plan, ratings)
    assert (found["raters"], found["left_out"], found["ratings"]) == (1, 0, 3)

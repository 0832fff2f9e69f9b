"""What a run looks like: the page, the comparison, the leaderboard, and what others published."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval_fixtures import RATE, Scripted, Telepath, heard, sound
from stepaudio.cli import app
from stepaudio.errors import BackendError, InputError
from stepaudio.eval import results, tasks
from stepaudio.eval.items import Audio, Item, Reply, Request
from stepaudio.eval.metrics import intervals
from stepaudio.eval.report import published, summary
from stepaudio.eval.report.compare import compare
from stepaudio.eval.report.html import worst, write_report
from stepaudio.eval.report.leaderboard import leaderboard
from stepaudio.eval.report.plots import _ticks
from stepaudio.eval.results import Metric, Row, Run
from stepaudio.eval.runner import run_task
from stepaudio.eval.store import Store
from stepaudio.eval.suite import Plan, read_items, run_suite
from stepaudio.eval.tasks import TASKS, open_task

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
SENTENCES = ["one two three four", "five six seven", "<script>alert(1)</script> eight"] * 5
SETUP = {"date": "2026-01-01", "version": "0", "machine": "x", "cpus": 2, "seed": 0, "fingerprint": "f"}


def a_run(folder: Path, name: str, wrong: int) -> Run:
    """A run of recognition and of synthesis, with the first words of `wrong` items wrong and the last item missing."""
    store = Store(folder / "cache")

    def transcribe(request: Request) -> list[Reply]:
        number = int(request.id)
        text = SENTENCES[number]
        return [] if number == 14 else [Reply(f"x {text.split(' ', 1)[1]}" if number < wrong else text, seconds=0.1)]

    items = [heard(text, number) for number, text in enumerate(SENTENCES)]
    speech = [Item(Request(f"{n}", "say", "en", text), {}, f"group {n % 2}") for n, text in enumerate(SENTENCES)]
    speaker = Scripted(lambda request: [Reply("", Audio(sound(0.4, 100.0 + int(request.id)), RATE))], name)
    tasks = {
        "asr": run_task(open_task("asr"), items, Scripted(transcribe, name), store, Telepath(store)),
        "tts": run_task(open_task("tts"), speech, speaker, store, Telepath(store)),
    }
    run = Run(name, name, tasks, SETUP)
    results.save(run, folder / name)
    write_report(run, folder / name, store)
    return run


class References(HTMLParser):
    """Everything that a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "data", "poster", "action")]


def test_the_page_holds_everything(tmp_path: Path) -> None:
    a_run(tmp_path, "mine", 4)
    page = (tmp_path / "mine" / "report.html").read_text(encoding="utf-8")
    parser = References()
    parser.feed(page)
    assert all(reference.startswith(("#", "data:")) for reference in parser.found)
    assert "script" not in parser.tags  # what a system said is text
    assert "&lt;script&gt;" in page
    assert parser.tags.count("svg") >= 6
    assert parser.tags.count("audio") == 10  # the worst ten
    assert "the output is empty" in page
    assert page.count(published.MARK) == len(published.beside("asr") + published.beside("tts"))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_players_play(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    a_run(tmp_path, "mine", 4)
    with sync_api.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "mine" / "report.html").as_uri())
        seconds = page.evaluate(
            """() => new Promise((done) => { const audio = document.querySelector("audio");
                 audio.addEventListener("loadedmetadata", () => done(audio.duration)); audio.preload = "auto";
                 audio.load(); })"""
        )
        assert seconds == pytest.approx(0.4, abs=0.1)
        assert page.locator("svg").first.bounding_box()["width"] > 300
        assert errors == []
        browser.close()


def test_the_worst_come_first_and_failures_before_their_equals() -> None:
    metric = Metric("WER", "ratio", "lower", "")
    rows = [
        Row("fine", "", "en", "", {"WER": [0, 4]}),
        Row("bad", "", "en", "", {"WER": [4, 4]}),
        Row("gone", "", "en", "", {"WER": [4, 4]}, "gone"),
        Row("worse", "", "en", "", {"WER": [8, 4]}),
        Row("other", "", "en", "", {}),
    ]
    assert [row.id for row, _ in worst(rows, [metric])] == ["worse", "gone", "bad", "fine"]
    higher = Metric("WER", "mean", "higher", "")
    assert worst(rows, [higher])[0][0].id == "fine"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.013), (-3.2, 7), (1, 5), (0, 346)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


# ---------------------------------------------------------------- two runs


def test_two_runs_are_compared_item_by_item(tmp_path: Path) -> None:
    first, second = a_run(tmp_path, "good", 2), a_run(tmp_path, "bad", 9)
    found = {(each.task, each.metric): each for each in compare(first, second)}
    wer = found["asr", "WER"]
    rows = [{row.id: row.scores["WER"] for row in run.tasks["asr"].rows} for run in (first, second)]
    expected = intervals.paired(
        [rows[0][n][0] for n in rows[0]],
        [rows[1][n][0] for n in rows[0]],
        ([rows[0][n][1] for n in rows[0]], [rows[1][n][1] for n in rows[0]]),
        list(rows[0]),
    )
    assert (wer.difference, wer.low, wer.high, wer.p) == (expected.value, expected.low, expected.high, expected.p)
    assert wer.verdict == "worse"
    assert wer.difference == pytest.approx(wer.second - wer.first)
    same = {each.metric: each for each in compare(first, first) if each.task == "asr"}
    assert same["WER"].verdict == "no difference shown"
    assert same["WER"].p == 1


def test_runs_that_were_scored_differently_are_not_compared(tmp_path: Path) -> None:
    first, second = a_run(tmp_path, "a", 1), a_run(tmp_path, "b", 1)
    second.tasks["asr"].protocol = "kimi_compat"
    with pytest.raises(InputError, match="differently"):
        compare(first, second)
    with pytest.raises(InputError, match="no task with common items"):
        compare(Run("a", "a", {}, {}), second)


def test_the_leaderboard_has_a_row_a_system(tmp_path: Path) -> None:
    text = leaderboard([a_run(tmp_path, "good", 0), a_run(tmp_path, "bad", 9)])
    rows = [line for line in text.splitlines() if line.startswith(("| good", "| bad"))]
    assert len(rows) == 4  # two tasks
    assert "| 15 | 1 |" in rows[0]  # items, failed
    widths = {
        line.count("|")
        for line in text.split("## Speech synthesis")[0].splitlines()
        if line.startswith(("| good", "| bad", "| System"))
    }
    assert len(widths) == 1
    assert published.MARK in text


# ---------------------------------------------------------------- what others published


def test_published_tables_are_whole() -> None:
    for table in published.tables():
        assert table.source
        assert all(len(values) == len(table.columns) for values in table.rows.values()), table.title
    papers = {table.source for table in published.tables()}
    assert {f"Step-Audio, arXiv 2502.11946, Table {n}" for n in range(1, 8)} <= papers


def test_published_averages_are_those_of_their_rows() -> None:
    """The paper prints averages: where all six sets are given, its figures have to add up (to within 0.02)."""
    table = next(table for table in published.tables() if table.source.endswith("Table 1"))
    for name, (*values, average) in table.rows.items():
        if average is not None and None not in values:
            assert sum(v or 0 for v in values) / len(values) == pytest.approx(average, abs=0.02), name


# ---------------------------------------------------------------- the whole of it


def outputs(folder: Path, sets: Path, lose: int = 0) -> Path:
    """Another system's transcripts of our own recognition set, some of them lost."""
    rows = [json.loads(line) for line in (sets / "asr" / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    folder.mkdir()
    lines = [json.dumps({"id": f"asr/{row['id']}", "text": row["reference"]["text"]}) for row in rows[lose:]]
    (folder / "outputs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


SETS = Path(__file__).parent.parent / "evals"


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["eval", *arguments], catch_exceptions=False)


def test_a_peer_is_judged_by_the_same_command(tmp_path: Path) -> None:
    peer = outputs(tmp_path / "peer", SETS)
    out = tmp_path / "reports"
    done = command("asr", "-s", str(peer), "--sets", str(SETS), "--out", str(out), "--judge", "none", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert all(figure["value"] == 0 for figure in told["figures"] if figure["metric"] in ("WER", "CER"))
    assert Path(told["report"]).is_file()
    lossy = outputs(tmp_path / "lossy", SETS, lose=10)
    command("asr", "-s", str(lossy), "--sets", str(SETS), "--out", str(out), "--judge", "none", "--json")
    compared = json.loads(command("compare", str(out / "peer"), str(out / "lossy"), "--json").stdout)
    assert next(each for each in compared if each["metric"] == "WER")["verdict"] == "worse"
    board = tmp_path / "board.md"
    assert command("leaderboard", str(out / "peer"), str(out / "lossy"), "-o", str(board)).exit_code == 0
    assert "| lossy |" in board.read_text(encoding="utf-8")


def test_a_system_that_fails_on_everything_is_reported_and_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "outputs.jsonl").write_text('{"id": "asr/of another set", "text": "hello"}', encoding="utf-8")
    arguments = ["--sets", str(SETS), "--out", str(tmp_path / "r"), "--judge", "none", "--json"]
    with pytest.raises(BackendError, match="asr: broken failed on every item; the first: "):
        command("asr", "-s", str(broken), *arguments)
    figures = results.load(tmp_path / "r" / "broken").tasks["asr"].figures
    assert all(figure.value == 1 for figure in figures if figure.metric in ("WER", "CER"))


def test_tasks_of_one_system_add_up_in_its_run(tmp_path: Path) -> None:
    peer = outputs(tmp_path / "peer", SETS)
    for task in ("asr", "listening"):
        plan = Plan((task,), str(peer), sets=SETS, out=tmp_path / "r")
        run, _ = run_suite(plan, lambda description, steps: lambda: None)
    assert set(run.tasks) == {"asr", "listening"}
    assert all(row.error for row in run.tasks["listening"].rows)  # nothing was given for it
    (peer / "more.txt").write_text("the system changed", encoding="utf-8")
    run, _ = run_suite(plan, lambda description, steps: lambda: None)
    assert set(run.tasks) == {"listening"}


def test_instruments_that_are_missing_are_said(tmp_path: Path) -> None:
    class Bare(Telepath):
        def can(self, what: str) -> str | None:
            return f"{what} is not installed"

    store = Store(tmp_path)
    item = Item(Request("x", "say", "en", "hello"), {}, "set")
    silent = Scripted(lambda request: [Reply("", Audio(sound(), RATE))])
    result = run_task(open_task("tts"), [item], silent, store, Bare(store))
    assert result.notes == ["Not measured: mos is not installed."]
    assert not any(figure.metric == "DNSMOS" for figure in result.figures)


def test_what_a_system_cannot_do_is_said(tmp_path: Path) -> None:
    plan = Plan(("qa",), "codec:g711", sets=SETS, out=tmp_path)
    with pytest.raises(InputError, match="it has to converse, and it can resynthesise"):
        run_suite(plan, lambda description, steps: lambda: None)
    with pytest.raises(InputError, match="run that task alone"):
        run_suite(Plan(("asr", "qa"), "small", protocol="kimi_compat"), lambda description, steps: lambda: None)


def test_sets_are_of_the_tasks_kind_and_limited_by_language(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not one to say"):
        read_items(open_task("tts"), Plan(("tts",), "small", on=(f"librispeech:{tmp_path}",)))
    with pytest.raises(InputError, match="--sets"):
        read_items(open_task("tts"), Plan(("tts",), "small", sets=tmp_path / "none"))
    items = read_items(open_task("codec"), Plan(("codec",), "small", sets=SETS))
    assert {item.request.kind for item in items} == {"resynthesise"}


def test_the_help_names_every_task() -> None:
    shown = re.sub(r"\s+", " ", command("--help").stdout)
    assert all(f" {name} " in shown for name in ("asr", "tts", "dialogues", "all", "compare", "human", "leaderboard"))


def test_the_summary_has_a_column_for_each_system(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, "mine", 4), a_run(tmp_path, "theirs", 0)]
    lines = summary.summary(runs).splitlines()
    assert lines[0] == "| task | figure | mine | theirs | items |"
    row = next(line for line in lines if line.startswith("| asr | WER"))
    mine, theirs = (
        next(f for f in run.tasks["asr"].figures if f.metric == "WER" and f.subset == "all") for run in runs
    )
    assert f"| {100 * mine.value:.1f} % (" in row
    assert f"| {100 * theirs.value:.1f} % (" in row
    assert row.endswith("| 15 |")
    assert any(line.startswith("- tts, WER: asr: ") for line in lines)  # who heard it stands beside it


def test_a_system_without_a_task_has_a_dash_there(tmp_path: Path) -> None:
    both, only = a_run(tmp_path, "both", 1), a_run(tmp_path, "only", 1)
    del only.tasks["tts"]
    rows = [line for line in summary.summary([only, both]).splitlines() if line.startswith("| tts |")]
    assert rows
    assert all(row.split(" | ")[2] == "–" for row in rows)


def test_every_main_figure_is_one_that_its_task_can_have() -> None:
    assert set(summary.MAIN) == set(TASKS)
    source = "".join(path.read_text(encoding="utf-8") for path in Path(tasks.__file__).parent.glob("*.py"))
    assert all(f'"{name}"' in source for names in summary.MAIN.values() for name in names if name not in _MADE_UP)


_MADE_UP = {"WER", "CER", "contains (text)", "contains (speech)"}
"""Names that tasks put together."""


def test_the_summary_goes_between_the_markers_with_its_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    a_run(tmp_path, "mine", 4)
    page, drawing = tmp_path / "README.md", tmp_path / "images" / "eval.png"
    drawing.parent.mkdir()
    page.write_text(f"before\n{summary.BEGIN}\nold\n{summary.END}\nafter\n")
    arguments = ["eval", "summary", str(tmp_path / "mine" / "run.json"), "--into", str(page), "--picture", str(drawing)]
    for _ in range(2):  # again changes nothing
        assert CliRunner().invoke(app, arguments).exit_code == 0
    text = page.read_text()
    assert text.startswith(f"before\n{summary.BEGIN}\n\n| task |")
    assert text.endswith(f"(images/eval.png)\n\n{summary.END}\nafter\n")
    assert "old" not in text
    assert drawing.read_bytes().startswith(b"\x89PNG")


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("nothing here")
    with pytest.raises(InputError, match="begin"):
        summary.write_into(page, "table")
    assert page.read_text() == "nothing here"

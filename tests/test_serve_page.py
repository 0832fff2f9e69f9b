"""The page, in a real browser with a recorded question as its microphone: the test hears the answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepaudio
from serve_fixtures.live import Live, live
from stepaudio.audio.encode import write
from stepaudio.audio.io import read
from stepaudio.audio.resample import resample

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
EXAMPLES = Path(__file__).parent.parent / "examples"

# Everything the page plays, as it is given to the loudspeaker, kept for the test to hear.
LISTEN = """
window.heard = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (...when) {
  window.heard.push(Array.from(this.buffer.getChannelData(0)));
  return start.apply(this, when);
};
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with stepaudio.load("tiny") as bundle, live(bundle) as running:
        yield running


@pytest.fixture
def open_page(server: Live, tmp_path: Path) -> Iterator[Any]:
    """`open_page(samples, rate)`: the page in a browser whose microphone hears the samples once."""
    with sync_api.sync_playwright() as player:
        browsers = []

        def open_it(samples: np.ndarray | None, rate: int = 16_000, *, allow: bool = True) -> Any:
            arguments = [
                "--no-sandbox",
                "--autoplay-policy=no-user-gesture-required",
                "--disable-background-networking",
            ]
            if samples is not None:
                # A second of silence first: the microphone runs before the page listens to it.
                quiet = np.zeros(rate, np.float32)
                write(tmp_path / "mic.wav", np.concatenate([quiet, samples, np.tile(quiet, 60)]), rate)
                arguments += ["--use-fake-device-for-media-stream"]
                arguments += [f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}%noloop"]
            browser = player.chromium.launch(executable_path=CHROMIUM, args=arguments)
            browsers.append(browser)
            context = browser.new_context(permissions=["microphone"] if allow else [])
            page = context.new_page()
            page.add_init_script(LISTEN)
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.errors = errors
            page.goto(server.url)
            return page

        yield open_it
        for browser in browsers:
            browser.close()


def heard(page: Any) -> str:
    """What the page has said, as a listener writes it down."""
    samples = np.concatenate([np.asarray(block, np.float32) for block in page.evaluate("window.heard")])
    return stepaudio.load("tiny").transcribe(resample(samples, 24_000, 16_000)).text


def test_a_spoken_question_is_answered_aloud(open_page: Any) -> None:
    page = open_page(read(EXAMPLES / "question-en.flac"))
    page.get_by_role("button", name="Start talking").click()
    page.wait_for_selector(".turn.user .said:not(.pending)", timeout=30_000)
    assert "sky" in page.locator(".turn.user .said").first.inner_text().lower()
    page.wait_for_selector(".turn.agent .said:not(:empty)", timeout=30_000)
    page.wait_for_selector(".bar", timeout=30_000, state="attached")
    page.wait_for_selector("#state[data-state=silence]", timeout=60_000)
    written = page.locator(".turn.agent .said").first.inner_text()
    said = heard(page).lower()
    words = {word.strip(".,!?").lower() for word in written.split()}
    assert len(words & {word.strip(".,!?") for word in said.split()}) >= 0.6 * len(words), (written, said)
    assert page.errors == []


def test_writing_works_without_a_microphone(open_page: Any) -> None:
    page = open_page(None, allow=False)
    page.get_by_placeholder("Write instead of speaking").fill("Say hello.")
    page.get_by_placeholder("Write instead of speaking").press("Enter")
    page.wait_for_selector(".turn.agent .said:not(:empty)", timeout=30_000)
    assert page.errors == []


def test_a_blocked_microphone_is_explained(open_page: Any) -> None:
    page = open_page(None, allow=False)
    page.keyboard.press("Space")
    page.wait_for_selector("#problem:not([hidden])", timeout=20_000)
    assert "microphone" in page.locator("#problem").inner_text().lower()
    assert page.get_by_role("button", name="Start talking").is_enabled()


def test_a_lost_server_is_explained(open_page: Any) -> None:
    page = open_page(None, allow=False)
    page.route("**/*", lambda route: route.abort())
    page.evaluate(
        "() => { window.WebSocket = class { constructor() { setTimeout(() => this.onclose({}), 10); } close() {} }; }"
    )
    page.keyboard.press("Space")
    page.wait_for_selector("#problem:not([hidden])", timeout=20_000)
    assert "cannot be reached" in page.locator("#problem").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_and_contrast(open_page: Any, scheme: str) -> None:
    """Every control has a name, and text stands out by the 4.5 to 1 that WCAG asks for."""
    page = open_page(None, allow=False)
    page.emulate_media(color_scheme=scheme)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas")].filter((element) =>
            element.offsetParent && !element.textContent.trim() && !element.ariaLabel && !element.labels?.length)
            .map((element) => element.outerHTML)"""
    )
    assert unnamed == []
    ratios = page.evaluate(
        """() => {
          const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const light = (colour) => {
            paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
              .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const card = light(getComputedStyle(document.querySelector("section")).backgroundColor);
          return ["--ink", "--faint", "--bad", "--transcribe", "--accent"].map((name) => {
            const probe = document.createElement("i");
            probe.style.color = `var(${name})`;
            document.body.append(probe);
            const [a, b] = [card, light(getComputedStyle(probe).color)].sort((x, y) => y - x);
            return [name, (a + 0.05) / (b + 0.05)];
          });
        }"""
    )
    assert all(ratio >= 4.5 for _, ratio in ratios), ratios

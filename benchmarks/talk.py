"""Latency of a spoken answer: end of speech to first audio, per language, with each step.

    python benchmarks/talk.py FOLDER [--bundle small]

FOLDER holds recordings and a manifest.jsonl (path, lang, seconds); its clips under questions/ are asked. The whole
recording is at hand when the clock starts, so the clock starts at the end of speech. Models are loaded and one
sentence per language is asked before anything is timed. Every question is asked once: the second time a language
model knows the prompt already, and that would flatter the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

import stepaudio
from stepaudio.audio.io import read
from stepaudio.speech.answer import Heard, Said, Wrote

STEPS = ("transcribe", "first_token", "first_clause", "first_audio")


def ask(bundle: stepaudio.Bundle, samples: np.ndarray) -> tuple[dict[str, float], str, str]:
    """One turn, left as soon as it has spoken for the first time; seconds per step, transcript, first clause."""
    started = time.perf_counter()
    heard, seconds = "", {}
    written = []  # (length of the answer so far, seconds)
    with contextlib.closing(bundle.answer(samples)) as events:
        for event in events:
            now = time.perf_counter() - started
            match event:
                case Heard(transcript):
                    heard, seconds["transcribe"] = transcript.text, now
                case Wrote(text):
                    seconds.setdefault("first_token", now)
                    written.append(((written[-1][0] if written else 0) + len(text), now))
                case Said(speech):
                    seconds["first_clause"] = next(at for length, at in written if length >= len(speech.text))
                    seconds["first_audio"] = now
                    return seconds, heard, speech.text
    raise SystemExit(f"no answer to {heard!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default="small")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in (arguments.folder / "manifest.jsonl").read_text().splitlines()]
    questions = [row for row in rows if row["path"].startswith("questions/")]

    started = time.perf_counter()
    bundle = stepaudio.load(arguments.bundle)
    bundle.warm()
    print(f"loaded {bundle.name} in {time.perf_counter() - started:.1f} s")
    clips = {row["path"]: read(arguments.folder / row["path"], rate=bundle.transcriber.rate) for row in questions}
    for row in {row["lang"]: row for row in rows if not row["path"].startswith("questions/")}.values():
        ask(bundle, read(arguments.folder / row["path"], rate=bundle.transcriber.rate))

    taken: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in questions:
        seconds, heard, said = ask(bundle, clips[row["path"]])
        taken[row["lang"]].append(seconds)
        steps = "  ".join(f"{step} {seconds[step]:.2f}" for step in STEPS)
        print(f"{row['lang']}  {steps}  {heard!r} -> {said!r}")

    print("\nseconds from the end of speech, p50 (p95)")
    for language, results in taken.items():
        cells = []
        for step in STEPS:
            values = [result[step] for result in results]
            cells.append(f"{step} {np.percentile(values, 50):.2f} ({np.percentile(values, 95):.2f})")
        print(f"{language} n={len(results)}  " + "  ".join(cells))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()

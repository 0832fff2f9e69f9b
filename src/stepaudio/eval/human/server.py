"""The page of a listening test and the few requests that it makes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from stepaudio.audio.encode import encode
from stepaudio.audio.io import read
from stepaudio.audio.pcm import Samples
from stepaudio.errors import InputError, StepAudioError
from stepaudio.eval.human.ratings import Ratings
from stepaudio.eval.human.study import SCALES, Study, Trial

_PAGE = Path(__file__).parent / "page"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
_RATE = 44_100
_LEVEL = 0.08
"""RMS that every recording is brought to: louder must not sound better."""
TONES, TONES_TO_PASS = 6, 5


class Rate(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")

    rater: str
    trial: int
    value: float
    seconds: float = Field(0.0, ge=0)


class Headphones(BaseModel):
    """Which of three tones was the softest, each time."""

    model_config = ConfigDict(extra="forbid")

    rater: str
    answers: list[int]


def create_app(study: Study, ratings: Ratings) -> FastAPI:
    """The application. The page never learns which system it plays."""
    app = FastAPI(title=study.title, docs_url=None, redoc_url=None, openapi_url=None)
    recordings = {study.token(s, item): path for s, files in study.audio.items() for item, path in files.items()}

    @app.exception_handler(StepAudioError)
    async def refused(request: Request, error: StepAudioError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(_PAGE / "index.html", headers=_HEADERS)

    @app.get("/page/{name}")
    def page_file(name: str) -> FileResponse:
        if name not in ("rate.js", "rate.css"):
            raise HTTPException(404)
        return FileResponse(_PAGE / name, headers=_HEADERS)

    @app.post("/api/raters")
    def new_rater() -> dict[str, str]:
        rater = uuid.uuid4().hex
        ratings.add_rater(rater)
        return {"rater": rater}

    @app.get("/api/next")
    def next_trial(rater: str) -> dict[str, Any]:
        _check(ratings, rater)
        plan = study.plan(rater)
        done = ratings.answered(rater)
        facts: dict[str, Any] = {
            "title": study.title,
            "question": study.question,
            "kind": study.kind,
            "scale": SCALES[study.kind],
        }
        facts |= {"total": len(plan), "done": len(done)}
        if study.headphones and ratings.headphones(rater) is not True:
            return facts | {"headphones": TONES}
        trial = next((each for each in plan if each.number not in done), None)
        return facts if trial is None else facts | {"trial": _shown(study, trial)}

    @app.post("/api/ratings")
    def rate(body: Rate) -> dict[str, bool]:
        _check(ratings, body.rater)
        plan = study.plan(body.rater)
        if not 0 <= body.trial < len(plan):
            raise InputError(f"there is no trial {body.trial}", param="trial")
        ratings.rate(study, body.rater, plan[body.trial], body.value, body.seconds)
        return {"kept": True}

    @app.get("/api/tones/{number}")
    def tone(number: int, rater: str) -> Response:
        return Response(_tones(_softest(rater, number)), media_type="audio/wav", headers={"Cache-Control": "no-store"})

    @app.post("/api/headphones")
    def headphones(body: Headphones) -> dict[str, bool]:
        _check(ratings, body.rater)
        right = sum(answer == _softest(body.rater, number) for number, answer in enumerate(body.answers[:TONES]))
        passed = right >= TONES_TO_PASS
        ratings.set_headphones(body.rater, passed)
        return {"passed": passed}

    @app.get("/audio/{token}")
    def audio(token: str) -> Response:
        if token not in recordings:
            raise HTTPException(404)
        samples = levelled(read(recordings[token], rate=24_000))
        return Response(encode(samples, 24_000, "wav"), media_type="audio/wav")

    return app


def serve(study: Study, database: Path, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve a study until interrupted."""
    import socket

    with Ratings(database) as ratings, socket.create_server((host, port)) as listener:
        announce(f"http://{host}:{listener.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(create_app(study, ratings), log_level="warning"))
        server.run(sockets=[listener])


def levelled(samples: Samples) -> Samples:
    """At the common level, without clipping."""
    rms = float(np.sqrt(np.mean(samples**2))) if len(samples) else 0.0
    peak = float(np.abs(samples).max(initial=0.0))
    gain = min(_LEVEL / rms, 0.99 / peak) if rms and peak else 1.0
    found: Samples = samples * np.float32(gain)
    return found


def _check(ratings: Ratings, rater: str) -> None:
    if not ratings.knows(rater):
        raise InputError("this rater is not known; open the page again", param="rater")


def _shown(study: Study, trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "audio": [f"/audio/{study.token(system, trial.item)}" for system in trial.systems],
        "attention": trial.wanted,
    }


def _softest(rater: str, number: int) -> int:
    """Which of the three tones it is, for this rater and time."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{rater}:{number}").int % 3


def _tones(softest: int) -> bytes:
    """Three tones of 200 Hz in stereo (Woods et al. 2017): one 6 dB softer, another as loud as the third but with its
    channels in opposite phase. Over loudspeakers these cancel each other, and it sounds softer than the soft one."""
    time = np.arange(_RATE) / _RATE
    ramp = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.1)
    tone = 0.25 * ramp * np.sin(2 * np.pi * 200 * time)
    opposed = (softest + 1) % 3
    parts = []
    for number in range(3):
        left = tone / 2 if number == softest else tone
        right = -left if number == opposed else left
        parts += [np.stack([left, right], axis=1), np.zeros((_RATE // 2, 2))]
    return _stereo_wav(np.concatenate(parts))


def _stereo_wav(samples: np.ndarray[Any, np.dtype[np.float64]]) -> bytes:
    import io

    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, _RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()

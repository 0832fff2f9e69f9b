"""GET /v1/models and /v1/voices, and how the names that OpenAI clients send are understood."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from stepaudio.errors import NotFoundError
from stepaudio.serve.errors import ERROR_RESPONSES
from stepaudio.serve.state import State
from stepaudio.speech.roles import Speaker

router = APIRouter(tags=["models"], responses=ERROR_RESPONSES)

OPENAI_MODELS = ("whisper-", "tts-", "gpt-")
"""A model name that begins like one of OpenAI's means the loaded bundle, so that unchanged clients work."""

OPENAI_VOICES = frozenset(
    "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split()  # noqa: SIM905
)
"""OpenAI's voice names mean the default voice for the language of the text."""

STARTED = int(time.time())


def check_model(name: str | None, bundle_name: str) -> str:
    """The name to answer with. Raises NotFoundError unless the name means the loaded bundle."""
    if name is None or name == bundle_name:
        return bundle_name
    if name.startswith(OPENAI_MODELS):
        return name
    raise NotFoundError(
        f"There is no model `{name}` here; use `{bundle_name}` (see GET /v1/models). "
        f"Names that begin with {', '.join(OPENAI_MODELS)} mean it too.",
        param="model",
    )


def resolve_voice(name: str | None, speaker: Speaker) -> str | None:
    """None (the default voice) for OpenAI's names that the speaker does not have itself, other names as they are."""
    own = {voice.name for voice in speaker.voices}
    return None if name in OPENAI_VOICES - own else name


class Model(BaseModel):
    """A model, as OpenAI describes one."""

    id: str
    object: Literal["model"] = "model"
    created: int = STARTED
    owned_by: str = "stepaudio"


class ModelList(BaseModel):
    """The one loaded bundle."""

    object: Literal["list"] = "list"
    data: list[Model]


class VoiceInfo(BaseModel):
    """A voice, the languages it reads well and those for which it is the default."""

    id: str
    object: Literal["voice"] = "voice"
    name: str
    languages: list[str]
    default_for: list[str]
    description: str
    licence: str


class VoiceList(BaseModel):
    """The voices of the loaded bundle."""

    object: Literal["list"] = "list"
    data: list[VoiceInfo]


@router.get("/v1/models")
async def list_models(server: State) -> ModelList:
    """The loaded bundle."""
    return ModelList(data=[Model(id=server.bundle.name)])


@router.get("/v1/models/{model:path}")
async def get_model(model: str, server: State) -> Model:
    """The loaded bundle, under its own name or an OpenAI name that means it."""
    return Model(id=check_model(model, server.bundle.name))


@router.get("/v1/voices")
async def list_voices(server: State) -> VoiceList:
    """The voices that /v1/audio/speech and spoken chat replies may use."""
    server.check_ready()
    speaker = server.bundle.speaker
    defaults = {language: speaker.default_voice(language) for voice in speaker.voices for language in voice.languages}
    return VoiceList(
        data=[
            VoiceInfo(
                id=voice.name,
                name=voice.name,
                languages=list(voice.languages),
                default_for=[language for language, default in defaults.items() if default == voice],
                description=voice.description,
                licence=voice.licence,
            )
            for voice in speaker.voices
        ]
    )

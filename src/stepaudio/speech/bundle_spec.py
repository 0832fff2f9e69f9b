"""What a bundle file says: a TOML file that names, per role, a backend, its weights and its options.

```toml
extends = "small"            # optional: roles not given here are taken from there
summary = "What it is"
languages = ["en", "zh"]

[responder]                  # a role: vad, transcriber, responder, speaker, speaker_encoder, turn_scorer
backend = "openai"           # a name from BACKENDS
base_url = "http://127.0.0.1:8000/v1"   # every other key is an option of the backend
model = "Qwen/Qwen3-8B"

[speaker]
backend = "onnx_voice"
weights = { kokoro = "kokoro-82m/model.onnx" }      # ARTEFACT or ARTEFACT/FILE of the weights catalogue
optional_weights = { voices = "kokoro-voices" }     # passed as None when it is not on this machine

[weights.my-model]           # optional: artefacts of this bundle's own, as in weights.toml
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepaudio.errors import InputError, NotFoundError
from stepaudio.speech.weights import Artefact, catalogue, home, parse, resolve

ROLES = ("vad", "transcriber", "responder", "speaker", "speaker_encoder", "turn_scorer")
DEFAULT = "small"


@dataclass(frozen=True, slots=True)
class Backend:
    """A class that fills a role, by the module it lies in, and the modules that must be importable for it."""

    target: str
    needs: Mapping[str, str] = field(default_factory=dict)
    """Module -> what to install for it."""


_LOCAL = "pip install 'stepaudio[local]'"
_TORCH = "pip install torch==2.13.0"
_TRAIN = "pip install 'stepaudio[train]'"
_STEP_AUDIO = dict.fromkeys(("torch", "safetensors", "sentencepiece", "onnx", "yaml"), _TRAIN) | {"onnxruntime": _LOCAL}
BACKENDS: Mapping[str, Backend] = {
    "silero": Backend("stepaudio.audio.vad:SileroVad", {"onnxruntime": _LOCAL}),
    "whisper": Backend(
        "stepaudio.speech.backends.whisper:WhisperTranscriber", {"ctranslate2": _LOCAL, "tokenizers": _LOCAL}
    ),
    "llamacpp": Backend("stepaudio.speech.backends.llamacpp:LlamaCppResponder", {"xllamacpp": _LOCAL}),
    "openai": Backend("stepaudio.speech.backends.openai:OpenAIResponder"),
    "onnx_voice": Backend(
        "stepaudio.speech.backends.onnx_voice:OnnxVoice",
        {"onnxruntime": _LOCAL, "hibari": _LOCAL, "misaki": _LOCAL},
    ),
    "resemblyzer": Backend("stepaudio.speech.backends.resemblyzer:ResemblyzerEncoder", {"torch": _TORCH}),
    "step_audio_tts": Backend("stepaudio.speech.step_audio.speaker:StepAudioTts", _STEP_AUDIO),
    "step_audio_editx": Backend("stepaudio.speech.step_audio.speaker:StepAudioEditor", _STEP_AUDIO),
    "step_audio_transcriber": Backend("stepaudio.speech.step_audio.listener:StepAudioTranscriber", _STEP_AUDIO),
    "step_audio_responder": Backend("stepaudio.speech.step_audio.listener:StepAudioResponder", _STEP_AUDIO),
    "nano_voice": Backend(
        "stepaudio.speech.nano_voice.speaker:NanoSpeaker",
        {"torch": _TORCH, "safetensors": _TRAIN, "hibari": _LOCAL},
    ),
    "nano_voice_transcriber": Backend(
        "stepaudio.speech.nano_voice.listener:NanoTranscriber", {"torch": _TORCH, "safetensors": _TRAIN}
    ),
    "campplus": Backend("stepaudio.decoder.speaker:load_speaker", {"onnxruntime": _LOCAL, "torch": _TORCH}),
    "smart_turn": Backend("stepaudio.speech.backends.smart_turn:SmartTurnScorer", {"onnxruntime": _LOCAL}),
}

if TYPE_CHECKING:  # backends are loaded by name: here the type checker sees that each fills its role
    from stepaudio.decoder.speaker import SpeakerEmbedding
    from stepaudio.speech import roles
    from stepaudio.speech.backends.llamacpp import LlamaCppResponder
    from stepaudio.speech.backends.onnx_voice import OnnxVoice
    from stepaudio.speech.backends.openai import OpenAIResponder
    from stepaudio.speech.backends.resemblyzer import ResemblyzerEncoder
    from stepaudio.speech.backends.smart_turn import SmartTurnScorer
    from stepaudio.speech.backends.whisper import WhisperTranscriber
    from stepaudio.speech.nano_voice.listener import NanoTranscriber
    from stepaudio.speech.nano_voice.speaker import NanoSpeaker
    from stepaudio.speech.step_audio.listener import StepAudioResponder, StepAudioTranscriber
    from stepaudio.speech.step_audio.speaker import StepAudioEditor, StepAudioTts

    _TRANSCRIBERS: tuple[type[roles.Transcriber], ...] = (WhisperTranscriber, StepAudioTranscriber, NanoTranscriber)
    _RESPONDERS: tuple[type[roles.Responder], ...] = (LlamaCppResponder, OpenAIResponder)
    _HEARING: type[roles.HearingResponder] = StepAudioResponder
    _SPEAKERS: tuple[type[roles.Speaker], ...] = (OnnxVoice, NanoSpeaker)
    _STYLED: type[roles.StyledSpeaker] = StepAudioTts
    _CLONERS: tuple[type[roles.Cloner], ...] = (StepAudioTts, StepAudioEditor)
    _EDITOR: type[roles.Editor] = StepAudioEditor
    _ENCODERS: tuple[type[roles.SpeakerEncoder], ...] = (ResemblyzerEncoder, SpeakerEmbedding)
    _SCORER: type[roles.TurnScorer] = SmartTurnScorer


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """How one role of a bundle is filled."""

    backend: str
    weights: Mapping[str, str] = field(default_factory=dict)
    optional_weights: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """A bundle as its file describes it; nothing is loaded."""

    name: str
    summary: str
    languages: tuple[str, ...]
    roles: Mapping[str, RoleSpec]
    artefacts: Mapping[str, Artefact]
    """Every artefact it can name: the catalogue's and its own."""

    def weights(self, *, optional: bool = True) -> list[Artefact]:
        """The artefacts its roles use, each once."""
        references = [r for role in self.roles.values() for r in role.weights.values()]
        if optional:
            references += [r for role in self.roles.values() for r in role.optional_weights.values()]
        return list({(found := resolve(r, self.artefacts)[0]).name: found for r in references}.values())


# ---------------------------------------------------------------- finding and reading


def bundle_files() -> dict[str, Path]:
    """Name -> file of every bundle known here: the embedded ones, then the user's (which win)."""
    embedded = Path(str(resources.files("stepaudio.speech") / "bundles"))
    folders = [embedded, home() / "bundles"]
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.toml"))}


def read_spec(name_or_path: str | Path = DEFAULT) -> BundleSpec:
    """Read a bundle by name or by the path of its TOML file. Raises NotFoundError or InputError."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        known = bundle_files()
        if str(name_or_path) not in known:
            near = get_close_matches(str(name_or_path), known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise NotFoundError(
                f"no bundle is called '{name_or_path}': {hint}there are {', '.join(known)}, "
                "and any bundle's TOML file by its path",
                param="bundle",
            )
        path = known[str(name_or_path)]
    return _read(path, seen=())


def _read(path: Path, seen: tuple[Path, ...]) -> BundleSpec:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFoundError(f"cannot read the bundle {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    for key, (shape, fits) in _SHAPES.items():
        if key in table and not fits(table[key]):
            raise InputError(f"{path}: {key} must be {shape}")
    base = _base(table.pop("extends", None), path, seen)
    roles = dict(base.roles)
    for role in ROLES:
        if role in table:
            roles[role] = _role(f"{path}: [{role}]", table.pop(role))
    artefacts = dict(base.artefacts) | {n: parse(n, t) for n, t in table.pop("weights", {}).items()}
    spec = BundleSpec(
        name=path.stem,
        summary=table.pop("summary", base.summary),
        languages=tuple(table.pop("languages", base.languages)),
        roles=roles,
        artefacts=artefacts,
    )
    if table:
        raise InputError(f"{path}: unknown key '{next(iter(table))}'; roles are {', '.join(ROLES)}")
    spec.weights()  # every reference resolves
    return spec


def _maps(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(each, kind) for each in value.values())


_SHAPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "extends": ("text", lambda value: isinstance(value, str)),
    "summary": ("text", lambda value: isinstance(value, str)),
    "languages": (
        'a list like ["en", "zh"]',
        lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    ),
    "weights": ("a table for each artefact, [weights.NAME]", lambda value: _maps(value, dict)),
}
"""What else than roles a bundle's file may hold, in words and as a test."""


def _base(extends: str | None, path: Path, seen: tuple[Path, ...]) -> BundleSpec:
    if extends is None:
        return BundleSpec("", "", (), {}, catalogue())
    if path in seen:
        raise InputError(f"{path} extends itself")
    parent = path.parent / extends if extends.endswith(".toml") else bundle_files().get(extends)
    if parent is None:
        raise NotFoundError(f"{path} extends '{extends}', which is no bundle; known: {', '.join(bundle_files())}")
    return _read(parent, (*seen, path))


def _role(where: str, table: Any) -> RoleSpec:
    if not isinstance(table, dict) or not isinstance(table.get("backend"), str):
        raise InputError(f"{where} needs a backend, one of: {', '.join(BACKENDS)}")
    options = dict(table)
    backend = options.pop("backend")
    if backend not in BACKENDS:
        raise InputError(f"{where}: unknown backend '{backend}'; known: {', '.join(BACKENDS)}")
    for key in ("weights", "optional_weights"):
        if not _maps(options.get(key, {}), str):
            raise InputError(f'{where}: {key} must be a table like {{ model = "ARTEFACT/FILE" }}')
    return RoleSpec(backend, options.pop("weights", {}), options.pop("optional_weights", {}), options)

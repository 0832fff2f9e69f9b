"""Prompts of every task, as token ids.

A prompt is `<s>`, then turns of `<|BOT|>` role newline content `<|EOT|>`, then an open assistant turn. The
shapes are those of the released models; the sentences are `Wording`, ours by default. A bundle of a released
checkpoint brings the sentences that it was trained on in a `prompts.toml`: `format = 1` and any of the fields
of `Wording`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from stepaudio.errors import InputError, MissingError
from stepaudio.lm import toolcalls
from stepaudio.lm.text import TextTokenizer

FORMAT = 1

EMOTIONS = (
    *(
        "happy",
        "angry",
        "sad",
        "humour",
        "confusion",
        "disgusted",
        "empathy",
        "embarrass",
        "fear",
        "surprised",
    ),
    *("excited", "depressed", "coldness", "admiration", "remove"),
)
STYLES = (
    *("serious", "arrogant", "child", "older", "girl", "pure", "sister", "sweet", "exaggerated", "ethereal"),
    *(
        "whisper",
        "gentle",
        "recite",
        "generous",
        "act_coy",
        "warm",
        "shy",
        "comfort",
        "authority",
        "chat",
        "radio",
    ),
    *(
        "soulful",
        "story",
        "vivid",
        "program",
        "news",
        "advertising",
        "roar",
        "murmur",
        "shout",
        "deeply",
        "loudly",
    ),
    "remove",
)
SPEEDS = ("faster", "slower", "more faster", "more slower")
RAP, HUM = "RAP", "哼唱"

Edit = Literal["emotion", "style", "speed", "paralinguistic", "denoise", "trim"]
_OPTIONS: dict[str, tuple[str, ...]] = {"emotion": EMOTIONS, "style": STYLES, "speed": SPEEDS}

_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
_TAG = re.compile(r"\s*(?:（([^（）]*)）|\(([^()]*)\))")


@dataclass(frozen=True, slots=True)
class Wording:
    """The sentences of the prompts. `{name}` marks where a value goes; which ones is said beside each
    field."""

    chat: str = "You are a helpful voice assistant. Answer briefly, in the language of the user."
    transcribe: str = "Write down what is said in the audio, word for word."
    speak: str = (
        "You are a gifted voice actor. Read the user's text aloud. A label in brackets at its beginning says "
        "how: an emotion, a language or dialect, a way of singing, or a speed. Without a label, choose what "
        "suits the text."
    )
    speak_named: str = (  # {speaker}
        "You are a gifted voice actor. Read the user's text aloud in the voice of [{speaker}]. A label in "
        "brackets at its beginning says how: an emotion, a language or dialect, a way of singing, or a "
        "speed. Without a label, choose what suits the text."
    )
    rap: str = "Rap the user's text in the voice of the conversation so far."
    hum: str = "Sing the user's text in the voice of the conversation so far, humming."
    clone: str = (  # {name}, {text}, {audio}
        "Speak with the timbre, prosody and speaking style of this speaker.\n\n"
        "[speaker_start]\nspeaker name: {name}\nspeaker prompt text: \n{text}\n"
        "speaker audio tokens: \n{audio}\n[speaker_end]"
    )
    edit: str = (
        "You edit speech. The user gives an instruction and a recording; answer with the edited recording "
        "and change nothing else. You can change emotion, speaking style, non-verbal sounds, speed, noise "
        "and silence."
    )
    edit_emotion: str = "Make the following audio more {option}. It says: {text}\n\n"  # {option}, {text}
    edit_emotion_remove: str = "Remove any emotion from the following audio. It says: {text}\n\n"  # {text}
    edit_style: str = "Make the following audio more {option} in style. It says: {text}\n\n"  # {option}, {text}
    edit_style_remove: str = "Remove any speaking style from the following audio. It says: {text}\n\n"  # {text}
    edit_speed: str = "Make the following audio {option}. It says: {text}\n\n"  # {option}, {text}
    edit_paralinguistic: str = (  # {target}, {text}
        "Add non-verbal sounds to the following audio so that it says: {target}\nIt says: {text}\n\n"
    )
    edit_denoise: str = "Remove the noise from the following audio and keep the voice.\n\n"
    edit_trim: str = "Remove the silence from the following audio and keep the voice.\n\n"

    @classmethod
    def read(cls, path: Path) -> Wording:
        """Read a `prompts.toml`. Raises MissingError, and InputError for an unknown format, field or
        value."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise MissingError(f"{path} does not exist") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid TOML: {error}") from error
        if values.pop("format", None) != FORMAT:
            raise InputError(f"{path} must say format = {FORMAT}")
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(f"{path}: unknown field {', '.join(sorted(unknown))}")
        wrong = sorted(name for name, value in values.items() if not isinstance(value, str))
        if wrong:
            raise InputError(f"{path}: {', '.join(wrong)} must be text")
        return cls(**values)


Part = str | Sequence[int]
"""Text, or the ids of audio tokens."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a prompt. Text and audio may be mixed. `spaced` content begins with SentencePiece's dummy space."""

    role: str
    content: Sequence[Part]
    spaced: bool = False


def leading_tag(text: str) -> str | None:
    """The style label of a text: what stands in full- or half-width brackets at its very beginning."""
    match = _TAG.match(text)
    return (match[1] or match[2] or "").strip() or None if match else None


class Prompts:
    """Builds the prompts of one language model. Texts are plain: nothing in them becomes a special token."""

    def __init__(self, tokenizer: TextTokenizer, wording: Wording | None = None) -> None:
        self.tokenizer = tokenizer
        self.wording = wording or Wording()

    def build(self, turns: Iterable[Turn]) -> list[int]:
        """Any turns, closed, then an open assistant turn."""
        vocabulary = self.tokenizer.vocabulary
        ids = [vocabulary.bos]
        for turn in turns:
            ids += [*self._open(turn.role), *self._content(turn.content, turn.spaced), vocabulary.eot]
        return ids + self._open("assistant")

    def chat(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """A conversation of text and audio turns; ours is the system turn when there is none.

        Roles: system, human (or user), assistant, and `toolcalls.RESULT_ROLE` for results of tools.
        """
        turns = [Turn("human", turn.content) if turn.role == "user" else turn for turn in turns]
        if not any(turn.role == "system" for turn in turns):
            turns.insert(0, Turn("system", [self.wording.chat]))
        if tools:
            after = max(i for i, turn in enumerate(turns) if turn.role == "system") + 1
            turns.insert(after, Turn(toolcalls.DECLARE_ROLE, [toolcalls.declare(tools)]))
        return self.build(turns)

    def transcribe(self, audio: Sequence[int]) -> list[int]:
        """Audio ids whose transcript is wanted."""
        return self.build([Turn("system", [self.wording.transcribe]), Turn("human", [audio])])

    def speak(
        self, text: str, *, prompt_text: str, prompt_audio: Sequence[int], speaker: str | None = None
    ) -> list[int]:
        """Text to be spoken like a reference clip, whose text and audio ids are the first exchange.

        `speaker` names a voice the model was trained on; None clones the clip.
        """
        tag = leading_tag(text)
        if tag == RAP:
            system = self.wording.rap
        elif tag == HUM:
            system = self.wording.hum
        elif speaker:
            system = "".join(map(str, fill(self.wording.speak_named, speaker=speaker)))
        else:
            system = self.wording.speak
        return self.build(
            [
                Turn("system", [system]),
                Turn("human", [prompt_text]),
                Turn("assistant", [prompt_audio]),
                Turn("human", [text]),
            ]
        )

    def clone(self, text: str, *, name: str, prompt_text: str, prompt_audio: Sequence[int]) -> list[int]:
        """Text to be spoken like a reference clip, the editing model's way."""
        system = fill(self.wording.clone, name=name, text=prompt_text, audio=prompt_audio)
        return self.build([Turn("system", system), Turn("human", [text])])

    def edit(
        self, kind: Edit, audio: Sequence[int], *, text: str = "", option: str = "", target: str = ""
    ) -> list[int]:
        """Audio ids to be edited. `text` is what they say; `option` the emotion, style or speed; `target` the
        text with tags for paralinguistic edits. Raises InputError for an unknown option or a missing
        target."""
        allowed = _OPTIONS.get(kind)
        if allowed is not None and option not in allowed:
            raise InputError(f"{kind} {option!r} is unknown; there are {', '.join(allowed)}", param="option")
        if kind == "paralinguistic" and not target:
            raise InputError("a paralinguistic edit needs the text with its tags", param="target")
        suffix = "_remove" if option == "remove" else ""
        template: str = getattr(self.wording, f"edit_{kind}{suffix}")
        instruction = fill(template, option=option, text=text, target=target)
        return self.build(
            [Turn("system", [self.wording.edit]), Turn("human", [*instruction, audio, "\n"], spaced=True)]
        )

    def _open(self, role: str) -> list[int]:
        return [self.tokenizer.vocabulary.bot, *self.tokenizer.encode(f"{role}\n")]

    def _content(self, content: Sequence[Part], spaced: bool) -> list[int]:
        ids: list[int] = []
        for part in _join_texts(content):
            if isinstance(part, str):
                begins = spaced and not ids
                ids += self.tokenizer.encode(part) if begins else self.tokenizer.encode_continuation(part)
            else:
                if any(id not in self.tokenizer.vocabulary.audio for id in part):
                    raise InputError("audio ids must lie in the audio block of the vocabulary")
                ids += part
        return ids


def fill(template: str, **values: Part) -> list[Part]:
    """The template with its placeholders replaced, as parts; a value is never searched for placeholders
    itself.

    Raises InputError for a placeholder that has no value.
    """
    parts: list[Part] = []
    for i, piece in enumerate(_PLACEHOLDER.split(template)):
        if i % 2 == 0:
            parts.append(piece)
        elif piece in values:
            parts.append(values[piece])
        else:
            raise InputError(f"the prompt has a placeholder {{{piece}}} that nothing fills")
    return parts


def _join_texts(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring texts as one, so that they are tokenised as one."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined

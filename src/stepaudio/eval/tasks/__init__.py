"""The tasks, one a file. `open_task` loads one by name."""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from stepaudio.errors import NotFoundError

if TYPE_CHECKING:
    from stepaudio.eval.tasks.base import Task

TASKS = MappingProxyType(
    {
        "asr": ("asr:Asr", "Speech recognition: word and character error rates."),
        "tts": ("tts:Tts", "Speech synthesis: error rates, DNSMOS, similarity, speed, F0."),
        "codec": ("codec:Codec", "Resynthesis: STOI, PESQ, error rates, similarity."),
        "qa": ("qa:Qa", "Spoken questions with known answers."),
        "listening": ("listening:Listening", "Listening comprehension with four options, as in HSK-6."),
        "instructions": ("instructions:Instructions", "Complex instructions, as in ComplexBench."),
        "dialogues": ("dialogues:Dialogues", "Dialogues in the nine dimensions of StepEval-Audio-360."),
        "following": ("following:Following", "Instructions about how to speak."),
        "tools": ("tools:Tools", "Tool calling: triggers, tools, arguments."),
        "live": ("live:Live", "Live conversation: latency, cut-ins, barge-in."),
    }
)
"""Name -> class and what it judges."""


def open_task(name: str, protocol: str = "strict") -> Task:
    """The task of that name. Raises NotFoundError, and InputError for a protocol it does not have."""
    if name not in TASKS:
        raise NotFoundError(f"no task is called {name!r}; known: {', '.join(TASKS)}", param="task")
    module, _, title = TASKS[name][0].partition(":")
    kind = getattr(importlib.import_module(f"stepaudio.eval.tasks.{module}"), title)
    return cast("Task", kind(protocol))

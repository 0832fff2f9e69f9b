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
        "asr": "Speech recognition: word and character error rates.",
        "tts": "Speech synthesis: error rates, DNSMOS, similarity, speed, F0.",
        "codec": "Resynthesis: STOI, PESQ, error rates, similarity.",
        "qa": "Spoken questions with known answers.",
        "listening": "Listening comprehension with four options, as in HSK-6.",
        "instructions": "Complex instructions, as in ComplexBench.",
        "dialogues": "Dialogues in the nine dimensions of StepEval-Audio-360.",
        "following": "Instructions about how to speak.",
        "tools": "Tool calling: triggers, tools, arguments.",
        "live": "Live conversation: latency, cut-ins, barge-in.",
    }
)
"""Name -> what it judges. All but `live`, which has no items and is run by `run_live`, are classes in a module of their
name."""


def open_task(name: str, protocol: str = "strict") -> Task:
    """The task of that name, but not `live`. Raises NotFoundError, and InputError for a protocol it does not have."""
    if name not in TASKS or name == "live":
        raise NotFoundError(f"no task is called {name!r}; known: {', '.join(TASKS)}", param="task")
    module = importlib.import_module(f"stepaudio.eval.tasks.{name}")
    return cast("Task", getattr(module, name.title())(protocol))

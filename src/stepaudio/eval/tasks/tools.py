"""Tool calling: whether a spoken request makes the right call, and only then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio.eval.instruments import Instruments
from stepaudio.eval.items import Call, Item, Output
from stepaudio.eval.results import Metric
from stepaudio.eval.tasks.base import Scored, Task


class Tools(Task):
    """Trigger precision and recall, the right tool, the right arguments. A missing reply triggers nothing: it misses
    the call that was wanted, and where none was wanted it is no success either."""

    name = "tools"
    title = "Tool calling"
    kind = "converse"
    own = "tools"

    def metrics(self, items: Sequence[Item], instruments: Instruments) -> list[Metric]:
        return [
            Metric("trigger precision", "ratio", "higher", "of the replies with a call, those that should have", True),
            Metric("trigger recall", "ratio", "higher", "of the requests for a call, those that got one", True),
            Metric("tool accuracy", "share", "higher", "of the requests for a call, those with the right tool", True),
            Metric("argument accuracy", "share", "higher", "of these, with every argument right", True),
            Metric("success", "share", "higher", "all requests done right: the call that was wanted, or none", True),
        ]

    def score(self, item: Item, output: Output, instruments: Instruments) -> Scored:
        wanted, calls = item.reference.get("call"), output.reply.calls
        right_tool = wanted is not None and any(call.name == wanted["name"] for call in calls)
        right = wanted is not None and len(calls) == 1 and matches(calls[0], wanted)
        answered = output.error is None and bool(output.replies)
        shown = {
            "request": item.request.turns[-1].text,
            "wanted": "no call" if wanted is None else _show(wanted["name"], wanted.get("arguments", {})),
            "called": "; ".join(_show(call.name, call.arguments) for call in calls) or "no call",
            "reply": output.reply.text,
        }
        scored = Scored(shown=shown)
        if calls:
            scored.scores["trigger precision"] = (float(wanted is not None), 1)
        if wanted is not None:
            scored.scores["trigger recall"] = (float(bool(calls)), 1)
            scored.scores["tool accuracy"] = (float(right_tool), 1)
            scored.scores["argument accuracy"] = (float(right), 1)
        scored.scores["success"] = (float(right if wanted is not None else answered and not calls), 1)
        return scored


def matches(call: Call, wanted: Mapping[str, Any]) -> bool:
    """Whether a call is the wanted one. An argument's reference is the value, or a list of values that are as good;
    a text counts when it contains the wanted one, whatever the case; arguments without a reference are free."""
    if call.name != wanted["name"]:
        return False
    for name, accepted in wanted.get("arguments", {}).items():
        options = accepted if isinstance(accepted, list) else [accepted]
        if name not in call.arguments or not any(_same(call.arguments[name], option) for option in options):
            return False
    return True


def _same(given: Any, wanted: Any) -> bool:
    if isinstance(wanted, str):
        return wanted.casefold() in str(given).casefold()
    return bool(given == wanted)


def _show(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({json.dumps(dict(arguments), ensure_ascii=False)})"

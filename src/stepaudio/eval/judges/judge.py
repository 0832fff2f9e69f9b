"""A judge: any model that calls functions, asked with a pinned prompt, several times, at no temperature or with seeds.

The judge is made to call one function whose schema is the verdict, so nothing has to be read out of prose. A judge that
gives no valid verdict is asked once more; then the item counts as an error, never as a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from stepaudio.errors import BackendError, InputError
from stepaudio.eval.judges.calibration import Agreement, calibrate
from stepaudio.eval.judges.prompt import Prompt, Verdict, read_prompt
from stepaudio.eval.store import Store
from stepaudio.eval.store import key as digest
from stepaudio.eval.systems.bundle import fingerprint
from stepaudio.eval.systems.rest import split_model
from stepaudio.speech.bundle import load
from stepaudio.speech.roles import Responder, Sampling, ToolCall

_MAX_TOKENS = 200


class Judge:
    """`seeds` verdicts an item: the first at temperature 0, further ones drawn at 0.7 with their seed."""

    def __init__(
        self,
        label: str,
        identity: str,
        open_responder: Callable[[], Responder],
        *,
        store: Store,
        seeds: int = 1,
        calibration: Path | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.label, self._identity, self._open = label, identity, open_responder
        self._store, self._seeds, self._calibration = store, seeds, calibration
        self._agreements: dict[str, tuple[Agreement, ...]] = {}
        self.close = close

    def ask(self, prompt: Prompt, **values: str) -> list[Verdict]:
        """A verdict for each seed. Raises BackendError when the judge gives none."""
        return [self._once(prompt, values, seed) for seed in range(self._seeds)]

    def mean(self, verdicts: Sequence[Verdict], field: str) -> float:
        """Over the seeds."""
        return sum(float(verdict[field]) for verdict in verdicts) / len(verdicts)

    def compare(self, request: str, first: str, second: str) -> float:
        """Which reply is better: 1 the first, 0 the second, 0.5 a tie. Every seed asks in both orders, and a
        preference that does not survive the swap is a tie."""
        prompt = read_prompt("pair")
        outcomes = []
        for seed in range(self._seeds):
            straight = self._once(prompt, {"request": request, "first": first, "second": second}, seed)["better"]
            swapped = self._once(prompt, {"request": request, "first": second, "second": first}, seed)["better"]
            agreed = {("first", "second"): 1.0, ("second", "first"): 0.0}
            outcomes.append(agreed.get((straight, swapped), 0.5))
        return sum(outcomes) / len(outcomes)

    def agreement(self, name: str) -> tuple[Agreement, ...]:
        """How far the judge agrees with the calibration set of a prompt; nothing where there is none."""
        if name not in self._agreements:
            found = () if self._calibration is None else calibrate(self, read_prompt(name), self._calibration)
            self._agreements[name] = found
        return self._agreements[name]

    def protocol(self, name: str, field: str) -> dict[str, str]:
        """What a judged figure has to say of itself."""
        prompt = read_prompt(name)
        agreed = next((each for each in self.agreement(name) if each.field == field), None)
        return {
            "judge": self.label,
            "prompt": prompt.label,
            "seeds": str(self._seeds),
            "agreement": "not calibrated" if agreed is None else agreed.label,
        }

    @cached_property
    def _responder(self) -> Responder:
        return self._open()

    def _once(self, prompt: Prompt, values: dict[str, str], seed: int) -> Verdict:
        name = digest("verdict", self._identity, prompt.digest, values, seed)
        return cast(Verdict, self._store.value(name, lambda: self._verdict(prompt, values, seed)))

    def _verdict(self, prompt: Prompt, values: dict[str, str], seed: int) -> Verdict:
        failure = ""
        for attempt in range(2):
            drawn = Sampling(max_tokens=_MAX_TOKENS)
            if seed or attempt:
                drawn = Sampling(max_tokens=_MAX_TOKENS, temperature=0.7, seed=2 * seed + attempt)
            try:
                events = list(
                    self._responder.respond(
                        prompt.messages(values), tools=[prompt.tool()], tool_choice="verdict", sampling=drawn
                    )
                )
            except BackendError as error:
                failure = str(error)
                continue
            for event in events:
                if isinstance(event, ToolCall):
                    return dict(event.arguments)
            failure = "it called no function"
        raise BackendError(f"the judge {self.label} gave no verdict: {failure}")


def open_judge(
    written: str, *, store: Store, key: str | None = None, seeds: int = 1, calibration: Path | None = None
) -> Judge:
    """The judge of that line: a bundle, whose language model judges, or `http://HOST/v1#MODEL`."""
    if seeds < 1:
        raise InputError("a judge needs at least one seed", param="judge_seeds")
    if urlsplit(written).scheme in ("http", "https"):
        from stepaudio.speech.backends.openai import OpenAIResponder

        url, model = split_model(written)
        responder = OpenAIResponder(url, model, timeout=120.0)
        if key:
            responder.api_key = key
        return Judge(
            f"{model} at {urlsplit(url).netloc}",
            digest(url, model),
            lambda: responder,
            store=store,
            seeds=seeds,
            calibration=calibration,
            close=responder.close,
        )
    bundle = load(written)
    model = next(iter(bundle.spec.roles["responder"].weights.values()), bundle.spec.roles["responder"].backend)
    return Judge(
        f"{model} (bundle {bundle.name})",
        fingerprint(bundle.spec),
        lambda: bundle.responder,
        store=store,
        seeds=seeds,
        calibration=calibration,
        close=bundle.close,
    )

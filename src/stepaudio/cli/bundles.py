"""`stepaudio bundles`, `pull` and `doctor`: what can run here, and what is missing for it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from stepaudio.cli.output import JsonOption, console, print_json, progress
from stepaudio.errors import StepAudioError
from stepaudio.speech.bundle_spec import BACKENDS, DEFAULT, BundleSpec, bundle_files, read_spec
from stepaudio.speech.weights import Artefact, Store, catalogue


def bundles(json: JsonOption = False) -> None:
    """List the bundles: roles, languages, size, licences, and whether the weights are here."""
    store = Store()
    specs = [read_spec(name) for name in bundle_files()]
    if json:
        print_json([_describe(spec, store) for spec in specs])
        return
    from rich.console import Console

    out = Console(highlight=False)
    for spec in specs:
        facts = _describe(spec, store)
        absent = ", ".join(facts["missing"])
        out.print(f"[bold]{spec.name}[/]  {spec.summary}")
        out.print(f"    languages  {' '.join(spec.languages)}")
        out.print(f"    weights    {facts['bytes'] / 1e9:.2f} GB, " + (f"missing: {absent}" if absent else "all here"))
        out.print("    licences   " + ", ".join(dict.fromkeys(facts["licences"])))
        for role, how in spec.roles.items():
            out.print(f"    {role:<16}{how.backend}", style="dim")


def _describe(spec: BundleSpec, store: Store) -> dict[str, Any]:
    artefacts = spec.weights()
    return {
        "name": spec.name,
        "summary": spec.summary,
        "languages": list(spec.languages),
        "roles": {role: how.backend for role, how in spec.roles.items()},
        "bytes": sum(artefact.size for artefact in artefacts),
        "licences": [artefact.licence for artefact in artefacts],
        "missing": [artefact.name for artefact in artefacts if store.missing(artefact)],
    }


def pull(
    names: Annotated[
        list[str] | None, typer.Argument(help="Bundles or weights by name; the default bundle if none.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Fetch and verify the weights of bundles. What is here already is not fetched again."""
    store = Store()
    pulled, left_out = [], []
    with progress(quiet=json) as bars:
        tasks = {}

        def report(name: str, done: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(f"{name} ({size / 1e6:.0f} MB)", total=size)
            bars.update(tasks[name], completed=done)

        for artefact, required in _wanted(names or [DEFAULT]).values():
            try:
                store.pull(artefact, report)
                pulled.append(artefact.name)
            except StepAudioError as error:
                if required:
                    raise
                left_out.append({"name": artefact.name, "reason": str(error)})
    if json:
        print_json({"home": str(store.root), "verified": pulled, "left_out": left_out})
        return
    for entry in left_out:
        console().print(f"[yellow]left out[/] {entry['name']}: {entry['reason']}")
    console().print(f"verified {', '.join(pulled)} in {store.root}")


def _wanted(names: list[str]) -> dict[str, tuple[Artefact, bool]]:
    """Artefact name -> (artefact, whether the bundle cannot do without it)."""
    wanted: dict[str, tuple[Artefact, bool]] = {}
    for name in names:
        if name in catalogue():
            wanted[name] = (catalogue()[name], True)
            continue
        spec = read_spec(name)
        required = {artefact.name for artefact in spec.weights(optional=False)}
        for artefact in spec.weights():
            needed = artefact.name in required or wanted.get(artefact.name, (artefact, False))[1]
            wanted[artefact.name] = (artefact, needed)
    return wanted


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the doctor looked at; `remedy` is the command that mends it, empty when all is well."""

    what: str
    remedy: str = ""
    blocking: bool = True


def doctor(
    bundle: Annotated[str, typer.Argument(help="The bundle to examine.")] = DEFAULT, json: JsonOption = False
) -> None:
    """Say what is missing on this machine for a bundle, and the command that mends it."""
    findings = diagnose(read_spec(bundle))
    if json:
        print_json([{"what": f.what, "ok": not f.remedy, "remedy": f.remedy} for f in findings])
    else:
        from rich.console import Console
        from rich.markup import escape

        out = Console(highlight=False)
        for finding in findings:
            if not finding.remedy:
                out.print(f"[green]ok[/]       {escape(finding.what)}", soft_wrap=True)
            else:
                word = "[red]missing[/]  " if finding.blocking else "[yellow]optional[/] "
                out.print(f"{word}{escape(finding.what)}\n         {escape(finding.remedy)}", soft_wrap=True)
    if any(finding.remedy and finding.blocking for finding in findings):
        raise typer.Exit(3)


def diagnose(spec: BundleSpec) -> list[Finding]:
    """Everything the bundle needs: Python packages and weights whose digests are right."""
    store = Store()
    findings = []
    for role, how in spec.roles.items():
        for module, remedy in BACKENDS[how.backend].needs.items():
            absent = importlib.util.find_spec(module) is None
            # The speaker encoder is loaded only when asked for.
            findings.append(Finding(f"{role}: package {module}", remedy if absent else "", role != "speaker_encoder"))
    required = {artefact.name for artefact in spec.weights(optional=False)}
    for artefact in spec.weights():
        what = f"weights {artefact.name} ({artefact.size / 1e6:.0f} MB, {artefact.licence})"
        try:
            store.verified(artefact)
            findings.append(Finding(what))
        except StepAudioError as error:
            remedy = f"stepaudio pull {artefact.name}"
            findings.append(Finding(f"{what}: {error}", remedy, artefact.name in required))
    for module, verb in (("fastapi", "serve"), ("sounddevice", "chat")):
        extra = {"fastapi": "serve", "sounddevice": "mic"}[module]
        absent = importlib.util.find_spec(module) is None
        findings.append(
            Finding(
                f"`stepaudio {verb}`: package {module}", f"pip install 'stepaudio[{extra}]'" if absent else "", False
            )
        )
    return findings

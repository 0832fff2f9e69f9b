"""A language model's whole training: the stages of a recipe, one run after the other, resumable anywhere.

    for line in train_lm(recipe("cpu_nano"), manifest, out): ...

Each stage has a folder, `out/1-NAME` and so on, with its checkpoints, its log and at the end `model`, with which the
next one begins. `out/model` is what the last one learned.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from stepaudio.data.manifest import read_manifest
from stepaudio.errors import InputError, MissingError
from stepaudio.files import read_text, replacing
from stepaudio.lm import checkpoint
from stepaudio.lm.text import TextTokenizer
from stepaudio.train.begin import fresh, grown
from stepaudio.train.corpus import Corpus, learn_text, nano_corpus, paper_corpus
from stepaudio.train.huggingface import HfScorer, HfText
from stepaudio.train.lm import LmTask, Scorer, Step1Scorer
from stepaudio.train.log import Line
from stepaudio.train.loop import Loop, LoopConfig
from stepaudio.train.recipes import LmRecipe, Stage
from stepaudio.train.world import World

MODEL = "model"
RUN = "run.json"
TEXT = "tokenizer.model"


def train_lm(
    recipe: LmRecipe,
    manifest: Path,
    out: Path,
    *,
    tokenizer: str = "nano-tokenizer",
    start: Path | None = None,
    text: Path | None = None,
    save_every: int = 200,
    seed: int = 0,
) -> Iterator[Line]:
    """Follow a recipe, giving the log's lines with the `stage` they belong to.

    The manifest must be tokenized (`stepaudio data tokenize`). `start` is a checkpoint to begin with instead of random
    weights: one of our own or a Hugging Face causal language model, whose vocabulary grows by the audio codes. `text`
    has a document of text per line. Raises InputError and MissingError for what cannot be trained on.
    """
    world = World.from_environment()
    _require_same_run(out, recipe, start, seed, world)
    corpus = _corpus(recipe, manifest, out, tokenizer, start, text, world)
    begin = start
    for number, stage in enumerate(recipe.stages, 1):
        folder = out / f"{number}-{stage.name}"
        if not (folder / MODEL).is_dir():
            scorer = _scorer(recipe, begin, corpus, tokenizer, seed)
            yield from _stage(recipe, stage, folder, scorer, corpus, world, save_every=save_every, seed=seed)
        begin = folder / MODEL
    if world.first and begin is not None and not (out / MODEL).is_dir():
        half = out / f"{MODEL}.half"
        shutil.copytree(begin, half, dirs_exist_ok=True)
        os.replace(half, out / MODEL)
    world.wait()


def _require_same_run(out: Path, recipe: LmRecipe, start: Path | None, seed: int, world: World) -> None:
    """Note in a folder which run it holds. Raises InputError when it is another one, also one that has ended."""
    begun = str(start.absolute()) if start else None
    what = json.dumps({"recipe": recipe.name, "model": asdict(recipe.model), "from": begun, "seed": seed}, indent=1)
    path = out / RUN
    if path.is_file():
        if read_text(path) != what:
            raise InputError(f"{path} is of another recipe, start or seed: choose another folder")
    elif world.first:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as half:
            half.write_text(what, encoding="utf-8")
    world.wait()


def _stage(
    recipe: LmRecipe,
    stage: Stage,
    folder: Path,
    scorer: Scorer,
    corpus: Corpus,
    world: World,
    *,
    save_every: int,
    seed: int,
) -> Iterator[Line]:
    task = LmTask(
        scorer,
        corpus.documents,
        stage.shares,
        stage.rates,
        tokens=recipe.row,
        seed=seed,
        streams=corpus.streams,
        held_out=corpus.held_out,
    )
    steps = recipe.steps(stage)
    config = LoopConfig(
        folder,
        steps,
        recipe.rows,
        stage.schedule,
        ema=recipe.ema,
        seed=seed,
        save_every=save_every,
        evaluate_every=max(1, steps // 10),
    )
    loop = Loop(task, config, world)
    for line in loop.run():
        yield {"stage": stage.name, **line}
    task.cursor.check()
    half = folder / f"{MODEL}.half"
    with loop.averaged():
        scorer.save(half, world)
    if world.first:
        corpus.keep(half)
        os.replace(half, folder / MODEL)
    world.wait()


def _corpus(
    recipe: LmRecipe,
    manifest: Path,
    out: Path,
    tokenizer: str,
    start: Path | None,
    text: Path | None,
    world: World,
) -> Corpus:
    if recipe.layout == "nano":
        return nano_corpus(manifest, tokenizer, start=start)
    lines = read_text(text).splitlines() if text else []
    if start is not None and not _is_step1(start):
        written = HfText(start)
        return paper_corpus(manifest, tokenizer, written, written.tokenizer.save_pretrained, lines=lines)
    path = (start or out) / TEXT
    if not path.is_file() and start is None and world.first:
        out.mkdir(parents=True, exist_ok=True)
        said = [utterance.text for utterance in read_manifest(manifest, split="train")]
        with replacing(path) as half:
            half.write_bytes(learn_text([*said, *lines], recipe.text))
    world.wait()
    return paper_corpus(manifest, tokenizer, TextTokenizer(path), partial(_copy_text, path), lines=lines)


def _copy_text(path: Path, folder: Path) -> None:
    shutil.copyfile(path, folder / TEXT)


def _scorer(recipe: LmRecipe, begin: Path | None, corpus: Corpus, tokenizer: str, seed: int) -> Scorer:
    """The model that a stage begins with."""
    if begin is None:
        model = fresh(recipe.model, corpus.vocabulary, corpus.streams, tokenizer, seed)
    elif _is_step1(begin):
        model = grown(checkpoint.load(begin, dtype=torch.float32), corpus.vocabulary, seed)
    else:
        return HfScorer.load(begin, corpus.vocabulary)
    return Step1Scorer(model, recompute=recipe.recompute)


def _is_step1(folder: Path) -> bool:
    path = folder / checkpoint.CONFIG
    if not path.is_file():
        raise MissingError(f"{path} does not exist: {folder} is no checkpoint to begin with")
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("model_type") == "step1")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a model's configuration: {error}") from error

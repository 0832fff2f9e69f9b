"""Which codebook does a small language model hear with: both, semantic codes alone, or linguistic codes alone?

    python benchmarks/codebooks.py MANIFEST --out runs/out/codebooks

Tokenizes the manifest once (kept in OUT), trains one Step-1 model per arrangement on its training split with the same
size, sentences, updates and seed (`stepaudio.train.ablation`), and prints word error rates with 95 % intervals on the
test split, the paired difference to both codebooks together, and perplexities. Training resumes by whole models: one
that is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from stepaudio.audio import io
from stepaudio.data.manifest import Utterance, read_manifest
from stepaudio.eval.codes import error_rate
from stepaudio.eval.metrics.errors import count_errors
from stepaudio.eval.metrics.intervals import Difference, paired
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.tokenizer.fbank import RATE
from stepaudio.tokenizer.streaming import DualCodes
from stepaudio.train.ablation import AblationConfig, Example, Layout, Streams, example, perplexities, train, transcribe
from stepaudio.train.pieces import Pieces

Pairs = list[tuple[list[str], list[str]]]
ARRANGEMENTS: tuple[Streams, ...] = ("dual", "semantic", "linguistic")
SIDE_BY_SIDE = 64


def tokenized(utterances: Sequence[Utterance], tokenizer: str, kept: Path) -> list[DualCodes]:
    """The codes of all utterances, from the file `kept` if it is there."""
    if not kept.is_file():
        with DualTokenizer.load(tokenizer) as loaded:
            codes = [loaded.encode(io.read(u.audio, rate=RATE)) for u in track(utterances, "tokenizing")]
        parts = {"linguistic": [c.linguistic for c in codes], "semantic": [c.semantic for c in codes]}
        arrays = {name: np.concatenate(streams).astype(np.int16) for name, streams in parts.items()}
        arrays |= {f"{name}_ends": np.cumsum([len(s) for s in streams]) for name, streams in parts.items()}
        np.savez_compressed(kept, **arrays)
    with np.load(kept, allow_pickle=False) as stored:
        streams = [np.split(stored[n].astype(np.int64), stored[f"{n}_ends"][:-1]) for n in ("linguistic", "semantic")]
    return [DualCodes(*pair) for pair in zip(*streams, strict=True)]


def difference(first: Pairs, second: Pairs) -> Difference:
    """How much more often the second is wrong on the same recordings."""
    errors = [[count_errors(*pair) for pair in pairs] for pairs in (first, second)]
    totals = [[one.total for one in each] for each in errors]
    lengths = [one.length for one in errors[0]]
    return paired(totals[0], totals[1], (lengths, lengths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", default="nano-tokenizer")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--pieces", type=int, default=300)
    parser.add_argument("--tests", type=int, default=300, help="test sentences")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=ARRANGEMENTS, help="train this one and stop")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    said = [u for u in read_manifest(options.manifest) if u.language == "en"]
    split = {name: [u for u in said if u.split == name] for name in ("train", "test")}
    pieces = Pieces.of((u.spoken for u in split["train"]), options.pieces)
    examples: dict[str, list[Example]] = {}
    for name, utterances in split.items():
        codes = tokenized(utterances, options.tokenizer, options.out / f"{name}.npz")
        made = (example(u, c, pieces) for u, c in zip(utterances, codes, strict=True))
        examples[name] = [one for one in made if one is not None]
    tests = examples["test"][: options.tests]

    config = AblationConfig(steps=options.steps)
    results: dict[str, object] = {"config": asdict(config), "train": len(examples["train"]), "test": len(tests)}
    pairs = {}
    for streams in (options.only,) if options.only else ARRANGEMENTS:
        layout = Layout(streams, len(pieces))
        done = options.out / f"{streams}-{options.steps}.json"
        if not done.is_file():
            with (options.out / f"{streams}.jsonl").open("w") as log:
                model = train(
                    layout,
                    examples["train"],
                    config,
                    lambda line, log=log: print(json.dumps(line), file=log, flush=True),
                )
            written = []
            for start in range(0, len(tests), SIDE_BY_SIDE):
                written += transcribe(model, layout, tests[start : start + SIDE_BY_SIDE], pieces)
            facts = {
                "perplexity": perplexities(model, layout, tests),
                "parameters": sum(p.numel() for p in model.parameters()),
                "transcripts": written,
            }
            done.write_text(json.dumps(facts))
        facts = json.loads(done.read_text())
        pairs[streams] = [
            (one.spoken.split(), text.split()) for one, text in zip(tests, facts["transcripts"], strict=True)
        ]
        results[streams] = {
            "parameters": facts["parameters"],
            "tokens_per_second": (layout.group - 1) * 25 / 3,
            "perplexity": facts["perplexity"],
            "word_error_rate": asdict(error_rate(pairs[streams])),
        }
    for streams in ("semantic", "linguistic"):
        if {streams, "dual"} <= set(pairs):
            results[f"{streams} minus dual"] = asdict(difference(pairs["dual"], pairs[streams]))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

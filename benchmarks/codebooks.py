"""Which codebook does a small language model hear with: both, semantic codes alone, or linguistic codes alone?

    python benchmarks/codebooks.py MANIFEST --out runs/out/codebooks

Tokenizes the manifest (its codes stay beside it), trains one Step-1 model per arrangement on the English of its
training split with the same size, sentences, updates and seed (`stepaudio.train.ablation`), and prints phoneme error
rates with 95 % intervals on the test split, the paired difference to both codebooks together, and perplexities. It goes
on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.progress import Progress

from stepaudio.data.codes import read_tokenized, tokenize_manifest
from stepaudio.data.manifest import read_manifest
from stepaudio.eval.codes import error_rate
from stepaudio.eval.metrics.errors import count_errors
from stepaudio.eval.metrics.intervals import Difference, paired
from stepaudio.lm.nano import known_phonemes
from stepaudio.tokenizer.dual import DualTokenizer
from stepaudio.train.ablation import Arrangement, Streams, perplexities, transcribe
from stepaudio.train.lm import Step1Scorer
from stepaudio.train.loop import Loop, LoopConfig, Schedule

Pairs = list[tuple[list[str], list[str]]]
ARRANGEMENTS: tuple[Streams, ...] = ("dual", "semantic", "linguistic")


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
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tests", type=int, default=200, help="test sentences")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    with Progress() as bars, DualTokenizer.load(options.tokenizer) as tokenizer:
        bar = bars.add_task("tokenizing", total=len(read_manifest(options.manifest)))
        for lines, _ in tokenize_manifest(options.manifest, tokenizer, options.tokenizer):
            bars.advance(bar, lines)
    known = [
        (u, c) for u, c in read_tokenized(options.manifest, options.tokenizer) if u.language == "en" and u.phonemes
    ]
    trained = [(u, c) for u, c in known if u.split in ("", "train")]
    tests = [(u, c) for u, c in known if u.split == "test"][: options.tests]
    phonemes = known_phonemes(u.phonemes for u, _ in trained)

    results: dict[str, object] = {"steps": options.steps, "train": len(trained), "test": len(tests)}
    pairs: dict[str, Pairs] = {}
    for streams in ARRANGEMENTS:
        arrangement = Arrangement(streams, phonemes)
        task = arrangement.task(trained, tokenizer=options.tokenizer)
        schedule = Schedule(warmup=min(50, options.steps // 4), cooldown=0.5)
        loop = Loop(task, LoopConfig(options.out / streams, options.steps, schedule=schedule, save_every=100))
        with Progress() as bars:
            bar = bars.add_task(f"training on {streams}", total=options.steps, completed=loop.step)
            for line in loop.run():
                bars.update(bar, completed=line["step"])
        scorer = task.model.eval()
        assert isinstance(scorer, Step1Scorer)
        documents = [arrangement.asr(u, c) for u, c in tests]
        heard = [document for document in documents if document is not None]
        written = transcribe(scorer.lm, arrangement, heard)
        references = [arrangement.phonemes_of(document) for document in heard]
        pairs[streams] = list(zip(references, written, strict=True))
        results[streams] = {
            "parameters": sum(parameter.numel() for parameter in scorer.parameters()),
            "tokens_per_second": arrangement.codes * 25 / 3,
            "perplexity": perplexities(task, arrangement, [codes for _, codes in tests]),
            "phoneme_error_rate": asdict(error_rate(pairs[streams])),
        }
    for streams in ARRANGEMENTS[1:]:
        results[f"{streams} minus dual"] = asdict(difference(pairs["dual"], pairs[streams]))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

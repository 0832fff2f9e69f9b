#!/bin/sh
# A language model of the nano layout in a few minutes on any laptop, from nothing: is everything there?
set -eu
out=${1:-runs/out/smoke}
stepaudio pull wordnet
stepaudio data synthesize "$out/data" --size 400 --kokoro 0
stepaudio data tokenize "$out/data/manifest.jsonl"
stepaudio train lm cpu_smoke "$out/data/manifest.jsonl" -o "$out/lm"

#!/bin/sh
# The nano language model on two CPU cores: an evening. Stop it at any time and start it again.
# Run in pieces (docs/training.md, "The nano language model"), not from end to end.
set -eu
out=${1:-runs/out/nano}
stepaudio pull wordnet
stepaudio data synthesize "$out/data" --size 13000 --kokoro 0
stepaudio data tokenize "$out/data/manifest.jsonl"
stepaudio train lm cpu_nano "$out/data/manifest.jsonl" -o "$out/lm"

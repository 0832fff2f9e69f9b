#!/bin/sh
# The paper's three stages with 115 M parameters on one H100. The speech comes first, on its processor cores.
# Not run: its recipe is tested at toy size on a CPU.
set -eu
out=${1:-runs/out/h100}
stepaudio pull wordnet kokoro-82m kokoro-voices
stepaudio data synthesize "$out/data" --size 60000 --kokoro 2000
stepaudio data tokenize "$out/data/manifest.jsonl"
torchrun --standalone --nproc-per-node="${GPUS:-1}" "$(command -v stepaudio)" \
  train lm h100_30min "$out/data/manifest.jsonl" -o "$out/lm"

#!/bin/sh
# All stages of nano-voice in a few minutes on any laptop, from nothing: is everything there? What it makes babbles.
# Run whole, stopped three times on the way and continued.
set -eu
out=${1:-runs/out/smoke}
data=$out/data/manifest.jsonl
stepaudio pull wordnet
stepaudio data synthesize "$out/data" --size 400 --kokoro 0
stepaudio data tokenize "$data"
stepaudio train lm cpu_smoke "$data" -o "$out/lm"
stepaudio train flow "$data" -o "$out/flow" --steps 60
stepaudio train vocoder "$data" -o "$out/spectra" --steps 40
stepaudio train vocoder "$data" -o "$out/vocoder" --adversarial --init "$out/spectra/vocoder.safetensors" --steps 10

#!/bin/sh
# The decoder of nano-voice on two CPU cores: an evening. Stop it at any time and start it again.
# Run in two pieces with fewer steps each (docs/nano-voice.md, "Training the decoder"), not from end to end.
set -eu
out=${1:-runs/out/nano-decoder}
data=$out/data/manifest.jsonl
stepaudio pull wordnet kokoro-82m kokoro-voices
stepaudio data synthesize "$out/data" --size 13000 --kokoro 360
stepaudio data tokenize "$data"
stepaudio train flow "$data" -o "$out/flow" --steps 5000
stepaudio train vocoder "$data" -o "$out/vocoder" --steps 5000

#!/bin/sh
# Continual pre-training as the paper describes it, from a text language model in BASE, on your own tokenized manifest
# and text. Run it on every node: NODES, RANK and HEAD (host:port) are torchrun's. `stepaudio train plan paper_3b`
# says what it costs.
# Not run: its recipe is tested at toy size on a CPU.
set -eu
manifest=$1 text=$2 out=$3
torchrun --nnodes="${NODES:-1}" --node-rank="${RANK:-0}" --nproc-per-node=8 \
  --rdzv-backend=c10d --rdzv-endpoint="${HEAD:-localhost:29500}" "$(command -v stepaudio)" \
  train lm paper_3b "$manifest" -o "$out" --from "$BASE" --text "$text"

#!/usr/bin/env bash
# Latency on one CUDA GPU, batch 1 to 256: the tables of benchmarks/suites/latency-gpu.yaml, in torch
# (eager, compiled, CUDA graphs), ONNX Runtime and TensorRT, as far as they are there. Nothing is
# trained. Unattended and resumable: it stops after LIMIT_S seconds (default 570); run it again, and
# it goes on where it stopped. Downloads nothing: data and weights come from the cache
# (REKD_EDGE_CACHE), or from build/gpu/pieces as pack.sh makes them (contents: packages, text, cifar10
# and, for ONNX Runtime on the GPU, onnxruntime-gpu).
#
#   LIMIT_S=570 DEVICE=cuda OUTPUT=runs/gpu/latency SUITE=... BATCH=1,64 SECONDS_EACH=1 QUERIES=50 \
#     MOST_SECONDS=20 benchmarks/gpu/latency.sh
#
# A timing has at least SECONDS_EACH and QUERIES of each model; where that takes longer than MOST_SECONDS
# by the clock, it ends at 20 queries and is INVALID.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source benchmarks/gpu/prepare.sh
output="${OUTPUT:-runs/gpu/latency}"
suite="${SUITE:-latency-gpu}"
options=(--device "${DEVICE:-cuda}")
options+=(--min-duration-s "${SECONDS_EACH:-1}" --min-count "${QUERIES:-50}")
if [ -n "${BATCH:-}" ]; then
  options+=(--batch "$BATCH")
fi

options+=(--max-duration-s "${MOST_SECONDS:-20}")

unpack
mkdir -p "$output"
keep_compiled "$output"
left="$((limit_s - (SECONDS - started)))"
# Before it is ended it begins nothing more, and what is open is timed.
options+=(--limit-s "$((left > 16 ? left - 8 : (left > 0 ? left : 1)))")
in_time "$python" -m rekd_edge bench --suite "$suite" --output "$output" "${options[@]}"

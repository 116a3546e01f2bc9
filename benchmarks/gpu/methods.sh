#!/usr/bin/env bash
# The three tables of methods on one CUDA GPU, on all examples (docs/methods.md). Unattended and
# resumable: it stops after LIMIT_S seconds (default 570); run it again, and it goes on where it
# stopped. Downloads nothing; what it reads is packed by
#
#   benchmarks/gpu/pack.sh packages cifar10 text composited
#
#   LIMIT_S=570 DEVICE=cuda OUTPUT=runs/gpu SUITES="methods methods-images" benchmarks/gpu/methods.sh
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
limit_s="${LIMIT_S:-570}"
output="${OUTPUT:-runs/gpu}"
export SET="${SET-data.limit={\}}" # the suites are cut for two CPU cores
if [ "$limit_s" -lt 90 ]; then
  echo "error: LIMIT_S $limit_s is too little for any of it; 90 at least" >&2
  exit 2
fi
read -ra suites <<<"${SUITES:-methods methods-snippets methods-images}"
for suite in "${suites[@]}"; do
  left="$((limit_s - SECONDS))"
  if [ "$left" -lt 60 ]; then
    echo "stopped after $SECONDS s; run it again to go on"
    exit 0
  fi
  # A finished suite is read again and trains nothing.
  LIMIT_S="$left" OUTPUT="$output/$suite" SUITE="benchmarks/suites/$suite.yaml" "$here/accuracy.sh"
done

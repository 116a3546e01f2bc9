#!/usr/bin/env bash
# CIFAR-10 at full scale on one CUDA GPU: the table of benchmarks/suites/accuracy-cifar10.yaml.
# Unattended and resumable: it stops after LIMIT_S seconds (default 570); run it again, and it goes
# on where it stopped. Downloads nothing: data and weights come from the cache (REKD_EDGE_CACHE), or
# from build/gpu/pieces as pack.sh makes them.
#
#   LIMIT_S=570 DEVICE=cuda OUTPUT=runs/gpu/accuracy-cifar10 SUITE=... benchmarks/gpu/accuracy.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-python3}"
output="${OUTPUT:-runs/gpu/accuracy-cifar10}"
suite="${SUITE:-benchmarks/suites/accuracy-cifar10.yaml}"
limit_s="${LIMIT_S:-570}"
started="$SECONDS"

unpacked=build/gpu/unpacked
if [ -f build/gpu/pieces/SHA256SUMS ] && [ ! -f "$unpacked/.whole" ]; then
  (cd build/gpu/pieces && sha256sum --check --quiet SHA256SUMS) || {
    echo "error: build/gpu/pieces is not whole; bring the pieces named above again" >&2
    exit 6
  }
  rm -rf "$unpacked"
  mkdir -p "$unpacked"
  cat build/gpu/pieces/?? | tar -C "$unpacked" -xf -
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$unpacked/site" \
    "$unpacked"/wheels/*.whl
  touch "$unpacked/.whole"
fi
if [ -f "$unpacked/.whole" ]; then
  export REKD_EDGE_CACHE="${REKD_EDGE_CACHE:-$PWD/$unpacked/cache}"
  # These come before packages of the same name on the machine.
  export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD:$unpacked/site"
fi
export REKD_EDGE_OFFLINE="${REKD_EDGE_OFFLINE:-1}"

status=0
timeout --signal=INT --kill-after=20 "$((limit_s - (SECONDS - started)))" \
  "$python" -m rekd_edge suite "$suite" --output "$output" --device "${DEVICE:-cuda}" || status=$?
if [ "$status" -eq 124 ] || [ "$status" -eq 130 ] || [ "$status" -eq 137 ]; then
  echo "stopped after $limit_s s; run it again to go on"
  exit 0
fi
exit "$status"

#!/usr/bin/env bash
# CIFAR-10 at full scale on one CUDA GPU: the table of benchmarks/suites/accuracy-cifar10.yaml.
# Unattended and resumable: it stops after LIMIT_S seconds (default 570); run it again, and it goes
# on where it stopped. Downloads nothing: data and weights come from the cache (REKD_EDGE_CACHE), or
# from build/gpu/pieces as pack.sh makes them (contents: packages, cifar10).
#
#   LIMIT_S=570 DEVICE=cuda OUTPUT=runs/gpu/accuracy-cifar10 SUITE=... benchmarks/gpu/accuracy.sh
#
# SET="KEY=VALUE ..." overrides recipe keys of every row. Unless it says otherwise nothing is compiled: in
# runs this short that takes longer than it saves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source benchmarks/gpu/prepare.sh
output="${OUTPUT:-runs/gpu/accuracy-cifar10}"
suite="${SUITE:-benchmarks/suites/accuracy-cifar10.yaml}"

overrides=()
for role in student teacher; do
  case " ${SET:-} " in
    *" $role.train.compile="*) ;;
    *) overrides+=(--set "$role.train.compile=false") ;;
  esac
done
for override in ${SET:-}; do overrides+=(--set "$override"); done

unpack
keep_compiled "$output"
in_time "$python" -m rekd_edge suite "$suite" --output "$output" --device "${DEVICE:-cuda}" \
  ${overrides[@]+"${overrides[@]}"}

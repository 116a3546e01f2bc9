#!/usr/bin/env bash
# Training speed on one CUDA GPU: the tables of `rekd-edge speed` for the recipe's own models and for
# models of the published size (random weights, as fast), then the recipe itself, trained as far as
# the time goes. Unattended and resumable: it stops after LIMIT_S seconds (default 570); run it
# again, and it goes on where it stopped. Downloads nothing: data and weights come from the cache
# (REKD_EDGE_CACHE), or from build/gpu/pieces as pack.sh makes them (contents: packages, cifar10).
# What is worth bringing back is in $OUTPUT/reports, five files without weights.
#
#   LIMIT_S=570 DEVICE=cuda OUTPUT=runs/gpu/training RECIPE=vision/cifar10 LARGE=paper/cifar10 \
#     CHANGES="KEY=VALUE ..." QUICK= benchmarks/gpu/training.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source benchmarks/gpu/prepare.sh
output="${OUTPUT:-runs/gpu/training}"
recipe="${RECIPE:-vision/cifar10}"
large="${LARGE-paper/cifar10}"
device="${DEVICE:-cuda}"
reports="$output/reports"
changes=()
for change in ${CHANGES:-}; do
  changes+=(--set "$change")
done
quick=()
[ -z "${QUICK:-}" ] || quick=(--quick)

if [ "$limit_s" -lt 90 ]; then
  echo "error: LIMIT_S $limit_s is too little for any of it; 90 at least" >&2
  exit 2
fi

# has_table NAME: whether it is whole; one that is stopped has what was measured by then.
has_table() {
  [ -f "$reports/speed-$1.json" ] && ! grep -q '"complete": false' "$reports/speed-$1.json"
}

# speed NAME RECIPE OPTION...: the table, unless an earlier call has it.
speed() {
  local name="$1" of="$2"
  shift 2
  ! has_table "$name" || return 0
  # Where less than a third of the time is left, the next call has more of it.
  local left="$((limit_s - (SECONDS - started) - 40))"
  if [ "$left" -lt "$((limit_s / 3))" ]; then
    echo "too little time for the table of $of; run it again to go on"
    exit 0
  fi
  in_time "$python" -m rekd_edge speed "$of" --device "$device" "${quick[@]}" "$@" \
    --limit-s "$left" --markdown "$reports/speed-$name.md" --json "$reports/speed-$name.json"
  # Without the table the time is up: what comes later waits for the next call.
  has_table "$name" || exit 0
}

collect() {
  local found=() name
  for name in recipe.resolved.yaml run.json labels.json reports {teacher,student}/log.jsonl; do
    [ ! -e "$output/run/$name" ] || found+=("$name")
  done
  [ "${#found[@]}" -eq 0 ] || tar -C "$output/run" -czf "$reports/run.tar.gz" "${found[@]}"
}

unpack
mkdir -p "$reports"
keep_compiled "$output"
speed recipe "$recipe" "${changes[@]}"
if [ -n "$large" ]; then
  # The published models under the shipped objective; the published one is the first setting.
  speed published-size "$large" --random-weights --set objective.name=deploy \
    --set objective.lambda_select=0 --set teacher.objective.name=deploy \
    --set teacher.objective.lambda_select=0 --set student.train.batch_size=128 "${changes[@]}"
fi
trap 'collect || echo "reports incomplete" >&2' EXIT
if grep -qs '"status": "finished"' "$output/run/run.json"; then
  echo "finished: $reports"
  exit 0
fi
resume=()
[ ! -f "$output/run/recipe.resolved.yaml" ] || resume=(--resume)
in_time "$python" -m rekd_edge distill "$recipe" --output "$output/run" --device "$device" \
  "${changes[@]}" "${resume[@]}"

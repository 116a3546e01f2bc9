#!/usr/bin/env bash
# Answers from bundles on aarch64, under qemu's user-mode emulation, and compares them with this machine's.
#
#   benchmarks/aarch64.sh WORK BUNDLE INPUTS [BUNDLE INPUTS ...]
#
# INPUTS is a file with one input a line: a text, or the path of an image. WORK is a folder of its own
# (about 400 MB) that gets Debian's packages and wheels from PyPI; nothing is installed. PYTHON (default:
# python3) needs hatchling, numpy, onnxruntime, tokenizers and Pillow: it builds the wheel and gives the
# answers to compare with. Debian or Ubuntu on x86-64, with apt and pip. qemu must be 10 or newer: 7.2 ends
# with a segmentation fault in onnxruntime. Emulation says nothing of speed.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mkdir -p "$1" && cd "$1" && pwd)
shift
python=${PYTHON:-python3}
# The mirror of Debian that this machine's apt uses; DEBIAN names another (on Ubuntu it must).
debian=${DEBIAN:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
    grep -E '/debian/?$' | head -1 || true)}
[ -n "$debian" ] || {
    echo "no mirror of Debian among apt's sources: name one in DEBIAN" >&2
    exit 2
}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fetch_debs() { # ARCHITECTURE FOLDER SUITE PACKAGE...
    local apt=$work/apt-$1-$3 folder=$work/$2
    [ -e "$folder/.done" ] && return
    mkdir -p "$apt"/{lists,cache/archives}/partial "$apt/parts" "$apt/debs" "$folder"
    touch "$apt/status"
    echo "deb [signed-by=$keyring] $debian $3 main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<EOF
APT::Architecture "$1";
APT::Architectures {"$1";};
APT::Sandbox::User "root";
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/parts";
EOF
    APT_CONFIG=$apt/apt.conf apt-get update -qq
    (cd "$apt/debs" && APT_CONFIG=$apt/apt.conf apt-get download -qq "${@:4}")
    for deb in "$apt"/debs/*.deb; do dpkg -x "$deb" "$folder"; done
    touch "$folder/.done"
}

fetch_debs amd64 qemu trixie qemu-user
fetch_debs arm64 root bookworm python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 \
    zlib1g libexpat1 libssl3 libstdc++6 libgcc-s1 libffi8 libbz2-1.0 liblzma5 libuuid1

version() { "$python" -c "from importlib import metadata; print(metadata.version('$1'))"; }
site=$work/site
if [ ! -e "$work/wheels/.done" ]; then
    mkdir -p "$work/wheels"
    platforms=()
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${tag}_aarch64")
    done
    for name in numpy onnxruntime tokenizers pillow; do
        "$python" -m pip download -q --disable-pip-version-check --no-deps -d "$work/wheels" \
            "${platforms[@]}" --python-version 3.11 --only-binary=:all: "$name==$(version $name)"
    done
    touch "$work/wheels/.done"
fi
rm -rf "$site" "$work/dist"
(cd "$here/export/runtime/python" && "$python" -m hatchling build -t wheel -d "$work/dist" >/dev/null 2>&1)
mkdir "$site"
for wheel in "$work"/wheels/*.whl "$work"/dist/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done

emulated() {
    PYTHONPATH=$site PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 "$work/qemu/usr/bin/qemu-aarch64" \
        -cpu "${CPU:-cortex-a76}" -L "$work/root" "$work/root/usr/bin/python3.11" "$@"
}

echo "date: $(date -u +%FT%TZ)"
"$work/qemu/usr/bin/qemu-aarch64" --version | head -1
emulated -c 'import platform, numpy, onnxruntime, tokenizers, PIL, rekd_runtime
print(platform.machine(), "Python", platform.python_version(), "numpy", numpy.__version__,
      "onnxruntime", onnxruntime.__version__, "tokenizers", tokenizers.__version__,
      "Pillow", PIL.__version__, "rekd-edge-runtime", rekd_runtime.__version__)' 2>/dev/null
while [ $# -gt 1 ]; do
    emulated -m rekd_runtime --bundle "$1" --threads 1 --no-overlay --json - - <"$2" \
        >"$work/there.json" 2>"$work/there.log" || { cat "$work/there.log" >&2; exit 1; }
    PYTHONPATH=$work/dist/$(cd "$work/dist" && ls ./*.whl) "$python" -m rekd_runtime --bundle "$1" \
        --threads 1 --no-overlay --json - - <"$2" >"$work/here.json"
    "$python" - "$(basename "$1")" "$work/here.json" "$work/there.json" <<'EOF'
import json
import sys

name = sys.argv[1]
here, there = (json.load(open(path))["predictions"] for path in sys.argv[2:])
pairs = list(zip(here, there, strict=True))


def evidence(answer):
    return [part.get("tokens") or (part["row"], part["column"]) for part in answer["rationale"]]


labels = sum(a["label"] == b["label"] for a, b in pairs)
kept = sum(evidence(a) == evidence(b) for a, b in pairs)
abstain = sum(a["abstain"] == b["abstain"] for a, b in pairs)
worst = max(
    abs(a["probabilities"][k] - b["probabilities"][k]) for a, b in pairs for k in a["probabilities"]
)
print(
    f"{name}: {len(pairs)} inputs, equal labels {labels}, rationales {kept}, abstentions "
    f"{abstain}, largest difference of a probability {worst:.2g}"
)
EOF
    shift 2
done

# Sourced by the scripts beside it, from the root of the checkout: unpacks what pack.sh made, where it
# was brought, and runs a command for a limited time.
#
# unpack: each content of build/gpu/pieces that is there is checked and unpacked once, into
# build/gpu/unpacked; what was not brought is left out. Sets REKD_EDGE_CACHE, PYTHONPATH and
# REKD_EDGE_OFFLINE.
python="${PYTHON:-python3}"
limit_s="${LIMIT_S:-570}"
started="$SECONDS"
unpacked="$PWD/build/gpu/unpacked"

unpack() {
  local pieces=build/gpu/pieces content names name found
  if [ -f "$pieces/SHA256SUMS" ]; then
    for content in $(sed -E 's/^[0-9a-f]+ +//; s/\.[0-9]+$//' "$pieces/SHA256SUMS" | sort -u); do
      [ ! -f "$unpacked/.$content" ] || continue
      names="$(sed -E 's/^[0-9a-f]+ +//' "$pieces/SHA256SUMS" | grep -E "^$content\.[0-9]+$" | sort)"
      found=0
      for name in $names; do
        if [ -f "$pieces/$name" ]; then found=1; fi
      done
      if [ "$found" -eq 0 ]; then
        echo "not brought: $content" >&2
        continue
      fi
      (cd "$pieces" && grep -E " $content\.[0-9]+$" SHA256SUMS | sha256sum --check --quiet -) || {
        echo "error: $content in $pieces is not whole; bring the pieces named above again" >&2
        exit 6
      }
      mkdir -p "$unpacked"
      (cd "$pieces" && cat $names) | tar -C "$unpacked" -xf -
      if [ -d "$unpacked/wheels/$content" ]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
          --target "$unpacked/site" "$unpacked/wheels/$content"/*.whl
        rm -rf "$unpacked/wheels/$content"
      fi
      touch "$unpacked/.$content"
    done
  fi
  if [ -d "$unpacked/cache" ]; then
    export REKD_EDGE_CACHE="${REKD_EDGE_CACHE:-$unpacked/cache}"
  fi
  if [ -d "$unpacked/site" ]; then
    # These come before packages of the same name on the machine.
    export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD:$unpacked/site"
  fi
  export REKD_EDGE_OFFLINE="${REKD_EDGE_OFFLINE:-1}"
}

# keep_compiled FOLDER: what torch compiles is kept there, for another call.
keep_compiled() {
  [ -z "${TORCHINDUCTOR_CACHE_DIR:-}" ] || return 0
  mkdir -p "$1/inductor"
  TORCHINDUCTOR_CACHE_DIR="$(cd "$1/inductor" && pwd)"
  export TORCHINDUCTOR_CACHE_DIR
}

# in_time COMMAND...: ends it when LIMIT_S seconds (default 570) have passed since the script began;
# 0 then, and after its own success.
in_time() {
  local status=0 left="$((limit_s - (SECONDS - started)))"
  if [ "$left" -lt 1 ]; then
    echo "stopped after $limit_s s; run it again to go on"
    return 0
  fi
  timeout --signal=INT --kill-after=20 "$left" "$@" || status=$?
  if [ "$status" -eq 124 ] || [ "$status" -eq 130 ] || [ "$status" -eq 137 ]; then
    echo "stopped after $limit_s s; run it again to go on"
    return 0
  fi
  return "$status"
}

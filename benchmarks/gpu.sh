#!/usr/bin/env bash
# One run on a GPU: checks, tests, measurements and a training; it ends by itself in eight minutes and leaves
# gpu.json and log.txt in $OUT (default runs/gpu), also when SIGTERM or Ctrl-C stops it. Nothing has to be installed
# but what the project depends on.
#
#     benchmarks/gpu.sh                 on a machine with a GPU
#     benchmarks/gpu.sh --pretend       every stage in tiny sizes on the CPU
#     benchmarks/gpu.sh --prepare       here, before: wheels for a machine that has no way to the network
#
# PYTHON names the interpreter (default .venv's where there is one, else python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
wheels=.gpu/wheels
if [ "${1:-}" = --prepare ]; then
    # What the GPU's machine lacks: pure wheels in the tested versions, of the names given or of these.
    shift
    [ $# -gt 0 ] || set -- tyro docstring-parser typeguard
    rm -rf "$wheels" && mkdir -p "$wheels"
    grep -E "^($(IFS='|'; echo "$*"))==" constraints.txt >"$wheels/wanted.txt"
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --platform any \
        --dest "$wheels" --requirement "$wheels/wanted.txt"
    ls -l "$wheels"
    exit
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
for wheel in "$wheels"/*.whl; do
    # A pure wheel is a zip file of what stands in site-packages.
    [ ! -e "$wheel" ] || "$python" -m zipfile -e "$wheel" "$site"
done
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}:$site" PYTHONUNBUFFERED=1
# What stops this script stops the run: bash would leave it alone, and hear of a signal only when it has ended.
"$python" -m benchmarks.gpu "$@" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM INT HUP
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do wait "$run" || code=$?; done  # a signal interrupts a wait
exit "$code"

#!/usr/bin/env bash
# Builds the wheel once and runs its operators beside other versions of torch: run.sh VERSION...
# Each version gets an environment of its own (5.5 GB with CUDA) under build/, deleted afterwards.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD python=${PYTHON:-.venv/bin/python} work=$PWD/build/wheel
rm -rf "$work" && mkdir -p "$work"
trap 'rm -rf "$work"/torch-*' EXIT
start=$SECONDS
"$python" -m pip wheel -qq . --no-build-isolation --no-deps -w "$work"
wheel=$(ls "$work"/*.whl)
echo "$(basename "$wheel"), $(du -k "$wheel" | cut -f1) kB, built in $((SECONDS - start)) s"
case $wheel in *-any.whl) echo "no compiler was found, so there is no library in it to try"; exit 0 ;; esac
for version in "$@"; do
  free=$(df --output=avail -k "$work" | tail -1)
  [ "$free" -gt 9000000 ] || { echo "torch $version needs 9 GB for a moment; $((free / 1000000)) GB are free"; exit 1; }
  start=$SECONDS venv=$work/torch-$version
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install -qq "torch==$version" numpy
  "$venv/bin/python" -m pip install -qq --no-deps "$wheel"
  echo "torch $version: $(du -sm "$venv" | cut -f1) MB in $((SECONDS - start)) s"
  start=$SECONDS
  (cd "$work" && OMP_NUM_THREADS=2 "$venv/bin/python" -P "$root/tests/wheel/check_ops.py")
  echo "torch $version: checked in $((SECONDS - start)) s"
  rm -rf "$venv"
done

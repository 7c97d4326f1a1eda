#!/usr/bin/env bash
# Builds the kernels for the GPU of this machine, runs every GPU test and the benches of the training step (with CUDA
# graphs too) and of the operators, within 8 minutes, and writes one JSON into $OUT, or tests/bench/results, again after
# each part, so that a run cut short leaves it too.
# A part that fails or takes too long does not end the others; it makes the exit code 1.
# PYTHON names a Python that has torch; --anyway goes through without a GPU, where the tests skip.
set -uo pipefail
cd "$(dirname "$0")/../.."
limit=470
left() { echo $((limit - SECONDS > $1 ? limit - SECONDS - $1 : 1)); }  # seconds, with $1 kept for what follows

python=${PYTHON:-}
for candidate in .venv/bin/python python3; do
  [ -n "$python" ] || ! "$candidate" -c 'import torch' 2>/dev/null || python=$candidate
done
if [ -z "$python" ]; then
  echo "no Python here has torch: make install puts one into .venv"
  timeout 300 make install >&2 || { echo "that did not work; nothing was run"; exit 1; }
  python=.venv/bin/python
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "There is no GPU here that torch can use ($("$python" -c 'import torch; print("torch", torch.__version__)'))."
  [ "${1:-}" = --anyway ] || { echo "Nothing was run."; exit 3; }
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
part() {  # NAME SECONDS COMMAND...: what it says goes to the screen and into a file, its end and time into another
  local name=$1 seconds=$2 start=$SECONDS code
  shift 2
  echo "== $name (at most $seconds s)"
  timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$work/$name.log"
  code=${PIPESTATUS[0]}
  case $code in 124 | 137) echo "$name took too long and was ended" ;; esac
  echo "$code $((SECONDS - start))" > "$work/$name.end"
  timeout 30 "$python" tests/gpu/gather.py "$work" "${OUT:-tests/bench/results}" || ended=1
}
ended=0

missing=()
for module in ninja pytest numpy scipy hypothesis; do
  "$python" -c "import $module" 2>/dev/null || missing+=("$module")
done
[ ${#missing[@]} = 0 ] || timeout 60 "$python" -m pip install -q --retries 0 --timeout 10 "${missing[@]}" \
  || echo "cannot be had here: ${missing[*]}"
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch
if torch.cuda.is_available(): print("%d.%d" % torch.cuda.get_device_capability())')
fi
export TORCH_CUDA_ARCH_LIST EEG_GAN_RESULTS=$work/tests.jsonl
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}  # the package need not be installed
part build "$(left 270)" "$python" setup.py -q build_ext --inplace
# Neither the settings nor the fixtures of the other tests: they need packages that a GPU machine may lack.
part tests "$(left 190)" env PYTHONPATH="tests/gpu:$PYTHONPATH" "$python" -m pytest -q -o addopts= \
  --confcutdir=tests/gpu -p gpu_plugin tests/gpu
if PYTHONPATH="tests/bench:$PYTHONPATH" "$python" -c 'import gan_step' 2> "$work/missing"; then
  part step "$(left 110)" "$python" tests/bench/gan_step.py --sizes 64 128 --seconds 12 --json "$work/step.json"
else
  echo "the training step is left out, as it needs the whole package: $(tail -n 1 "$work/missing")"
fi
part bench "$(left 20)" "$python" tests/bench/ops.py --json "$work/bench.json"
exit $ended

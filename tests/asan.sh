#!/usr/bin/env bash
# The CPU kernels and the simulated CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer, over their tests.
# The sanitizers come into a Python that knows nothing of them by preloading; a leak is Python's own matter.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} cxx=${CXX:-g++}
command -v "$cxx" >/dev/null || { echo "no $cxx here: nothing to check"; exit 0; }
export EEG_GAN_SANITIZE=1
"$python" setup.py -q build_ext
export EEG_GAN_LIBRARY=$PWD/build/sanitized/_C.so
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
preload="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so.6)"
[ $# -gt 0 ] || set -- tests/unit/test_ops*.py tests/cusim
# What compiles or starts processes of its own is left to the other targets; so are the twins alone, and all but one
# order of the simulated threads (EEG_GAN_SANITIZE in the tests). A finding ends the process and is written to standard error
# at once, which pytest must not hold back for a summary that never comes.
LD_PRELOAD="$preload" GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-2000} "$python" -m pytest --capture=sys --timeout=1800 -p no:cacheprovider \
  -k "not compile and not opcheck and not is_complete and not sanitizer" "$@"

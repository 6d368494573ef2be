#!/usr/bin/env bash
# The CPU figures of benchmarks/caml/README.md: DATA is a folder with images/ and labels/, OUT gets everything. The rows of
# "What mattered" are single runs of tune.py. PYTHON is the interpreter that medseg is installed in.
set -euo pipefail
DATA=${1:?usage: run_cpu.sh DATA OUT}
OUT=${2:?usage: run_cpu.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
PYTHON=${PYTHON:-python}
HERE=$(cd "$(dirname "$0")/.." && pwd)
"$MEDSEG" bench caml --data "$DATA" --preset cpu --labelled 4 --device cpu --out "$OUT/bench"
"$MEDSEG" bench caml --data "$DATA" --preset cpu --labelled 4 --device cpu --arms speed --iterations 4 --seeds 1 --out "$OUT/speed"
"$MEDSEG" simulate --data "$DATA" --method caml --strategies random,caml --rounds 3 --per-round 2 --initial 4 \
  --validation 6 --test 8 --preset cpu --device cpu --scale 0.3 --iterations 150 --set patch=32,24,24 --out "$OUT/simulation"
"$PYTHON" "$HERE/score.py" --model "$OUT/bench/runs/full_seed0" --data "$DATA" --cases 24 --json "$OUT/score.json"
"$PYTHON" "$HERE/window.py" --image "$DATA/images/la_000.nii.gz" --device cpu --repeats 2 | tee "$OUT/window.json"

#!/usr/bin/env bash
# The CPU figures of benchmarks/seg4reg/README.md: DATA is a folder with images/ and labels.csv, OUT gets everything.
set -euo pipefail
DATA=${1:?usage: run_cpu.sh DATA OUT}
OUT=${2:?usage: run_cpu.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
PYTHON=${PYTHON:-python}
"$MEDSEG" bench seg4reg --data "$DATA" --preset cpu --device cpu --out "$OUT/bench"
"$MEDSEG" bench seg4reg --data "$DATA" --preset cpu --device cpu --task speed --out "$OUT/speed"
"$PYTHON" "$(dirname "$0")/score.py" --bench "$OUT/bench" --arm full --data "$DATA" --json "$OUT/score.json"

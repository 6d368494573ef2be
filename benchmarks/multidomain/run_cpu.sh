#!/usr/bin/env bash
# The CPU figures of benchmarks/multidomain/README.md: DATA is the folder of all data sets, OUT gets everything.
set -euo pipefail
DATA=${1:?usage: run_cpu.sh DATA OUT}
OUT=${2:?usage: run_cpu.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
PYTHON=${PYTHON:-python}
HERE=$(dirname "$0")
"$MEDSEG" bench multidomain --data "$DATA/vertebrae_mr" --preset cpu --device cpu --out "$OUT/vertebrae"
"$MEDSEG" bench multidomain --data "$DATA/cardiac_mr" --data "$DATA/prostate_mr" --data "$DATA/hippocampus_mr" \
  --data "$DATA/left_atrium" --preset cpu --device cpu --out "$OUT/organs"
for arm in domain_layers contrastive; do
  "$PYTHON" "$HERE/embeddings.py" "$OUT/vertebrae/runs/${arm}_seed0" "$DATA/vertebrae_mr" "$OUT/embeddings_$arm"
done
"$PYTHON" "$HERE/new_domain.py" "$DATA/vertebrae_mr" "$OUT/new_domain" --add vb3

#!/usr/bin/env bash
# The CPU figures of this folder: DATA holds fundus, chest_xray, cephalometric, left_atrium; OUT gets everything.
set -euo pipefail
DATA=${1:?usage: run_cpu.sh DATA OUT}
OUT=${2:?usage: run_cpu.sh DATA OUT}
MEDSEG=${MEDSEG:-medseg}
BENCH=("$MEDSEG" bench local_discrimination --preset cpu --device cpu)
FUNDUS=random_2,random_5,random_10,pretrained_2,pretrained_5,pretrained_10,shaped_2,shaped_5,shaped_10
"${BENCH[@]}" --data "$DATA/fundus" --task segmentation --arms "$FUNDUS" --out "$OUT/fundus"
"${BENCH[@]}" --data "$DATA/chest_xray" --task segmentation --scale 0.25 --set mirror=0 --set augmentation=none --out "$OUT/chest"
"${BENCH[@]}" --data "$DATA/cephalometric" --task landmarks --out "$OUT/landmarks"
"${BENCH[@]}" --data "$DATA/fundus" --task unsupervised --out "$OUT/vessels"
"${BENCH[@]}" --data "$DATA/chest_xray" --task unsupervised --scale 0.25 --set mirror=0 --set augmentation=none --out "$OUT/lungs"
"${BENCH[@]}" --data "$DATA/chest_xray" --task cold_start --seeds 10 --scale 0.25 --set mirror=0 --set augmentation=none --out "$OUT/cold_chest"
"${BENCH[@]}" --data "$DATA/left_atrium" --task cold_start --seeds 10 --scale 0.5 --set patch=48,48,32 \
    --set iterations=400 --set finetune_iterations=100 --out "$OUT/cold_atrium"

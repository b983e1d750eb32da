#!/usr/bin/env bash
# All GPU checks and benchmarks of both stages in one go; prints tables.
#
#   bash benchmarks/on_gpu.sh PAIRS.parquet
#   EXPERIMENT=folder bash benchmarks/on_gpu.sh PAIRS.parquet    and docs/experiments/does-weighting-help.md, larger
#
# Needs an environment with twdpo, its extras trl and peft, bitsandbytes and pytest, and the embedded model (see the
# Makefile). Nothing is downloaded. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
pairs="${1:-demo}"
python="${PYTHON:-python}"
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available() and "no GPU is to be seen here")'
status=0
echo "## Checks";              "$python" benchmarks/gpu_checks.py || status=1
echo "## Judging, 135M, float32"; "$python" benchmarks/annotate.py "$pairs" --device cuda --dtypes float32,bfloat16 --pairs 128 || status=1
echo "## Judging, 135M, bfloat16"; "$python" benchmarks/annotate.py "$pairs" --device cuda --dtypes bfloat16 --pairs 128 || status=1
echo "## Judging, Llama 3 8B's shape"; "$python" benchmarks/annotate.py "$pairs" --device cuda --model random-8b --dtypes bfloat16 --pairs 64 --no-memory || status=1
echo "## 135M, float32";       "$python" benchmarks/train.py "$pairs" --device cuda --pairs 64 --batch 8 --rounds 3 || status=1
echo "## 135M, bfloat16";      "$python" benchmarks/train.py "$pairs" --device cuda --dtype bfloat16 --pairs 64 --batch 8 --rounds 3 --trl-checkpointing || status=1
echo "## 1.2B, bfloat16";      "$python" benchmarks/train.py "$pairs" --device cuda --dtype bfloat16 --model random-1b --pairs 32 --batch 4 --rounds 3 || status=1
echo "## Part by part, 1.2B";  "$python" benchmarks/train.py "$pairs" --device cuda --dtype bfloat16 --model random-1b --pairs 32 --batch 4 --rounds 1 --ablate || status=1
# Longer than the rest together, and the folder is gone on with: only on request.
if [ -n "${EXPERIMENT:-}" ]; then
  echo "## Does weighting help?"; "$python" benchmarks/does_weighting_help.py "$pairs" --out "$EXPERIMENT" --max-tokens 1024 --heldout 500 --batch 32 --dtype bfloat16 || status=1
fi
exit "$status"

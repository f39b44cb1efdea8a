#!/bin/sh
# Every benchmark that wants a GPU, within a time: `make bench-gpu`, or
#
#   PYTHON=python3 OUT=runs/gpu LIMIT_S=1200 benchmarks/gpu.sh
#
# On two GPUs the sweep has one for itself; on one it comes last. What is cut off is taken up by the next call with the
# same OUT. Tables, figures as JSON and pictures lie under OUT, small enough to be published.
set -u
PYTHON=${PYTHON:-python3} OUT=${OUT:-runs/gpu} LIMIT_S=${LIMIT_S:-1200} WORKERS=${WORKERS:-20}
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}." OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
start_s=$(date +%s)

left_s() { # what is left of the time, less $1, at least 1
    left=$((LIMIT_S - $1 - $(date +%s) + start_s))
    [ "$left" -gt 0 ] && echo "$left" || echo 1
}

at_most() { # so many seconds, or what is left
    left=$(left_s 5)
    [ "$1" -lt "$left" ] && echo "$1" || echo "$left"
}

log() { # run $2... for at most $1 seconds, its output into a log
    limit_s=$1 name=$2
    shift 2
    echo "$name, at most $limit_s s, after $(($(date +%s) - start_s)) s"
    timeout "$limit_s" "$@" >"$OUT/$name.log" 2>&1 || echo "$name ended with $?: see $OUT/$name.log"
}

sweep() {
    log "$(left_s 5)" sweep env OMP_NUM_THREADS=1 "$PYTHON" benchmarks/sweep.py --plan full --images 32 \
        --workers "$WORKERS" --limit-s "$(left_s 60)" --out "$OUT/sweep"
}

if [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
    (export CUDA_VISIBLE_DEVICES=1; sweep) &
    export CUDA_VISIBLE_DEVICES=0
    alone=false
else
    alone=true
fi
# Alone on their GPU, on a host at rest. The denoiser is compiled for some three minutes.
log "$(at_most 150)" cost "$PYTHON" benchmarks/cost.py --device cuda --repeats 5 --sizes 100 10000 --out "$OUT/cost"
log "$(at_most 420)" unet-cost "$PYTHON" benchmarks/unet_cost.py --modes eager compiled --out "$OUT/cost"
log "$(at_most 240)" memory-cost "$PYTHON" benchmarks/memory_cost.py --device cuda --unet --out "$OUT/memory-cost"
log "$(left_s 5)" tests "$PYTHON" -m pytest -q -m gpu tests/sparke_engine
log "$(left_s 40)" long-memory "$PYTHON" benchmarks/long_memory.py --images 4000 --workers 11 --device cuda \
    --out "$OUT/long-memory"
log 60 long-memory-report "$PYTHON" benchmarks/long_memory.py --images 4000 --report-only --device cuda \
    --out "$OUT/long-memory"
log "$(left_s 5)" novelty "$PYTHON" benchmarks/novelty.py --images 1536 --weights 0 1 0.5 -0.5 -1 \
    --device cuda --out "$OUT/novelty"
if $alone; then sweep; fi
wait

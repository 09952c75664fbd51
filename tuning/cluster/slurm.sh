#!/bin/bash
# A search over the nodes of a Slurm job: one Ray head, one Ray worker a node, then the search.
#   sbatch tuning/cluster/slurm.sh --space qsd.yaml --cache /shared/caches/proxy --num-trials 64 ...
# Submit the same line again after a time limit or a failure: the search goes on.
#SBATCH --job-name=gkd-tune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@120
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit from the checkout}"
BIN=$PWD/.venv/bin
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d' ' -f1)
export RAY_AUTH_TOKEN

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${NODES[0]}
PORT=$((20000 + SLURM_JOB_ID % 20000))
ADDRESS=$(srun --nodes=1 --ntasks=1 -w "$HEAD" hostname --ip-address | awk '{print $1}'):$PORT

start() {  # start NODE FLAGS...: Ray on a node, in the foreground of its job step
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 -w "$node" "$BIN/ray" start --block --disable-usage-stats \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_PER_NODE" "$@" &
}

start "$HEAD" --head --node-ip-address="${ADDRESS%:*}" --port="$PORT" --include-dashboard=false
until "$BIN/ray" status --address "$ADDRESS" > /dev/null 2>&1; do sleep 2; done
for node in "${NODES[@]:1}"; do
    start "$node" --address="$ADDRESS"
done

# Before the time limit Slurm sends the signal named above: the search ends, and loses nothing by it.
"$BIN/python" tuning/search.py --address "$ADDRESS" --resources gpu=1,cpu=8 --out runs/tune "$@" &
SEARCH=$!
trap 'kill -TERM "$SEARCH"' INT TERM
wait "$SEARCH"

#!/bin/bash
#SBATCH --job-name=labelgen
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=36
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@90
# sbatch docs/cluster/slurm.sh; a job that ran out of time or was preempted is queued again and goes on.
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# one token for this cluster alone: whoever reaches the port must know it
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1)

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --node-ip-address="$head" --port="$port" --num-gpus=8 --num-cpus=36 --block &
sleep 20
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" --overlap \
        ray start --address="$head:$port" --num-gpus=8 --num-cpus=36 --block &
fi

# workers that are not there yet join as soon as their node does
labelgen run --images '/photos/sa250k/*.tar' --shards /shards/sa250k --sam /weights/sam_vit_h_4b8939.pth \
    --ray-address "$head:$port" --workers $((8 * SLURM_NNODES)) --gpus-per-worker 1 --cpus-per-worker 4 \
    --unit-size 32 --grace 60 --log "labelgen-$SLURM_JOB_ID.jsonl" &
run=$!
trap 'kill -TERM $run; wait $run || true; scontrol requeue "$SLURM_JOB_ID"' TERM
wait $run

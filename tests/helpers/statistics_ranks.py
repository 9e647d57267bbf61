"""Gathers feature statistics over the ranks that run it: statistics_ranks.py IN.pt OUT.pt

IN.pt holds cases, each one list of batches per rank; OUT.pt gets, for each, every rank's mean and covariance of all.
"""

import os
import sys

import torch
import torch.distributed as dist

from recipe.evaluation.distances import FeatureStatistics


def main() -> None:
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    results = []
    for batches in torch.load(sys.argv[1]):
        statistics = FeatureStatistics(batches[0][0].shape[1])
        for batch in batches[rank]:
            statistics.update(batch)
        found: list = [None] * dist.get_world_size()
        dist.all_gather_object(found, statistics.compute())
        results.append(found)
    if rank == 0:
        torch.save(results, sys.argv[2])
    dist.barrier()  # gloo may wait for ever in a rank that is still closing when its peer is gone
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Label a cohort on nodes that dask-jobqueue asks SLURM for.

python slurm_batch.py JOBS INPUT -o OUTPUT [more options of `ivdtool batch`]

Run it where it may stay as long as the batch takes, in tmux or in a small job of its own. If it
ends early, run it again with --resume. What fits your cluster is in `slurm_cluster`.
"""

import sys
from collections.abc import Sequence

from dask_jobqueue import SLURMCluster
from dask_jobqueue.core import JobQueueCluster

from ivdtool.cli import main


def slurm_cluster() -> JobQueueCluster:
    """Each job: 16 CPUs, 16 workers of one thread, 1.5 GB for each."""
    return SLURMCluster(
        cores=16,
        processes=16,
        memory="24GB",
        walltime="08:00:00",
        # queue="...", account="...",
        job_script_prologue=["source ~/venvs/ivdtool/bin/activate"],
        python="python",
    )


def label_on(cluster: JobQueueCluster, jobs: int, arguments: Sequence[str]) -> None:
    """Run `ivdtool batch` on a cluster of so many jobs; exits as it does."""
    with cluster:
        cluster.scale(jobs=jobs)
        address = cluster.scheduler_address
        main(["batch", *arguments, "--executor", "dask", "--scheduler", address])


if __name__ == "__main__":
    label_on(slurm_cluster(), int(sys.argv[1]), sys.argv[2:])

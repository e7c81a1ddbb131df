# SPDX-License-Identifier: MIT
"""The fresh process in which ``ocnet.engine.measure.run_jobs`` measures on the CPU.

Takes one JSON argument, prints one marked JSON line for each job, as soon as it is done.
"""

import json
import sys

import torch

from ocnet.engine.measure import RESULT_MARK, Job, measure
from ocnet.engine.workload import STEP


def main(argv: list[str]) -> int:
    """Run the jobs of ``argv[0]``."""
    request = json.loads(argv[0])
    torch.set_num_threads(request["threads"])
    jobs = [Job.from_record(record) for record in request["jobs"]]
    # Load libraries and start threads before any memory is counted.
    measure(jobs[0].form, jobs[0].workload.small(), STEP, budget_s=0)
    for job in jobs:
        print(RESULT_MARK + json.dumps(job.run().to_record()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

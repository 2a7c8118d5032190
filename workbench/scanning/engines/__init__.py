"""Where the checkpoints of a scan are worked on: in this process, in processes of this machine, on a Ray cluster.

All have one form: a worker is opened in each process and called with one task after another; it writes its own results,
so that what comes back is only a report, and nothing is lost with the process that started it all. No torch.
"""

from workbench.scanning.engines.inline import run_inline
from workbench.scanning.engines.local import run_local
from workbench.scanning.engines.ray import run_ray
from workbench.scanning.engines.tasks import RETRIES, Engine, Opener, Outcome, Task, Worker

__all__ = [
    "RETRIES",
    "Engine",
    "Opener",
    "Outcome",
    "Task",
    "Worker",
    "run_inline",
    "run_local",
    "run_ray",
]

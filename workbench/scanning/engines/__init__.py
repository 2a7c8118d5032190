"""Where the checkpoints of a scan are processed: in this process, in processes of this machine, on a Ray cluster.

All engines have one interface. Each process opens one worker and calls it with one task after another. The worker
writes its own results, so an engine returns only outcomes, and results survive the process that started it. No torch.
"""

from workbench.scanning.engines.inline import run_inline
from workbench.scanning.engines.local import run_local
from workbench.scanning.engines.ray import run_ray
from workbench.scanning.engines.tasks import RETRIES, Channel, Engine, Opener, Outcome, Supply, Task, Tasks, Worker

__all__ = [
    "RETRIES",
    "Channel",
    "Engine",
    "Opener",
    "Outcome",
    "Supply",
    "Task",
    "Tasks",
    "Worker",
    "run_inline",
    "run_local",
    "run_ray",
]

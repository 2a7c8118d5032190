"""Workers without torch that leave a file per task, and some that die, fail or wait."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from workbench.heads import StoreNotWritable


def open_worker(folder):
    return Worker(Path(folder))


def open_nothing():
    os._exit(7)


def open_badly():
    raise StoreNotWritable("no such detector here")


class Worker:
    """An argument is a verb and a name: `do`, `die`, `die-once`, `fail`, `wait`."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, argument, channel):
        verb, name = argument
        (self.folder / f"{name}.tries").open("a").write(f"{os.getpid()}\n")
        if verb == "die" or (verb == "die-once" and len(self.tries(name)) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "fail":
            raise StoreNotWritable(f"{name} has no room")
        while verb == "wait" and not channel.should_stop():
            time.sleep(0.01)
        seen = {k: os.environ.get(k) for k in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
        channel.send((name, seen))
        (self.folder / f"{name}.done").touch()

    def tries(self, name):
        return (self.folder / f"{name}.tries").read_text().split()

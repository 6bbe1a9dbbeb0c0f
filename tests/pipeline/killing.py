"""Jobs in processes of their own that die of SIGKILL at a chosen moment; no Ray."""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event

from pipeline.config import PreprocessConfig
from pipeline.flow import preprocess
from pipeline.lease import hold
from pipeline.storage import Location
from tests.pipeline.scenes import in_process

WRITING = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.listdir"}


def forks() -> ForkServerContext:
    """Processes that begin where this module has been imported, with no other thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def hold_and_wait(place: Location, holding: Event) -> None:
    """Hold a lease until killed."""
    with hold(place):
        holding.set()
        time.sleep(600)


def killed_at(config: PreprocessConfig, moment: int) -> bool:
    """Run a job that dies at its `moment`-th deed in the output; whether it lived to die."""
    job = forks().Process(target=_run, args=(config, moment))
    job.start()
    job.join(120)
    if job.exitcode not in (0, -signal.SIGKILL):
        raise AssertionError(f"the job ended with {job.exitcode}")
    return job.exitcode != 0


def _run(config: PreprocessConfig, moment: int) -> None:
    deeds = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal deeds
        if event in WRITING and str(arguments[0]).startswith(config.output):
            deeds += 1
            if deeds == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    preprocess(config, run_stage=in_process)

"""The processes of one training, found by descent from its driver; one of them killed."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import psutil

from jobs.kill_plan import Victim

WORKER = "RayTrainWorker"
OF_RAY = ("raylet", "gcs_server", "ray::TrainController")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A process that can be killed."""

    name: str
    kill: Callable[[], None]


def family(driver: psutil.Process) -> list[psutil.Process]:
    """A driver and all that descend from it; Ray's own processes have sessions of their own."""
    try:
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def candidates(driver: psutil.Process, victim: Victim) -> list[Found]:
    """The processes of a kind that this training has now; on a cluster, Ray's own are not its."""
    if victim == "worker" and os.environ.get("RAY_ADDRESS"):
        return list(_workers_of_cluster(driver.pid))
    kinds = {"worker": (f"ray::{WORKER}",), "ray": OF_RAY}
    if victim == "driver":
        return [Found(name="driver", kill=driver.kill)]
    return [
        Found(name=name.removeprefix("ray::"), kill=process.kill)
        for process in family(driver)
        if (name := _title(process)).startswith(kinds[victim])
    ]


def _title(process: psutil.Process) -> str:
    """What a process calls itself: Ray's actors write it over their command line."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    return os.path.basename(command[0]) if command else ""


def end(processes: list[psutil.Process]) -> None:
    """Kill those that still run; a number that another process has got since is left alone."""
    for process in processes:
        if process.is_running():
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _workers_of_cluster(driver_pid: int) -> Iterator[Found]:
    """Workers of the cluster's job that this driver is; each is killed by a task on its node."""
    import ray
    from ray._private import state

    from jobs.cluster import connect

    with connect():
        here = ray.util.get_node_ip_address()
        for job in state.jobs():
            if (job["DriverPid"], job["DriverIPAddress"]) != (driver_pid, here):
                continue
            of_job = ray.JobID(bytes.fromhex(job["JobID"]))
            for actor in state.actors(None, of_job, "ALIVE").values():
                if actor["ActorClassName"] == WORKER:
                    node, pid = actor["Address"]["NodeID"], actor["Pid"]
                    yield Found(
                        name=f"{WORKER} {pid} on {actor['Address']['IPAddress']}",
                        kill=partial(_kill_on_node, node, pid),
                    )


def _kill_on_node(node: str, pid: int) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from jobs.cluster import connect

    with connect():
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        kill = ray.remote(os.kill).options(num_cpus=0, scheduling_strategy=there)
        ray.get(kill.remote(pid, signal.SIGKILL))

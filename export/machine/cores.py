"""How many threads are worth starting: the physical cores this process may use, after affinity and container limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CPU_TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
# A chunk of 32 frames is cut into ever smaller pieces by more threads, and each layer waits for the slowest of them; so
# many cores serve several chunks at once rather than one faster. Eight is a rule of thumb: more than two cores were not
# at hand. On two, two instances of one thread served 0.83 of the frames of one instance of two: few stay together.
CORES_PER_INSTANCE = 8


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """How many instances of the encoder there are, and how models on a CPU use the cores."""

    instances: int  # chunks that the encoder computes at the same time; on each GPU, where there are some
    threads: int  # of each instance, and of every other model
    on_gpu: bool = False  # then threads are those of what is left for the CPU, such as JPEG

    def __str__(self) -> str:
        if self.on_gpu:
            return f"{self.instances} instance{'s' * (self.instances > 1)} on each GPU"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return threads if self.instances == 1 else f"{self.instances} instances of {threads}"


def choose_parallelism(instances: int | None = None, threads: int | None = None) -> Parallelism:
    """Share out the cores this process may use; what is given stays as it is."""
    cores = usable_cores()
    if instances is None:
        instances = max(1, cores // (threads or CORES_PER_INSTANCE)) if cores > CORES_PER_INSTANCE else 1
    return Parallelism(instances=instances, threads=threads or max(1, cores // instances))


def usable_cores() -> int:
    """Count the physical cores this process may use: hyper-threads once, affinity and cgroup quota respected, never 0.

    A quota of 1.5 CPUs counts as 1: threads beyond the quota are stopped by the kernel in the middle of an operator.
    """
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    quota = cgroup_cpus()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _siblings(cpu: int) -> str:
    try:
        return (CPU_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def cgroup_cpus(root: Path = CGROUP_ROOT, membership: Path = CGROUP_OF_PROCESS) -> float | None:
    """Return the tightest CPU quota of this process's cgroups (versions 1 and 2), in CPUs; None without a limit."""
    quotas = [quota for folder in _cgroup_folders(root, membership) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path, membership: Path) -> Iterator[Path]:
    """Yield the process's own cgroup folders and all above them: a limit may be set at any level."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root if not controllers else root / "cpu"
        folder = top / path.lstrip("/")
        yield from (above for above in (folder, *folder.parents) if above.is_relative_to(top))


def _quota(folder: Path) -> float | None:
    try:
        if (limit := folder / "cpu.max").exists():
            quota_us, period_us = limit.read_text().split()
        else:
            quota_us = (folder / "cpu.cfs_quota_us").read_text()
            period_us = (folder / "cpu.cfs_period_us").read_text()
        return int(quota_us) / int(period_us) if int(quota_us) > 0 else None
    except (OSError, ValueError):  # "max" is version 2's word for no limit
        return None

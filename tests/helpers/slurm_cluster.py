"""A real Slurm cluster of two nodes on this machine: slurmctld, munged and two slurmd, for the tests of launch/.

Each node has its own hostname, /etc/hosts and /dev/shm (mount and UTS namespaces), and shares the network and the disk.
Everything is below one temporary folder, listens on unused ports and ends by process id.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from helpers.commands import ROOT, free_port

NODES = {"n1": "127.0.0.11", "n2": "127.0.0.12"}
CPUS = 4  # of a node, as Slurm counts; the machine may have fewer
START_SECONDS = 30
ENDS = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}  # states of a job
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=15
SlurmdTimeout={timeout}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PropagateResourceLimitsExcept=ALL
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.11 Port={ports[1]} CPUs={cpus} RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.12 Port={ports[2]} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 DefaultTime=60 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=60 State=UP
"""
# KillWait and GraceTime leave the ranks time to finish a batch and save; both end as soon as the job does.


def reason_to_skip() -> str | None:
    """Why no cluster can be started here, or None; installs Debian's packages if they are missing."""
    if os.geteuid() != 0:
        return "a Slurm cluster of two nodes on one machine needs root (namespaces)"
    if subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, check=False).returncode != 0:
        return "a Slurm cluster of two nodes on one machine needs namespaces, which are forbidden here"
    programs = ("slurmctld", "slurmd", "sbatch", "munged")
    if not all(map(shutil.which, programs)):
        if shutil.which("apt-get") is None:
            return "Slurm is not installed, and there is no apt-get to install it"
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
            subprocess.run(["apt-get", "-qq", *command], env=env, capture_output=True, timeout=400, check=False)
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            return f"Slurm is not installed, and apt-get could not install it: no {', '.join(missing)}"
    return None


class SlurmCluster:
    """Two nodes, `n1` and `n2`, in the partitions `main` and `high`, whose jobs preempt those of `main`."""

    def __init__(self, slurmd_timeout: int = 20):
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.root.chmod(0o711)  # munge's socket must be reachable
        for name in ("munge", "state", "spool/n1", "spool/n2", "log"):
            (self.root / name).mkdir(parents=True)
        ports = [free_port() for _ in range(3)]
        self.config = self.root / "slurm.conf"
        self.config.write_text(
            CONFIG.format(
                host=socket.gethostname().split(".")[0], root=self.root, ports=ports, cpus=CPUS, timeout=slurmd_timeout
            )
        )
        hosts = [f"127.0.0.1 localhost {socket.gethostname()}", *(f"{ip} {name}" for name, ip in NODES.items())]
        (self.root / "hosts").write_text("\n".join(hosts) + "\n")
        names = Path("/etc/nsswitch.conf").read_text() if Path("/etc/nsswitch.conf").exists() else "hosts: files\n"
        (self.root / "nsswitch").write_text(re.sub("(?m)^hosts:.*", "hosts: files", names))  # no DNS on the nodes
        self.environment = {"SLURM_CONF": str(self.config)}
        self._daemons: dict[str, subprocess.Popen] = {}
        self._pending: dict[str, float] = {}  # since when a job waits
        try:
            self._start_munge()
            self._start("slurmctld", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            idle = dict.fromkeys(NODES, "idle")
            wait_for(lambda: {node: self.node_state(node) for node in NODES} == idle, "idle nodes", START_SECONDS)
        except BaseException as error:
            logs = self.logs()
            self.close()
            raise RuntimeError(f"the Slurm cluster does not start:\n{logs}") from error

    def _start(self, name: str, *command: str) -> None:
        """A daemon in the foreground, which dies with this process."""
        with open(self.root / "log" / name, "ab") as log:
            self._daemons[name] = subprocess.Popen(
                command,
                cwd=self.root,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        folder.chmod(0o711)
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o600)
        files = [f"--{option}={folder / option.removesuffix('-file')}" for option in ("key-file", "pid-file", "socket")]
        files += [f"--log-file={folder / 'log'}", f"--seed-file={folder / 'seed'}"]
        self._start("munged", "munged", "--foreground", "--force", *files)
        wait_for((folder / "socket").exists, "munged", START_SECONDS)

    def start_node(self, node: str) -> None:
        """Start a node, or start it again after `kill_node`; Slurm takes a moment to know of it."""
        setup = (
            'hostname "$1" && mount --bind "$2/hosts" /etc/hosts && mount --bind "$2/nsswitch" /etc/nsswitch.conf'
            ' && mount -t tmpfs -o size=2g tmpfs /dev/shm && exec slurmd -D -N "$1"'
        )
        self._start(node, "unshare", "--mount", "--uts", "sh", "-c", setup, "sh", node, str(self.root))

    def processes(self, node: str) -> list[int]:
        """Everything that runs on a node: whatever is in its mount namespace."""
        own = os.readlink(f"/proc/{self._daemons[node].pid}/ns/mnt")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.readlink(entry / "ns" / "mnt") == own:
                    found.append(int(entry.name))
            except OSError:
                continue  # ended in the meantime
        return found

    def kill_node(self, node: str) -> None:
        """End a node as a power failure would: its slurmd and all that it started."""
        while self._daemons[node].poll() is None:
            for pid in sorted(self.processes(node), key=lambda pid: pid == self._daemons[node].pid):
                _signal(pid, signal.SIGKILL)
            time.sleep(0.05)
        del self._daemons[node]

    def restart_daemon(self, node: str) -> None:
        """End a node's slurmd, not what it has started, and start it again in a namespace of its own."""
        self._daemons[node].kill()
        self._daemons.pop(node).wait()
        self.start_node(node)

    def run(self, *command: str, check: bool = True, timeout: float = 60, **env: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | self.environment | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: str | Path, folder: Path, **env: str) -> str:
        """The id of a new job, submitted in `folder`; what it prints goes to `folder`/JOB.out."""
        command = ["sbatch", "--parsable", f"--output={folder}/%j.out", *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | self.environment | env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def finish(self, job: str, timeout: float) -> str:
        """Wait until a job has ended for good, however often it is requeued; returns its state."""
        wait_for(lambda: self.release(job) or self.state(job) in ENDS, f"the end of job {job}", timeout)
        return self.state(job)

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "-h", "-N", "-n", node, "-p", "main", "-o", "%T", check=False)

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ExitCode, ..."""
        text = self.run("scontrol", "show", "job", "-o", job, check=False)
        return dict(item.split("=", 1) for item in text.split() if "=" in item)

    def state(self, job: str) -> str:
        return self.job(job).get("JobState", "")

    def release(self, job: str) -> None:
        """Let a requeued job start: Slurm holds it for two minutes, of which some seconds are needed.

        Sooner than that a node takes it for its earlier start ("job credential revoked"), and the job fails.
        """
        if self.state(job) != "PENDING":
            self._pending.pop(job, None)
        elif time.monotonic() > self._pending.setdefault(job, time.monotonic()) + 4:
            self.run("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in (self.root / "log").iterdir()
        )

    def close(self) -> None:
        if "slurmctld" in self._daemons:
            self.run("scancel", "--user=root", check=False)
        for name in [*NODES, "slurmctld", "munged"]:
            if name in NODES and name in self._daemons and self._daemons[name].poll() is None:
                self.kill_node(name)
            elif name in self._daemons:
                self._daemons[name].kill()
                self._daemons[name].wait()
        shutil.rmtree(self.root, ignore_errors=True)


def wait_for(condition: Callable[[], object], what: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout} s: {what}"
        time.sleep(0.1)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

"""A real SLURM of two nodes on this machine's loopback, for as long as the tests need one.

Daemons of Debian's packages (slurmctld, slurmd, munge), as root, without systemd and database.
Each node has its own host name in a mount and UTS namespace; network and files are shared.
"""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from helpers import REPOSITORY, child_environment, wait_until

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")

# cred_expire: a requeued job waits that long. linuxproc, task/none: no cgroups needed.
# cons_tres with 2 cores a node: jobs share the machine's processors, whatever it has.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SlurmctldTimeout=10
SlurmdTimeout=5
InactiveLimit=0
MinJobAge=600
ReturnToService=2
MailProg=/bin/true
SlurmdParameters=config_overrides
NodeName=n1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE
PartitionName=low Nodes=n1,n2 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
"""


def unavailable() -> str | None:
    """Why there can be no cluster here."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}; tests/install_slurm.sh (root, Debian) installs SLURM"
    return None if os.geteuid() == 0 else "needs root, for SLURM's daemons"


class Cluster:
    """Two nodes, n1 and n2; `stop` ends them and every process started through them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        configuration = folder / "slurm.conf"
        self.environment = child_environment(
            PATH=os.environ["PATH"] + ":/usr/sbin:/sbin", SLURM_CONF=str(configuration)
        )
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        ports = free_ports(3)
        configuration.write_text(CONFIGURATION.format(folder=folder, ports=ports))
        (folder / "hosts").write_text(
            f"127.0.0.1 localhost ctl {' '.join(NODES)} {socket.gethostname()}\n"
        )
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        (folder / "state").mkdir()
        folder.chmod(0o755)
        try:
            files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log",
                     "seed-file": "seed"}  # fmt: skip
            paths = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
            self._start("munged", "munged", "--foreground", "--force", *paths)
            self._start_on("ctl", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            idle = "sinfo -h -N -p main -t idle -o %N"
            wait_until(lambda: self.run(idle).split() == list(NODES), "the nodes are up")
        except BaseException:
            self.stop()
            raise

    def start_node(self, node: str) -> None:
        (self.folder / f"spool.{node}").mkdir(exist_ok=True)
        self._start_on(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """SIGKILL to its slurmd: to SLURM the node is dead, while its jobs' processes go on."""
        self.daemons[node].kill()
        self.daemons[node].wait()

    def run(self, command: str) -> str:
        return subprocess.run(
            command, shell=True, env=self.environment, capture_output=True, text=True, timeout=60
        ).stdout

    def submit(self, *arguments: str, **settings: object) -> str:
        """`launch/submit.sh ARGUMENTS` with settings of cluster.sh; returns the job's id."""
        done = subprocess.run(
            [REPOSITORY / "launch/submit.sh", *arguments],
            env=self.environment | {name: str(value) for name, value in settings.items()},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, BatchHost, ..."""
        words = self.run(f"scontrol --oneliner show job {job}").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, state: str) -> None:
        """Until the job is in `state`; any other end fails at once."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

        def reached() -> bool:
            now = self.job(job).get("JobState", "")
            assert now == state or now not in ends, self.job(job)
            return now == state

        wait_until(reached, f"job {job} is {state}", every=0.1)

    def stop(self) -> None:
        if "ctl" in self.daemons:
            self.run("scancel --signal=KILL --state=RUNNING; scancel --state=PENDING")
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        # What a job has started, wherever it is now, has our SLURM_CONF.
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue

    def _start_on(self, host: str, *command: str) -> None:
        script = f'hostname {host}; mount --bind {self.folder}/hosts /etc/hosts; exec "$@"'
        self._start(host, "unshare", "-m", "-u", "bash", "-c", script, host, *command)

    def _start(self, name: str, *command: str) -> None:
        # Should the tests be killed, the daemons go with them.
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports

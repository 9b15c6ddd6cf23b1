"""A private SLURM for tests: two virtual nodes with 8 fake GPUs each, on one machine, from Debian's packages.

    python tests/slurm/cluster.py up FOLDER [--accounting]     then: export SLURM_CONF=FOLDER/etc/slurm.conf
    python tests/slurm/cluster.py down FOLDER

Nothing of it leaves FOLDER or the loopback interface; no service manager, no cgroups, no device nodes are needed.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr", "sacct")
NODES = ("n1", "n2")
ADMIN_PATHS = "/usr/sbin:/usr/local/sbin:/sbin"
"""Daemons are often not on a user's PATH."""
PROBLEM_S = 240.0
"""Nothing takes this long, on however busy a machine."""

SLURM_CONF = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobs.log
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge=86400
KillWait={kill_wait}
MaxArraySize={max_array}
MessageTimeout=90
TCPTimeout=30
BatchStartTimeout=240
UnkillableStepTimeout=300
{accounting}
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]}-{ports[2]} CPUs=16 RealMemory=20000 \
Gres=gpu:h100:8 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=cpu Nodes=n[1-2] PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 MaxTime=INFINITE State=UP
"""
# cred_expire: a requeued job waits this long, 120 s by default. MinJobAge: squeue -t all still knows ended jobs.
# The four timeouts: on a busy machine their defaults (10, 2, 10, 60 s) pass, and a job is lost or a node drained.

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[3]}
SlurmUser={user}
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[4]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""


def missing(accounting: bool = False) -> list[str]:
    """Programs that are not installed."""
    return [name for name in DAEMONS + (ACCOUNTING if accounting else ()) if _which(name) is None]


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{ADMIN_PATHS}")


class Cluster:
    """The daemons below `root`, which should be a short path: sockets lie there."""

    def __init__(self, root: Path, accounting: bool = False, kill_wait: int = 5, max_array: int = 1001):
        self.root, self.accounting = root, accounting
        self.kill_wait, self.max_array = kill_wait, max_array
        self._own: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------------------------------------------------ up and down

    def up(self) -> "Cluster":
        """Start everything; both nodes are idle when this returns."""
        for name in ("etc", "run", "log", "state", "dev", "munge", *(f"spool.{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "munge").chmod(0o700)
        self._configure()
        self._munge()
        if self.accounting:
            self._database()
        self._run("slurmctld", "-c", "-f", self.conf)
        for node in NODES:
            self.start_node(node)
        self.until(lambda: self.states() == dict.fromkeys(NODES, "idle"), "idle nodes")
        return self

    def down(self) -> None:
        """End everything that `up` started, and whatever its jobs left."""
        if (self.root / "run" / "slurmctld.pid").exists():
            self._cancel_all()
        for pid in (self.root / "run").glob("*.pid"):
            _end(pid)
        for process in self._own:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _cancel_all(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.call("scancel", "--full", f"--user={getpass.getuser()}")
            self.until(lambda: not self.call("squeue", "--noheader"), "an empty queue", 15)

    def guard(self) -> None:
        """Have it all ended and removed when this process is, however that comes about: daemons would outlive it."""
        watch = [sys.executable, str(Path(__file__)), "guard", str(self.root)]
        self._guard = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)

    def unguard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()

    def __enter__(self) -> "Cluster":
        self.guard()
        try:
            return self.up()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.down()
        self.unguard()

    # ------------------------------------------------------------------------------------------------------- what it is

    @property
    def conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to see this cluster."""
        path = f"{os.environ.get('PATH', '')}:{ADMIN_PATHS}"
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return own | {"SLURM_CONF": str(self.conf), "PATH": path}

    def call(self, *command: str) -> str:
        """What a client program prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PROBLEM_S)
        if done.returncode:
            raise subprocess.SubprocessError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """Node -> state."""
        try:
            rows = self.call("sinfo", "--noheader", "--Node", "--format=%N %T").split("\n")
        except subprocess.SubprocessError:
            return {}
        return dict(row.split() for row in rows if row)

    def jobs(self) -> list[dict[str, str]]:
        """Every job that the controller remembers: id, name, state, reason, restarts."""
        keys = ("id", "name", "state", "reason")
        rows = self.call("squeue", "--noheader", "--array", "--states=all", "--format=%i|%j|%T|%r").splitlines()
        return [dict(zip(keys, row.split("|"), strict=True)) for row in rows]

    def job(self, job: str) -> dict[str, str]:
        """What scontrol says of a job."""
        line = self.call("scontrol", "--oneliner", "show", "job", job).strip().splitlines()[0]
        return dict(part.split("=", 1) for part in line.split() if "=" in part)

    def until(self, condition: Callable[[], object], what: str, seconds: float = PROBLEM_S) -> None:
        """Wait for something of the cluster."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {seconds:.0f} s; see {self.root}/log")
            time.sleep(0.1)

    # ----------------------------------------------------------------------------------------------------------- levers

    def start_node(self, node: str) -> None:
        self._run("slurmd", "-N", node, "-f", self.conf)

    def fail_node(self, node: str) -> None:
        """As if the machine had died: its jobs are lost at once, and requeued."""
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def resume_node(self, node: str) -> None:
        with contextlib.suppress(subprocess.SubprocessError):  # it may have come back by itself
            self.call("scontrol", "update", f"nodename={node}", "state=resume")
        self.until(lambda: self.states()[node] in ("idle", "mixed", "allocated"), f"node {node}")

    def empty(self) -> None:
        """Cancel all jobs and wait until they are gone."""
        self.call("scancel", "--full", f"--user={getpass.getuser()}")
        self.until(lambda: not self.call("squeue", "--noheader"), "an empty queue")
        self.until(self._idle_again, "idle nodes")

    def _idle_again(self) -> bool:
        """Bring back nodes that a test that failed has left down, or every later one would fail with it."""
        states = self.states()
        for node, state in states.items():
            if state.startswith(("down", "drain")):
                with contextlib.suppress(subprocess.SubprocessError):
                    self.call("scontrol", "update", f"nodename={node}", "state=resume")
        return states == dict.fromkeys(NODES, "idle")

    # ------------------------------------------------------------------------------------------------------ the daemons

    def _configure(self) -> None:
        ports = _free_ports(5)
        accounting = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            accounting = (
                "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
                f"AccountingStoragePort={ports[3]}\nAccountingStoragePass={self.root}/run/munge.sock"
            )
        values = {"root": self.root, "user": getpass.getuser(), "ports": ports, "accounting": accounting}
        values |= {"kill_wait": self.kill_wait, "max_array": self.max_array}
        self.conf.write_text(SLURM_CONF.format(**values))
        database = self.conf.with_name("slurmdbd.conf")
        database.touch(0o600)
        database.write_text(SLURMDBD_CONF.format(**values))
        self._database_port = ports[4]
        for gpu in range(8):
            link = self.root / "dev" / f"gpu{gpu}"
            if not link.is_symlink():
                link.symlink_to("/dev/null")  # slurmd wants a character device, and does not open it
        gres = f"NodeName=n[1-2] Name=gpu Type=h100 File={self.root}/dev/gpu[0-7]\n"
        self.conf.with_name("gres.conf").write_text(gres)
        # Detection of the cgroup version would need a service manager.
        self.conf.with_name("cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _munge(self) -> None:
        folder, run = self.root / "munge", self.root / "run"
        if not (folder / "key").exists():
            (folder / "key").touch(0o600)
            (folder / "key").write_bytes(secrets.token_bytes(128))
        options = {"socket": run / "munge.sock", "key-file": folder / "key", "pid-file": run / "munged.pid"}
        options |= {"log-file": folder / "munged.log", "seed-file": folder / "seed"}
        self._run("munged", "--force", *(f"--{key}={value}" for key, value in options.items()))

    def _database(self) -> None:
        data, run = self.root / "database", self.root / "run"
        user = getpass.getuser()
        if not data.exists():
            common = (
                "--no-defaults",
                f"--datadir={data}",
                f"--user={user}",
                "--auth-root-authentication-method=normal",
            )
            self._run("mariadb-install-db", *common, "--skip-test-db")
        options = ("--no-defaults", f"--datadir={data}", f"--user={user}", f"--socket={run}/db.sock")
        options += (f"--port={self._database_port}", "--bind-address=127.0.0.1", f"--pid-file={run}/mariadb.pid")
        self._spawn("mariadbd", *options)
        client = ("mariadb", "--no-defaults", f"--socket={run}/db.sock", f"--user={user}")
        grant = "CREATE USER IF NOT EXISTS slurm IDENTIFIED BY 'slurm'; GRANT ALL ON slurm_acct.* TO slurm;"
        self.until(lambda: _succeeds(*client, "--execute", grant), "database")
        self._run("slurmdbd", environment=self.environment)
        add = ("sacctmgr", "--immediate", "add", "cluster", "test")
        self.until(lambda: _succeeds(*add, environment=self.environment), "slurmdbd")

    def _run(self, program: str, *arguments: object, environment: dict[str, str] | None = None) -> None:
        path = _which(program)
        assert path is not None, f"{program} is not installed"
        command = [path, *map(str, arguments)]
        with open(self.root / "log" / "start.log", "ab") as log:
            subprocess.run(
                command, check=True, stdout=log, stderr=log, env=environment or self.environment, timeout=PROBLEM_S
            )

    def _spawn(self, program: str, *arguments: object) -> None:
        path = _which(program)
        assert path is not None, f"{program} is not installed"
        with open(self.root / "log" / f"{program}.log", "ab") as log:
            self._own.append(subprocess.Popen([path, *map(str, arguments)], stdout=log, stderr=log))


def _succeeds(*command: str, environment: dict[str, str] | None = None) -> bool:
    return not subprocess.run(command, env=environment, capture_output=True, timeout=PROBLEM_S).returncode


def _end(pid_file: Path, seconds: float = 20) -> None:
    """End the daemon whose pid this file holds."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    if alive(pid):
        os.kill(pid, signal.SIGKILL)
    pid_file.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, the second and third next to each other."""
    with contextlib.ExitStack() as stack:
        for first in _candidates():
            held = [stack.enter_context(socket.socket()) for _ in range(count)]
            try:
                for offset, one in enumerate(held):
                    one.bind(("127.0.0.1", first + offset))
            except OSError:
                continue
            return [first + offset for offset in range(count)]
    raise RuntimeError("no free ports")


def _candidates() -> Iterator[int]:
    """Below those that jobs take for their ranks (`environment.PORTS`) and those of outgoing connections."""
    while True:
        yield 10000 + secrets.randbelow(9900)


def main() -> None:
    action, folder, *options = sys.argv[1:]
    cluster = Cluster(Path(folder).resolve(), "--accounting" in options)
    if action == "up":
        cluster.up()
        print(f"export SLURM_CONF={cluster.conf}")
        return
    if action == "guard":
        sys.stdin.read()  # until whoever started us is gone
    cluster.down()
    if action == "guard":
        shutil.rmtree(cluster.root, ignore_errors=True)


if __name__ == "__main__":
    main()

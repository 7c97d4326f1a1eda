"""A real SLURM cluster of two nodes on this machine, from Debian's packages, without systemd.

    eval "$(python tests/slurm/cluster.py up)"      # prints `export SLURM_CONF=...`
    python tests/slurm/cluster.py down

Needs root. Everything lies in one folder (EEG_GAN_SLURM, by default eeg-gan-slurm in the temporary directory): its own
munge key and socket, slurm.conf, database of accounts and logs; ports are free ones. Outside of it are only the
packages and, while the cluster is up, two marked lines of /etc/hosts. A machine with its own slurm.conf is left alone.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "slurmdbd", "mariadb-server-core", "mariadb-client-core")
FOREIGN = (Path("/etc/slurm/slurm.conf"), Path("/etc/slurm-llnl/slurm.conf"))
HOSTS, MARK = Path("/etc/hosts"), "# eeg-gan test cluster"
NODES, CPUS, MEMORY_MB = ("n1", "n2"), 4, 8000  # of each node; more than this machine may have, as nothing binds them
CLUSTER = "eeggan"


class Unavailable(Exception):
    """Why there can be no cluster here."""


def home() -> Path:
    return Path(os.environ.get("EEG_GAN_SLURM") or Path(tempfile.gettempdir()) / "eeg-gan-slurm")


def up() -> Path:
    """Starts whatever does not run yet; returns the path for SLURM_CONF."""
    check_machine()
    install()
    folder = home()
    for name in ("", "run", "log", "state", "db", "spool", "munge", *(f"spool/{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    conf = folder / "slurm.conf"
    if not conf.exists():
        conf.write_text(slurm_conf(folder, *free_ports(3 + len(NODES))))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # never used, but else looked for
    os.environ["SLURM_CONF"] = str(conf)
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where the daemons are
    name_nodes(True)
    start_munge(folder)
    start_accounts(folder, setting(conf, "AccountingStoragePort"))
    start("slurmctld", folder, ["slurmctld", "-f", str(conf)])
    for node in NODES:
        start(f"slurmd.{node}", folder, ["slurmd", "-f", str(conf), "-N", node])
    wait("the controller", 60, lambda: done("scontrol", "ping"))
    wait("the nodes", 90, nodes_ready)
    return conf


def down() -> None:
    """Cancels all jobs, ends the daemons by their pid files and removes the folder."""
    folder = home()
    if not folder.exists():
        return
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    if alive(folder / "run" / "slurmctld.pid"):
        subprocess.run(["scancel", "--user", "root"], capture_output=True, timeout=20)
        time.sleep(1)
    for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "slurmdbd", "mariadb", "munged"):
        stop(folder / "run" / f"{name}.pid")
    name_nodes(False)
    shutil.rmtree(folder, ignore_errors=True)


def check_machine() -> None:
    for path in FOREIGN:
        if path.exists():
            raise Unavailable(f"{path} exists: this machine has a SLURM that these tests did not set up")
    if os.geteuid() != 0:
        raise Unavailable("starting SLURM's daemons needs root")


def install() -> None:
    """Debian's packages, where they are missing; their scripts must not start daemons."""
    missing = [name for name in PACKAGES if not done("dpkg", "-s", name)]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"this is no Debian, and {', '.join(missing)} are not installed")
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            found = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, timeout=900)
            if found.returncode:
                raise Unavailable(f"apt-get {command[0]} failed: {found.stderr.strip()[-300:]}")
    finally:
        if ours:
            policy.unlink()


def slurm_conf(folder: Path, control: int, accounts: int, *nodes: int) -> str:
    host = socket.gethostname().split(".")[0]
    lines = [
        f"ClusterName={CLUSTER}",
        f"SlurmctldHost={host}(127.0.0.1)",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge/socket",
        "CredType=cred/munge",
        f"SlurmctldPort={control}",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdPidFile={folder}/run/slurmd.%n.pid",
        f"SlurmdLogFile={folder}/log/slurmd.%n.log",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"StateSaveLocation={folder}/state",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "MailProg=/bin/true",
        # without systemd there are no control groups: memory and CPUs are booked, not enforced
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=500",
        "SlurmdParameters=config_overrides",  # nodes may claim more than the machine has
        "ReturnToService=2",
        "SlurmdTimeout=120",
        "SlurmctldTimeout=120",
        "MessageTimeout=60",  # a busy machine answers late
        "KillWait=60",
        "InactiveLimit=0",
        "JobRequeue=1",
        "MinJobAge=3600",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=100000",
        "SlurmctldParameters=preempt_send_user_signal",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "PropagateResourceLimits=NONE",
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={accounts}",
        f"AccountingStoragePass={folder}/munge/socket",  # connections to slurmdbd have their own setting
        "JobCompType=jobcomp/none",
    ]
    shape = f"CPUs={CPUS} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory={MEMORY_MB}"
    lines += [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.1.{i + 1} Port={nodes[i]} {shape} State=UNKNOWN"
        for i, node in enumerate(NODES)
    ]
    common = f"Nodes={','.join(NODES)} MaxTime=INFINITE DefaultTime=60 State=UP"
    lines += [
        f"PartitionName=main {common} Default=YES PriorityTier=5 PreemptMode=OFF",
        f"PartitionName=low {common} PriorityTier=1 PreemptMode=REQUEUE GraceTime=60",
        f"PartitionName=high {common} PriorityTier=10 PreemptMode=OFF",
    ]
    return "\n".join(lines) + "\n"


def start_munge(folder: Path) -> None:
    key = folder / "munge" / "key"
    if not key.exists():
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
    places = {"key-file": key, "socket": folder / "munge" / "socket", "pid-file": folder / "run" / "munged.pid"}
    places |= {"log-file": folder / "log" / "munged.log", "seed-file": folder / "munge" / "seed"}
    start("munged", folder, ["munged", "--force", *(f"--{name}={path}" for name, path in places.items())])
    wait("munge", 30, lambda: done("munge", f"--socket={places['socket']}", "-n"))


def start_accounts(folder: Path, port: str) -> None:
    """slurmdbd on a MariaDB that listens on a socket only: without accounts `sacct` knows no job."""
    data, sock = folder / "db", folder / "run" / "mariadb.sock"
    sql = ["mariadb", "--no-defaults", f"--socket={sock}", "-e"]
    if not alive(folder / "run" / "mariadb.pid"):
        if not (data / "mysql").exists():
            run("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db")
        options = [f"--datadir={data}", f"--socket={sock}", "--skip-networking", "--innodb-buffer-pool-size=64M"]
        options += [f"--pid-file={folder}/run/mariadb.pid", "--innodb-lock-wait-timeout=900"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF"]
        with open(folder / "log" / "mariadb.log", "ab") as log:
            command = ["mariadbd", "--no-defaults", "--user=root", *options]
            subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        wait("MariaDB", 90, lambda: done(*sql, "select 1"))
    run(
        *sql,
        "CREATE DATABASE IF NOT EXISTS slurm_acct;"
        " CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED BY 'slurm';"
        " GRANT ALL ON slurm_acct.* TO slurm@localhost;",
    )
    conf = folder / "slurmdbd.conf"
    conf.write_text(
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge/socket\nDbdHost=localhost\nDbdAddr=127.0.0.1\n"
        f"DbdPort={port}\nSlurmUser=root\nPidFile={folder}/run/slurmdbd.pid\nLogFile={folder}/log/slurmdbd.log\n"
        "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=slurm\nStoragePass=slurm\n"
        "StorageLoc=slurm_acct\n"
    )
    conf.chmod(0o600)
    os.environ["MYSQL_UNIX_PORT"] = str(sock)  # where its client library looks
    start("slurmdbd", folder, ["slurmdbd"])
    wait("slurmdbd", 90, lambda: done("sacctmgr", "-n", "list", "cluster"))
    if CLUSTER not in run("sacctmgr", "-n", "list", "cluster", "format=cluster").split():
        run("sacctmgr", "-i", "add", "cluster", CLUSTER)


def name_nodes(there: bool) -> None:
    """Jobs find their first node by its name."""
    lines = [line for line in HOSTS.read_text().splitlines() if MARK not in line]
    lines += [f"127.0.1.{i + 1} {node} {MARK}" for i, node in enumerate(NODES)] if there else []
    HOSTS.write_text("\n".join(lines) + "\n")  # in place: in containers this file is a mount


def nodes_ready() -> bool:
    found = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%T"], capture_output=True, text=True).stdout
    return [state in ("idle", "mixed", "allocated") for state in found.split()] == [True] * len(NODES)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for own in sockets:
            own.bind(("127.0.0.1", 0))
        return [own.getsockname()[1] for own in sockets]
    finally:
        for own in sockets:
            own.close()


def setting(conf: Path, name: str) -> str:
    return next(line.split("=", 1)[1] for line in conf.read_text().splitlines() if line.startswith(f"{name}="))


def start(name: str, folder: Path, command: list[str]) -> None:
    """Daemons that leave a pid file in run/ and go to the background by themselves."""
    if not alive(folder / "run" / f"{name}.pid"):
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if found.returncode:
            raise RuntimeError(f"{name} did not start: {found.stderr.strip()}")
        wait(f"the pid of {name}", 60, lambda: alive(folder / "run" / f"{name}.pid"))


def stop(pid_file: Path) -> None:
    if not alive(pid_file):
        return
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 20
    while alive(pid_file, pid) and time.monotonic() < end:
        time.sleep(0.1)
    if alive(pid_file, pid):
        os.kill(pid, signal.SIGKILL)


def alive(pid_file: Path, pid: int | None = None) -> bool:
    """The daemon of a pid file runs; a number that now belongs to another program does not count."""
    try:
        pid = pid or int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (OSError, ValueError):
        return False
    return pid_file.name.split(".")[0] in command


def wait(what: str, seconds: float, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come up within {seconds:.0f} s; logs are in {home()}/log")
        time.sleep(0.2)


def done(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def run(*command: str) -> str:
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if found.returncode:
        raise RuntimeError(f"{command[0]} failed: {(found.stderr or found.stdout).strip()[-500:]}")
    return found.stdout


def main(words: list[str]) -> int:
    if words not in (["up"], ["down"]):
        sys.stderr.write(__doc__)
        return 2
    try:
        if words == ["down"]:
            down()
        else:
            sys.stdout.write(f"export SLURM_CONF={up()}\n")
    except Unavailable as reason:
        sys.stderr.write(f"no SLURM cluster here: {reason}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

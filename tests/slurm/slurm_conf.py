"""The config files of the test cluster."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=500
SlurmdParameters=config_overrides
GresTypes=gpu
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
{accounting}
{settings}
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_node_port}-{last_node_port}] \
CPUs={cpus} RealMemory={memory} Gres=gpu:tiny:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE DefaultTime=10 State=UP
"""

# Short waits everywhere; a test changes one by `Cluster.configure`.
SETTINGS = {
    "SchedulerParameters": "sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0,defer",
    "InactiveLimit": "0",
    "KillWait": "10",
    "MinJobAge": "300",
    "SlurmctldTimeout": "30",
    "SlurmdTimeout": "15",
    "MessageTimeout": "20",
    "BatchStartTimeout": "10",
    "CompleteWait": "0",
    "MaxArraySize": "1001",
    "SlurmctldParameters": "",  # preempt_send_user_signal: --signal also at preemption
    "AccountingStorageEnforce": "",
}

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=slurm_acct_db
"""


def write_configs(
    folder: Path, ports: Sequence[int], settings: Mapping[str, str], cpus: int, memory: int, accounting: bool
) -> None:
    """slurm.conf, gres.conf and slurmdbd.conf; `ports` are of MariaDB, slurmdbd, slurmctld and the two nodes."""
    database, dbd, controller, *nodes = ports
    storage = ["AccountingStorageType=accounting_storage/none"]
    if accounting:
        storage = [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={dbd}",
            f"AccountingStoragePass=socket={folder}/munge.socket",  # which AuthInfo does not tell this plugin
        ]
    values = {
        "folder": folder,
        "host": socket.gethostname(),
        "controller_port": controller,
        "first_node_port": nodes[0],
        "last_node_port": nodes[1],
        "dbd_port": dbd,
        "database_port": database,
        "cpus": cpus,
        "memory": memory,
        "accounting": "\n".join(storage),
        "settings": "\n".join(f"{key}={value}" for key, value in settings.items() if value),
    }
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu Type=tiny File={folder}/gpu[0-1]\n")
    dbd_conf = folder / "slurmdbd.conf"
    dbd_conf.touch(mode=0o600)
    dbd_conf.write_text(SLURMDBD_CONF.format(**values))

"""What Slurm prints, by version: 22.05 as the one-box Slurm prints it, the others in the form of their manuals."""

from __future__ import annotations

from launcher.site.slurm_text import DELIMITER

CONFIG_22_05 = """\
Configuration data as of 2026-11-21T09:28:57
AccountingStorageEnforce = none
AccountingStorageType   = accounting_storage/none
AuthInfo                = socket=/tmp/box/munge.socket,cred_expire=6
ClusterName             = onebox
EnforcePartLimits       = NO
GresTypes               = gpu
JobSubmitPlugins        = (null)
KillWait                = 8 sec
MinJobAge               = 120 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SelectTypeParameters    = CR_CORE
SlurmctldParameters     = preempt_send_user_signal
SlurmdTimeout           = 20 sec
SLURM_VERSION           = 22.05.8
TaskPlugin              = task/none

Slurmctld(primary) at vm is UP
"""

CONFIG_20_11 = """\
Configuration data as of 2021-03-01T10:00:00
AccountingStorageEnforce = associations,limits,qos,safe
AccountingStorageType   = accounting_storage/slurmdbd
AuthInfo                = (null)
ClusterName             = old
EnforcePartLimits       = ANY
GresTypes               = gpu
KillWait                = 30 sec
MinJobAge               = 300 sec
PreemptType             = preempt/none
SelectTypeParameters    = CR_CORE_MEMORY
SlurmdTimeout           = 300 sec
SLURM_VERSION           = 20.11.9
TaskPlugin              = task/affinity,task/cgroup

Cgroup Support Configuration:
AllowedDevicesFile      = /etc/slurm/cgroup_allowed_devices_file.conf
AllowedRAMSpace         = 100.0%
ConstrainCores          = yes
ConstrainDevices        = no
ConstrainRAMSpace       = yes

Slurmctld(primary) at head is UP
"""

CONFIG_24_05 = """\
Configuration data as of 2025-02-03T04:05:06
AccountingStorageEnforce = associations,limits,qos
AccountingStorageTRES   = cpu,mem,energy,node,billing,fs/disk,vmem,pages,gres/gpu,gres/gpu:h100
AccountingStorageType   = accounting_storage/slurmdbd
AuthInfo                = (null)
ClusterName             = new
DefMemPerCPU            = 4000
EnforcePartLimits       = ALL
GresTypes               = gpu
JobSubmitPlugins        = lua
KillWait                = 30 sec
MinJobAge               = 300 sec
PreemptParameters       = send_user_signal
PreemptType             = preempt/qos
SelectTypeParameters    = CR_CORE_MEMORY
SlurmdTimeout           = 300 sec
SLURM_VERSION           = 24.05.4
TaskPlugin              = task/cgroup,task/affinity

Cgroup Support Configuration:
AllowedRAMSpace         = 100.0%
CgroupPlugin            = cgroup/v2
ConstrainCores          = yes
ConstrainDevices        = yes
ConstrainRAMSpace       = yes

MPI Plugins Configuration:
PMIxCliTmpDirBase       = (null)

Slurmctld(primary) at head1 is UP
Slurmctld(backup) at head2 is UP
"""

PARTITIONS_22_05 = """\
PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=NONE \
DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO \
MaxCPUsPerNode=UNLIMITED Nodes=n[1-3] PriorityJobFactor=1 PriorityTier=10 RootOnly=NO ReqResv=NO OverSubscribe=NO \
OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=24 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=(null) \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=24,mem=60000M,node=3,billing=24
PartitionName=low AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A DefaultTime=NONE \
DisableRootJobs=NO ExclusiveUser=NO GraceTime=15 Hidden=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO \
MaxCPUsPerNode=UNLIMITED Nodes=n[1-3] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO \
OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=24 TotalNodes=3 SelectTypeParameters=NONE JobDefaults=(null) \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=24,mem=60000M,node=3,billing=24
"""

PARTITIONS_24_05 = """\
PartitionName=h100 AllowGroups=ALL AllowAccounts=nlp,vision AllowQos=normal,long AllocNodes=ALL Default=NO QoS=p_h100 \
DefaultTime=01:00:00 DisableRootJobs=NO ExclusiveUser=NO ExclusiveTopo=NO GraceTime=120 Hidden=NO MaxNodes=4 \
MaxTime=2-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED NodeSets=h100 \
Nodes=g[001-016] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=EXCLUSIVE OverTimeLimit=NONE \
PreemptMode=REQUEUE State=UP TotalCPUs=3072 TotalNodes=16 SelectTypeParameters=NONE JobDefaults=DefMemPerGPU=204800 \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=3072,mem=32000000M,node=16,billing=3072,gres/gpu=128 \
TRESBillingWeights=CPU=1.0,Mem=0.25G
PartitionName=cpu AllowGroups=ALL DenyAccounts=guests AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A \
DefaultTime=00:30:00 DisableRootJobs=NO ExclusiveUser=NO ExclusiveTopo=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED \
MaxTime=12:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED Nodes=c[001-100] \
PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP \
TotalCPUs=12800 TotalNodes=100 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerCPU=2000 MaxMemPerNode=UNLIMITED \
TRES=cpu=12800,mem=25600000M,node=100,billing=12800
PartitionName=old AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A DefaultTime=NONE \
GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=04:00:00 Nodes=o[1-2] PriorityTier=1 RootOnly=NO OverSubscribe=NO \
PreemptMode=OFF State=DRAIN TotalCPUs=64 TotalNodes=2 DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED
"""

ASSOCIATIONS_22_05 = """\
Cluster|Account|User|Partition|Share|Priority|GrpJobs|GrpTRES|GrpSubmit|GrpWall|GrpTRESMins|MaxJobs|MaxTRES|\
MaxTRESPerNode|MaxSubmit|MaxWall|MaxTRESMins|QOS|Def QOS|GrpTRESRunMins
onebox|teaching|root|low|1|||||||||||||normal,small||
onebox|nlp|root||1|||gres/gpu=4||||2||||||normal,small||
onebox|root|root||1|||||||||||||normal,small||
"""

QOS_22_05 = """\
Name|Priority|GraceTime|Preempt|PreemptExemptTime|PreemptMode|Flags|UsageThres|UsageFactor|GrpTRES|GrpTRESMins|\
GrpTRESRunMins|GrpJobs|GrpSubmit|GrpWall|MaxTRES|MaxTRESPerNode|MaxTRESMins|MaxWall|MaxTRESPU|MaxJobsPU|MaxSubmitPU|\
MaxTRESPA|MaxJobsPA|MaxSubmitPA|MinTRES
normal|0|00:00:00|||cluster|||1.000000|||||||||||||||||
small|0|00:00:00|||cluster|||1.000000|gres/gpu=8|||||||||01:00:00|gres/gpu:fake=2,gres/gpu=2|2|||||
"""

ASSOCIATIONS = """\
Cluster|Account|User|Partition|Share|Priority|GrpJobs|GrpTRES|GrpSubmit|GrpWall|GrpTRESMins|MaxJobs|MaxTRES|\
MaxTRESPerNode|MaxSubmit|MaxWall|MaxTRESMins|QOS|Def QOS|GrpTRESRunMins
new|nlp|ann||1||||||||gres/gpu=16|||||long,normal|normal|
new|teaching|ann|cpu|1||||||||||||||normal||
"""

QOS = """\
Name|Priority|GraceTime|Preempt|PreemptExemptTime|PreemptMode|Flags|UsageThres|UsageFactor|GrpTRES|GrpTRESMins|\
GrpTRESRunMins|GrpJobs|GrpSubmit|GrpWall|MaxTRES|MaxTRESPerNode|MaxTRESMins|MaxWall|MaxTRESPU|MaxJobsPU|MaxSubmitPU|\
MaxTRESPA|MaxTRESRunMinsPA|MaxTRESRunMinsPU|MaxJobsPA|MaxSubmitPA|MinTRES
normal|0|00:00:00|||cluster|||1.000000||||||||||1-00:00:00|gres/gpu:a100=0,gres/gpu=8|4|10||||||
long|0|00:00:00|||cluster|DenyOnLimit||1.000000||||||||||7-00:00:00||||||||
p_h100|0|00:00:00|||cluster|||1.000000|gres/gpu=12|||||||||||||||||||
"""

RESERVATIONS = """\
ReservationName=summer StartTime=2026-12-01T08:00:00 EndTime=2026-12-01T20:00:00 Duration=12:00:00 \
Nodes=g[001-016],c[001-100] NodeCnt=116 CoreCnt=15872 Features=(null) PartitionName=(null) \
Flags=MAINT,IGNORE_JOBS,SPEC_NODES,ALL_NODES TRES=cpu=15872 Users=root Groups=(null) Accounts=(null) State=INACTIVE
ReservationName=course StartTime=2026-11-23T08:00:00 EndTime=2026-11-23T10:00:00 Duration=02:00:00 Nodes=c001 \
NodeCnt=1 Flags=SPEC_NODES Users=ann Accounts=(null) State=INACTIVE
"""


def sinfo(*rows: tuple[object, ...]) -> str:
    return "".join(DELIMITER.join(map(str, row)) + "\n" for row in rows)


SINFO_22_05 = sinfo(("gpu", 3, 8, 20000, "gpu:fake:4", "idle"), ("low", 3, 8, 20000, "gpu:fake:4", "idle"))
SINFO_24_05 = sinfo(
    ("h100", 10, 192, 2000000, "gpu:h100:8(S:0-1)", "alloc"),
    ("h100", 3, 192, 2000000, "gpu:h100:8(S:0-1)", "mix-"),
    ("h100", 3, 192, 2000000, "gpu:h100:8(S:0-1)", "down*"),
    ("cpu", 100, 128, 256000, "(null)", "idle"),
    ("old", 2, 32, 128000, "gpu:v100:4,gpu:a100:2", "drain"),
)

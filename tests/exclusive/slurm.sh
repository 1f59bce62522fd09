#!/bin/bash
# Runs a SLURM cluster of two nodes, n1 and n2, on this machine while standard input stays open:
#
#     tests/exclusive/slurm.sh FOLDER CPUS     prints "ready" once both nodes are idle; then set SLURM_CONF=FOLDER/slurm.conf
#
# FOLDER is new or empty. Ports, sockets and folders are private, so several clusters may run at once. However it ends, it kills
# all processes that it or its jobs started. Needs Debian's slurm-wlm and munge, but not root.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
cpus=$2
host=$(cat /proc/sys/kernel/hostname)
me=$(id -un)
export PATH=$PATH:/usr/sbin
export SLURM_CONF=$dir/slurm.conf

fail() { echo "slurm.sh: $*" >&2; tail -n 5 "$dir"/*.log >&2 2>/dev/null || true; exit 1; }

# Processes of this cluster and of its jobs, found by the SLURM_CONF that they inherit.
cluster_pids() {
    local environ pid
    for environ in /proc/[0-9]*/environ; do
        pid=${environ//[!0-9]/}
        [ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
        if tr '\0' '\n' <"$environ" 2>/dev/null | grep -qxF "SLURM_CONF=$SLURM_CONF"; then echo "$pid"; fi
    done 2>/dev/null
}
stop() {
    trap - EXIT
    local try pids
    for try in TERM KILL KILL; do
        pids=$(cluster_pids) && [ -n "$pids" ] || return 0
        kill -"$try" $pids 2>/dev/null || true
        for _ in 1 2 3 4 5 6 7 8 9 10; do [ -n "$(cluster_pids)" ] && sleep 0.2 || return 0; done
    done
}
trap stop EXIT
trap 'exit 1' HUP INT TERM

free_port() { # a port without a listener; if another copy picks the same one, its daemon fails with a message
    local port
    for _ in $(seq 100); do
        port=$((20000 + RANDOM % 12000))
        case " $taken " in *" $port "*) continue ;; esac
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
    done
    fail "no free port"
}
taken=
ctld=$(free_port) taken="$taken $ctld"
n1=$(free_port) taken="$taken $n1"
n2=$(free_port)

mkdir -p "$dir/state" "$dir/n1" "$dir/n2" "$dir/tmp_n1" "$dir/tmp_n2" "$dir/munge"
chmod 711 "$dir" "$dir/munge"
cat >"$SLURM_CONF" <<CONF
ClusterName=codinet
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
# A requeued job starts once its credentials have expired: after 5 s instead of 120.
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
# Each node needs its own folder, or the nodes' PMIx servers collide.
TmpFS=$dir/tmp_%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=pmix
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=60
KillWait=5
SchedulerParameters=sched_interval=5,batch_sched_delay=1
JobRequeue=1
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$n1 CPUs=$cpus RealMemory=1000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$n2 CPUs=$cpus RealMemory=1000
PartitionName=all Nodes=n1,n2 Default=YES State=UP MaxTime=INFINITE
CONF

( umask 077; head -c 128 /dev/urandom >"$dir/munge/key" )
munged --foreground --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --seed-file="$dir/munge/seed" --log-file="$dir/munged.log" </dev/null >"$dir/munged.out.log" 2>&1 &
for _ in $(seq 50); do [ -S "$dir/munge/socket" ] && break; sleep 0.1; done
[ -S "$dir/munge/socket" ] || fail "munged did not start"
slurmctld -D </dev/null >"$dir/slurmctld.out.log" 2>&1 &
for node in n1 n2; do slurmd -D -N $node </dev/null >"$dir/slurmd-$node.out.log" 2>&1 & done
idle=0
for _ in $(seq 120); do
    idle=$(timeout 5 sinfo -h -N -t idle -o %N 2>/dev/null | wc -l) || true
    [ "$idle" = 2 ] && break
    sleep 0.25
done
[ "$idle" = 2 ] || fail "the nodes did not become idle"
echo ready
cat >/dev/null

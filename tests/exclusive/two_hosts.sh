#!/bin/bash
# Two hosts on this machine: network namespaces connected by a veth pair, each with its own host name. Needs root.
#
#     tests/exclusive/two_hosts.sh NAME                 creates hosts NAME-a (10.213.77.1) and NAME-b (10.213.77.2), prints
#                                                       "ready", and removes them, with all their processes, once standard
#                                                       input closes
#     tests/exclusive/two_hosts.sh NAME on a|b CMD…     runs CMD on one of them
#     tests/exclusive/two_hosts.sh NAME cut|reconnect   cuts and restores the connection
#
# NAME has at most ten characters. Namespaces and addresses are private, so several pairs may exist at once.
set -euo pipefail
name=$1
case ${2:-make} in
on)
    host=$name-$3
    shift 3
    exec ip netns exec "$host" unshare --uts sh -c 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"' "$host" "$@"
    ;;
cut) ip -n "$name-b" link set dev veth down ;;
reconnect) ip -n "$name-b" link set dev veth up ;;
make)
    stop() {
        trap - EXIT
        for host in a b; do
            pids=$(ip netns pids "$name-$host" 2>/dev/null) && [ -n "$pids" ] && kill -9 $pids 2>/dev/null
            ip netns del "$name-$host" 2>/dev/null
        done
        true
    }
    trap stop EXIT
    trap 'exit 1' HUP INT TERM
    ip netns add "$name-a"
    ip netns add "$name-b"
    ip -n "$name-a" link add veth type veth peer name veth netns "$name-b"
    for host in a b; do
        ip -n "$name-$host" link set dev lo up
        ip -n "$name-$host" link set dev veth up
    done
    ip -n "$name-a" addr add 10.213.77.1/24 dev veth
    ip -n "$name-b" addr add 10.213.77.2/24 dev veth
    echo ready
    cat >/dev/null
    ;;
esac

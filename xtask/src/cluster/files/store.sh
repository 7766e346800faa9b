#!/bin/sh
# Unpacks image archives into a folder of containerd's, away from everything else on this machine.
# Arguments: the folder, then the archives.
set -e
mount -t tmpfs -o mode=755 run /run
root=$1
shift
mkdir /run/containerd
cat > /run/containerd/config.toml <<CONFIG
version = 2
root = "$root"
CONFIG
containerd -c /run/containerd/config.toml &
pid=$!
trap 'kill $pid; wait $pid' EXIT
tries=0
until ctr version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.1
done
for archive in "$@"; do
    ctr -n k8s.io images import "$archive"
done

#!/bin/sh
# The first process of a node: gives it a file system view and a cgroup root of its own, then waits for its end.
# What is mounted here is seen by nobody outside; it goes with the last process of the node.
set -e
hostname @NAME@
mount --make-rshared /
mount -t tmpfs -o mode=755 run /run
mkdir -p @STATE_INSIDE@ @TOOLS_INSIDE@ /run/netns /run/lock /run/values
mount --bind @STATE@ @STATE_INSIDE@
mount --bind @TOOLS@ @TOOLS_INSIDE@

# Daemons of a node write where they always do, into folders of this node.
own=@INSIDE@
mkdir -p $own/opt/cni/bin $own/etc $own/etc.work $own/var/tmp $own/var/log/pods $own/var/log/containers \
    $own/var/lib/kubelet $own/var/lib/containerd $own/var/lib/cni
ln -sfn /run $own/var/run
ln -sfn /run/lock $own/var/lock
mount --bind $own/var /var
mount --bind $own/opt /opt
mount -t overlay -o lowerdir=/etc,upperdir=$own/etc,workdir=$own/etc.work etc /etc
ln -sf /usr/lib/cni/* /opt/cni/bin/
rm -rf /etc/cni /etc/resolv.conf
mkdir -p /etc/cni/net.d
cp $own/pods.conflist /etc/cni/net.d/10-pods.conflist
echo 'nameserver 127.0.0.1' > /etc/resolv.conf

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
@CGROUPS@
# The kubelet and kube-proxy would set these for the whole machine; seeing the values they want, they leave them alone.
while read -r name value; do
    file=/proc/sys/$name
    [ -e "$file" ] || continue
    shown=/run/values/$(echo "$name" | tr / .)
    echo "$value" > "$shown"
    mount --bind "$shown" "$file"
done <<VALUES
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
VALUES
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
touch $own/ready
# Orphans come to the first process; one that ignores their end needs not wait for them.
trap '' CHLD
exec sleep infinity

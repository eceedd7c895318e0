#!/bin/busybox sh
# The guest's first process: puts the host's files, read-only, under a layer in memory, and goes on
# there as /run/tracer-vm.sh. On the console so that it is seen beside the kernel's own messages.
/bin/busybox --install -s /bin
export PATH=/bin
fail() {
    echo "tracer-vm: $1"
    poweroff -f
}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# What tells whether this machine's virtualisation works needs no more than this.
if grep -q tracer.probe /proc/cmdline; then
    echo "tracer-vm: probe"
    poweroff -f
fi
for module in /modules/*; do
    insmod "$module" || fail "cannot insert $module"
done
mkdir -p /host /layer /work /memory /new
share="-t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro"
mount $share host /host || fail "cannot mount the host's files"
mount $share layer /layer || fail "cannot mount the layer of programs"
mount -t tmpfs tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/layer:/host,upperdir=/memory/upper,workdir=/memory/work overlay /new ||
    fail "cannot mount the root"
cd /new || fail "there is no root"
on() { # TYPE FOLDER
    mkdir -p "$2"
    mount -t "$1" "$1" "$2" || fail "cannot mount $1 on $2"
}
on proc proc
on sysfs sys
on devtmpfs dev
on devpts dev/pts
on tmpfs dev/shm
on tmpfs run
on cgroup2 sys/fs/cgroup
on bpf sys/fs/bpf
on tracefs sys/kernel/tracing
on debugfs sys/kernel/debug
modules=lib/modules/$(uname -r)
mkdir -p "$modules"
mount $share modules "$modules" || fail "cannot mount the modules"
mount $share work /work || fail "cannot mount the work"
cp /work/guest.sh run/tracer-vm.sh || fail "there is no work"
umount /work
hostname tracer-vm
ip link set lo up
# This process itself changes its root: the kernel looks for modprobe under the root that its first
# process has.
exec switch_root /new /bin/bash /run/tracer-vm.sh

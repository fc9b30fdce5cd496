#!/bin/busybox sh
# The first program of a nested host: mounts, modules, the hypervisor's own setup, then armvm's agent on its port.
# Whatever ends it powers the machine off: armvm outside sees that, with the last lines of this console.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /sbin /usr/sbin /var/tmp /root
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONUNBUFFERED=1 TMPDIR=/tmp
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in /dev/shm /tmp /run; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
ln -s /proc/self/fd /dev/fd 2>/dev/null

fail() {
  echo "armvm lab: $*"
  poweroff -f
}

echo "armvm lab: up after $(cut -d' ' -f1 /proc/uptime) s"
while read -r module; do insmod "$module" || fail "cannot load $module"; done </lab/modules
# What these files end with in zeros was left out; as holes they take no memory.
while read -r size path; do truncate -s "$size" "/$path" || fail "cannot extend $path"; done </lab/sizes
[ -e /bin/sh ] || fail "no shell"
# shellcheck source=/dev/null
. /lab/setup
echo "armvm lab: ready for the agent after $(cut -d' ' -f1 /proc/uptime) s"
python3 -m armvm.lab.agent
fail "the agent has ended"

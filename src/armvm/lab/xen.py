"""The Xen host: Xen on the emulated machine, Debian as its control domain, and armvm in that, which makes domains.

Xen is started in the kernel's place; QEMU's guest-loader puts the control domain's kernel and initial RAM disk into
memory and says so in the device tree (Xen, docs/misc/arm/device-tree/booting.txt).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from armvm.errors import MissingError
from armvm.execution import ExecutionState
from armvm.lab.recipe import GuestRequest, HostFile, HostFiles, HostKind, HostRecipe, Task
from armvm.lab.store import cache_folder, holding, make_folder
from armvm.lab.xen_domain import BLOCK_SCRIPT, FIRMWARE, VIF_SCRIPT
from armvm.lab.xen_firmware import build_xen_firmware, firmware_path, missing_tools
from armvm.packages import install_command_for
from armvm.probe.initramfs import WANTED_MODULES
from armvm.units import GIB, MIB

_VERSIONS = {"bookworm": "4.17", "trixie": "4.20"}
"""Debian's release → its Xen."""
_RELEASE = "bookworm"
_FIRST = ExecutionState.AARCH64
"""The state without whose firmware there is no host."""
_REPORT = "/tmp/report.json"  # noqa: S108 - inside the host, where nobody else is
_CONSOLE = "/tmp/console.log"  # noqa: S108
_CONTROL_BYTES = 1280 * MIB
"""The control domain's memory: its root, armvm, and what guests write to their disks are in it."""
_MOST_GUEST_BYTES = 1024 * MIB
_KERNEL_AT, _INITRD_AT = 0x5000_0000, 0x6000_0000
"""Clear of Xen, which is put at the beginning of memory (1 GiB), and of the device tree 128 MiB behind that."""

_SETUP = """\
export PATH=/usr/lib/xen-{version}/bin:$PATH
mount -t xenfs xenfs /proc/xen || fail "the kernel does not run on Xen"
grep -q control_d /proc/xen/capabilities || fail "this is not the control domain"
mkdir -p /run/xen /run/xenstored /run/lock /var/lib/xen /var/lib/xenstored /var/log/xen
[ -e /var/run ] || ln -s /run /var/run
[ -e /var/lock ] || ln -s /run/lock /var/lock
xenstored --pid-file /run/xen/xenstored.pid || fail "xenstored does not start"
tries=0
until timeout 10 xenstore-exists / 2>/dev/null; do  # it waits for ever where nobody answers
  tries=$((tries + 1))
  [ $tries -le 20 ] || fail "xenstored does not answer"
  sleep 0.2
done
xen-init-dom0 || fail "the control domain cannot be set up"
xenconsoled --pid-file=/run/xen/xenconsoled.pid || fail "xenconsoled does not start"
"""

_BLOCK = r"""#!/bin/sh
# How this host gives a disk to a domain (xl-disk-configuration(5), script=): a block device as it is, a file by a loop
# device. Run by xl with XENBUS_PATH set.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
read_key() { xenstore-read "$XENBUS_PATH/$1"; }
case $1 in
add)
  target=$(read_key params) && access=$(read_key mode) || exit 1
  device=$target
  if [ ! -b "$target" ]; then
    device=$(losetup -f) || exit 1
    case $access in r*) losetup -r "$device" "$target" ;; *) losetup "$device" "$target" ;; esac || exit 1
    xenstore-write "$XENBUS_PATH/armvm-loop" "$device"
  fi
  xenstore-write "$XENBUS_PATH/physical-device" "$(stat -L -c %t:%T "$device")" \
    "$XENBUS_PATH/physical-device-path" "$device" "$XENBUS_PATH/hotplug-status" connected
  ;;
remove)
  device=$(read_key armvm-loop 2>/dev/null) && losetup -d "$device"
  xenstore-rm "$XENBUS_PATH/hotplug-status" 2>/dev/null
  ;;
esac
exit 0
"""

_VIF = r"""#!/bin/sh
# How this host gives a network card to a domain: with a link, and nothing behind it.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
case $1 in
add | online)
  ip link set dev "$vif" up
  xenstore-write "$XENBUS_PATH/hotplug-status" connected
  ;;
esac
exit 0
"""


class XenHost:
    """A host whose hypervisor is Xen; see ``recipe.LabHost``."""

    kind = HostKind.XEN
    states = (ExecutionState.AARCH64, ExecutionState.AARCH32)
    required = ("guest.xen-pv", "guest.console-xen")

    def prepare(self, notes: Callable[[str], None]) -> None:
        """Build the firmware of its domains, where it is not kept from before.

        That of AArch32 domains only where this machine has the compiler: few distributions package it.
        """
        cache = make_folder(cache_folder())
        wanted = [state for state in self.states if state is _FIRST or not missing_tools(state)]
        if all(firmware_path(state, cache).is_file() for state in wanted):
            return
        with holding(cache / "making"):
            for state in wanted:
                build_xen_firmware(state, cache, notes=notes)

    def recipe(self) -> HostRecipe:
        """Debian's Xen and its tools, and the firmware. Raises MissingError when that was not built."""
        version = _VERSIONS[_RELEASE]
        tools = ("xl", "xenstored", "xenconsoled", "xenconsole", "xen-init-dom0", "xenctx")
        firmware = {FIRMWARE[_FIRST]: HostFile(_built(_FIRST))}
        for state in self.states:
            if firmware_path(state, cache_folder()).is_file():
                firmware[FIRMWARE[state]] = HostFile(_built(state))
        return HostRecipe(
            kind=self.kind,
            packages=(f"xen-hypervisor-{version}-arm64", f"xen-utils-{version}", "xenstore-utils", "dmsetup"),
            keep=(
                *(f"usr/lib/xen-{version}/bin/{tool}" for tool in tools),
                *(f"usr/lib/xen-{version}/lib/*", "usr/bin/xenstore*", "etc/xen/xl.conf", "*sbin/dmsetup"),
                "boot/vmlinuz-*",
            ),
            modules=(
                *("loop", "dm_snapshot", "xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xenfs"),
                *("xen_blkback", "xen_netback"),
            ),
            kept_modules=WANTED_MODULES,
            setup=_SETUP.format(version=version),
            warm=(("xl", "info"), ("xl", "list")),
            files={
                f"etc/xen/scripts/{BLOCK_SCRIPT}": HostFile(_BLOCK.encode(), program=True),
                f"etc/xen/scripts/{VIF_SCRIPT}": HostFile(_VIF.encode(), program=True),
                **firmware,
            },
            beside={"xen": f"boot/xen-{version}-arm64"},
            release=_RELEASE,
            memory_bytes=3 * GIB,
        )

    def arguments(self, files: HostFiles) -> tuple[str, ...]:
        """Xen is started directly, at EL2."""
        xen = (
            f"dom0_mem={_CONTROL_BYTES // MIB}M console=dtuart dtuart=/pl011@9000000 sched=credit2 bootscrub=0 noreboot"
        )
        dom0 = "console=hvc0 rdinit=/init quiet panic=-1"
        kernel = f"guest-loader,addr={_KERNEL_AT:#x},kernel={_option(files.kernel)},bootargs={dom0}"
        return (
            *("-kernel", str(files.beside["xen"]), "-append", xen),
            *("-device", kernel, "-device", f"guest-loader,addr={_INITRD_AT:#x},initrd={_option(files.initrd)}"),
        )

    def problems(self, request: GuestRequest) -> tuple[str, ...]:
        """Xen takes raw disks of 512-byte sectors, and starts what there is firmware for."""
        found = [*self.probe_problems(request.state)]
        if request.format != "raw":
            found.append(
                f"{request.image}: the nested Xen host takes raw images, not {request.format}"
                " (`armvm convert` makes one of it)"
            )
        if request.sector_size != 512:
            found.append(f"the nested Xen host gives disks of 512-byte sectors, not {request.sector_size}")
        if request.memory_bytes > _MOST_GUEST_BYTES:
            found.append(
                f"{request.memory_bytes // MIB} MiB of memory: a domain of the nested Xen host has at most"
                f" {_MOST_GUEST_BYTES // MIB}"
            )
        return tuple(found)

    def boot_task(self, request: GuestRequest) -> Task:
        """A domain whose disk is the image, what it writes kept apart."""
        options = ["--state", request.state.value, "--memory", str(request.memory_bytes)]
        options += ["--timeout", f"{request.timeout_seconds:g}"]
        if request.until is not None:
            options += ["--until", request.until]
        return Task(_command("boot", *options), request.timeout_seconds)

    def probe_problems(self, state: ExecutionState) -> tuple[str, ...]:
        """A state whose firmware is not there and cannot be built here."""
        if state is _FIRST or firmware_path(state, cache_folder()).is_file():
            return ()
        missing = missing_tools(state)
        if not missing:
            return ()
        install = install_command_for(missing)
        how = f" ({install})" if install else ""
        return (f"the UEFI firmware of {state.label} domains cannot be built without {', '.join(missing)}{how}",)

    def probe_task(self, state: ExecutionState, *, profile: str, timeout_seconds: float) -> Task:
        """The whole trial of the platform, with Xen's own hotplug."""
        options = ("--state", state.value, "--profile", profile, "--report", _REPORT, "--log", _CONSOLE)
        return Task(_command("probe", *options), timeout_seconds, {"report": _REPORT, "console": _CONSOLE})


def _built(state: ExecutionState) -> bytes:
    try:
        return firmware_path(state, cache_folder()).read_bytes()
    except OSError:
        raise MissingError(
            f"the UEFI firmware of {state.label} domains of Xen was not built",
            component="xen-firmware",
            hint="armvm lab up xen",
        ) from None


def _command(*words: str) -> tuple[str, ...]:
    return ("python3", "-m", "armvm.lab.xen_domain", *words)


def _option(path: Path) -> str:
    """A file as a value in QEMU's option syntax: commas doubled."""
    return str(path.absolute()).replace(",", ",,")


HOST = XenHost()

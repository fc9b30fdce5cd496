"""Makes a Debian root tree one image's own: name, accounts, network, mounts, boot menu.

What was only the build's is taken away. Nothing is put in that assumes a platform: every network
card, every console, every disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from armvm.distribution.accounts import add_users
from armvm.distribution.grub import defaults, find_kernels, menu
from armvm.distribution.recipe import DistributionRecipe
from armvm.errors import InputError
from armvm.image.staging import StagedTree

_NETWORK = """# Every Ethernet card, whatever its name and its address.
[Match]
Type=ether

[Network]
DHCP=yes

[DHCPv4]
UseDomains=yes
"""
_HOST_KEYS = """[Unit]
Description=Make this machine's own ssh host keys
Before=ssh.service ssh.socket
ConditionPathIsReadWrite=/etc/ssh

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={keygen}

[Install]
WantedBy=ssh.service
"""
_HOST_KEYS_UNIT = "armvm-ssh-host-keys.service"
_CLOUD_HOST_KEYS = """[Unit]
Description=Make this machine's own ssh host keys where cloud-init has made none
After=cloud-init.service
Before=ssh.service ssh.socket
ConditionPathIsReadWrite=/etc/ssh
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={keygen}

[Install]
WantedBy=ssh.service
"""
_KEYGEN = (
    "/bin/sh -c 'for type in ed25519 ecdsa; do key=/etc/ssh/ssh_host_$${type}_key;"
    ' [ -s "$$key" ] || ssh-keygen -q -t "$$type" -N "" -f "$$key" || exit 1; done\''
)
"""RSA keys take long to make, and no ssh client of today asks for one. ($$ is systemd's way to write $.)"""
_CLOUD = """# What cloud-init does in an image of armvm. Its datasources are as they were: it starts anywhere.
apt:
  preserve_sources_list: true
# RSA keys take long to make, and no ssh client of today asks for one.
ssh_genkeytypes: [ed25519, ecdsa]
# The image has its boot loader from the start, on no disk that would have to be found out.
grub_dpkg:
  enabled: false
# Nobody reads them there, and they take as long as a login.
ssh:
  emit_keys_to_console: false
no_ssh_fingerprints: true
"""
_ONLINE = """# One network card that works is enough: another may have nothing at its other end.
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=60
"""
_UPDATED = """# As systemd-update-done.service(8) leaves it: what {folder} derives from /usr was made with the packages.
TIMESTAMP_NSEC={seconds}000000000
"""
_GROUP_BACKUPS = ("passwd-", "shadow-", "group-", "gshadow-", "subuid-", "subgid-")
_LEFT_BY_THE_BUILD = (
    *(f"etc/{name}" for name in _GROUP_BACKUPS),
    "etc/hosts.allow",
    "etc/hosts.deny",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "initrd.img.old",
    "vmlinuz.old",
)
_EMPTY_FOLDERS = ("var/cache/ldconfig", "run", "tmp")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """How the image's file systems are known: the root's UUID, the ESP's FAT volume id."""

    root: UUID
    esp_volume_id: int

    @property
    def esp_uuid(self) -> str:
        """The volume id as Linux writes it: ABCD-1234."""
        return f"{self.esp_volume_id >> 16:04X}-{self.esp_volume_id & 0xFFFF:04X}"


def dress(tree: StagedTree, recipe: DistributionRecipe, identity: Identity, *, timestamp: int) -> None:
    """Change ``tree`` as ``recipe`` has it.

    Raises InputError for a tree without a kernel, UsageError for a user that cannot be had.
    """
    _clean(tree, timestamp)
    write = _Writer(tree, timestamp)
    write("etc/hostname", f"{recipe.hostname}\n")
    write("etc/hosts", _hosts(recipe.hostname))
    write("etc/fstab", _fstab(identity))
    write("etc/machine-id", "")
    write("etc/systemd/network/80-ethernet.network", _NETWORK)
    write("etc/default/locale", f"LANG={recipe.locale}\n")
    tree.symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf", mtime=timestamp)
    tree.folder("boot/efi", mode=0o700, mtime=timestamp)
    tree.folder("dev", mtime=timestamp)  # the kernel's own devtmpfs comes there
    if recipe.timezone is not None:
        if tree.lookup(f"usr/share/zoneinfo/{recipe.timezone}") is None:
            raise InputError(f"there is no time zone {recipe.timezone}", subject=recipe.source)
        tree.symlink("etc/localtime", f"/usr/share/zoneinfo/{recipe.timezone}", mtime=timestamp)
        write("etc/timezone", f"{recipe.timezone}\n")
    if recipe.cloud_init:
        write("etc/cloud/cloud.cfg.d/90_armvm.cfg", _CLOUD)
        write("etc/systemd/system/systemd-networkd-wait-online.service.d/armvm.conf", _ONLINE)
    _mark_updated(tree, timestamp)
    _ssh(tree, write, timestamp, cloud_init=recipe.cloud_init)
    add_users(tree, recipe.users, timestamp=timestamp)
    write("etc/default/grub.d/armvm.cfg", defaults(recipe.kernel_arguments))
    kernels = find_kernels(tree.names("boot"))
    if not kernels:
        raise InputError("the root tree has no kernel in /boot", subject=recipe.source)
    name = os_name(tree) or "Debian GNU/Linux"
    write("boot/grub/grub.cfg", menu(kernels, identity.root, recipe.kernel_arguments, name=name))


def os_name(tree: StagedTree) -> str | None:
    """PRETTY_NAME of the tree's os-release, without what would end a quotation."""
    content = tree.read("etc/os-release", max_bytes=_MOST_BYTES) or b""
    for line in content.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return "".join(c for c in value.strip().strip("\"'") if c.isalnum() or c in " ./()-_")
    return None


class _Writer:
    def __init__(self, tree: StagedTree, timestamp: int) -> None:
        self._tree = tree
        self._time = timestamp

    def __call__(self, path: str, text: str) -> None:
        self._tree.write(path, text.encode(), mtime=self._time)


def _hosts(hostname: str) -> str:
    short = hostname.partition(".")[0]
    names = hostname if hostname == short else f"{hostname} {short}"
    return (
        f"127.0.0.1 localhost\n127.0.1.1 {names}\n\n::1 localhost ip6-localhost ip6-loopback\n"
        "ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
    )


def _fstab(identity: Identity) -> str:
    return (
        "# file system  mount point  type  options  dump  pass\n"
        f"UUID={identity.root} / ext4 errors=remount-ro 0 1\n"
        f"UUID={identity.esp_uuid} /boot/efi vfat umask=0077,nofail 0 2\n"
    )


def _mark_updated(tree: StagedTree, timestamp: int) -> None:
    """Spare every first boot the hardware database, caches and catalogues that the packages have made already.

    Without the marks systemd makes them anew (ConditionNeedsUpdate= in systemd.unit(5)), under emulation for half a
    minute. A mark is as old as /usr at least.
    """
    usr = tree.lookup("usr")
    seconds = max(timestamp, usr.mtime if usr is not None else 0)
    for folder in ("etc", "var"):
        text = _UPDATED.format(folder=f"/{folder}", seconds=seconds)
        tree.write(f"{folder}/.updated", text.encode(), mtime=seconds)


def _ssh(tree: StagedTree, write: _Writer, timestamp: int, *, cloud_init: bool) -> None:
    """Every machine that is made of the image makes host keys of its own."""
    for name in tree.names("etc/ssh"):
        if name.startswith("ssh_host_"):
            tree.remove(f"etc/ssh/{name}")
    if tree.lookup("usr/sbin/sshd") is not None:
        unit = _CLOUD_HOST_KEYS if cloud_init else _HOST_KEYS
        write(f"etc/systemd/system/{_HOST_KEYS_UNIT}", unit.format(keygen=_KEYGEN))
        link = f"etc/systemd/system/ssh.service.wants/{_HOST_KEYS_UNIT}"
        tree.symlink(link, f"/etc/systemd/system/{_HOST_KEYS_UNIT}", mtime=timestamp)


def _clean(tree: StagedTree, timestamp: int) -> None:
    """Take away logs, caches and backups: what differs from build to build, and tells of the machine that built."""
    for path in _LEFT_BY_THE_BUILD:
        tree.remove(path)
    for folder in _EMPTY_FOLDERS:
        for name in tree.names(folder):
            tree.remove(f"{folder}/{name}")
    pending = ["var/log"]
    while pending:
        folder = pending.pop()
        for name in tree.names(folder):
            path = f"{folder}/{name}"
            entry = tree.lookup(path)
            if entry is None or entry.path != path:
                continue
            if entry.is_folder:
                pending.append(path)
            elif entry.is_file:  # login wants its records to exist: their owners and modes stay
                tree.write(path, b"", mode=entry.mode & 0o7777, uid=entry.uid, gid=entry.gid, mtime=timestamp)

"""Where a guest has a driver: in its kernel, in its initial RAM disk, on its root, or nowhere; and who says so."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from armvm.disk.files import FileSystem
from armvm.errors import InputError, MissingError
from armvm.guest.bootable import BootableKernel
from armvm.guest.driver_catalogue import Driver
from armvm.guest.kernel_config import KernelConfig, Setting
from armvm.guest.module_index import ModuleIndex, module_releases
from armvm.printable import printable
from armvm.spec.verdict import Evidence


class DriverPlace(enum.Enum):
    """Where a driver is, the earliest place that counts."""

    BUILT_IN = "built into the kernel"
    IN_INITRD = "in the initial RAM disk"
    ON_ROOT = "a module on the root file system"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class DriverFinding:
    """Where a driver is. ``evidence`` is what was looked at, the deciding thing last.

    ``early`` is whether it is there before the root file system is (None: that could not be told). ``missing`` names
    modules that it needs and that are not where it is, so that it could not be loaded there. ``configured`` is what
    the kernel's configuration says of it, None without one.
    """

    driver: Driver
    place: DriverPlace
    early: bool | None
    evidence: tuple[Evidence, ...]
    missing: tuple[str, ...] = ()
    configured: Setting | None = None

    @property
    def reachable(self) -> bool | None:
        """Whether the guest can load it at all; None when that could not be told."""
        if self.place is DriverPlace.UNKNOWN:
            return None
        return self.place is not DriverPlace.ABSENT


def kernel_config(kernel: BootableKernel) -> KernelConfig | None:
    """The kernel's configuration: the file that belongs to it, else what it carries itself.

    Raises InputError or MissingError when the kernel has to be unpacked for it and cannot be.
    """
    if kernel.config is not None or kernel.kernel is None:
        return kernel.config
    config = kernel.kernel.config
    return config if config is not None and config.is_for(kernel.state) else None


def find_driver(kernel: BootableKernel, driver: Driver) -> DriverFinding:
    """Where ``kernel`` has ``driver``. It does not raise: what cannot be read makes the place unknown."""
    known = kernel.known.get(driver.id)
    if not isinstance(known, DriverFinding):
        try:
            known = _Search(kernel, driver).find()
        except (InputError, MissingError) as error:
            evidence = Evidence(kernel.kernel_where, f"could not be told: {error.message}")
            known = DriverFinding(driver, DriverPlace.UNKNOWN, None, (evidence,))
        kernel.known[driver.id] = known
    return known


class _Search:
    """One driver in one kernel: what was seen on the way, and where it ended."""

    def __init__(self, kernel: BootableKernel, driver: Driver) -> None:
        self.kernel = kernel
        self.driver = driver
        self.evidence: list[Evidence] = []
        self.missing: tuple[str, ...] = ()
        self.configured: Setting | None = None

    def find(self) -> DriverFinding:
        """The whole way: configuration, else the list of what is built in; modules; at last the kernel itself."""
        if self.kernel.state not in self.driver.states:
            return self._ends(DriverPlace.ABSENT, f"Linux has no {self.driver.title} on {self.kernel.state.label}")
        config = kernel_config(self.kernel) if self._config_decides() else self.kernel.config
        if config is not None:
            self.configured = self._setting(config)
            if self.configured is Setting.BUILT_IN:
                return self._done(DriverPlace.BUILT_IN, early=True)
            if self.driver.module is None:
                return self._done(DriverPlace.ABSENT, early=False)
            return self._module() or self._no_module(may_be_built_in=False)
        listed = self._listed_as_built_in()
        if listed:
            return self._done(DriverPlace.BUILT_IN, early=True)
        found = self._module() if self.driver.module is not None else None
        return found or self._in_image(listed=listed)

    def _config_decides(self) -> bool:
        """Whether it is worth unpacking the kernel for its configuration: not where lists of modules say enough."""
        return self.driver.module is None or (self._builtin_lists() == [] and not self._has_modules())

    def _has_modules(self) -> bool:
        name = self.driver.module or ""
        return any(index.file(name) is not None for index in self._indexes())

    def _indexes(self) -> list[ModuleIndex]:
        return [index for index in (self.kernel.initrd_modules, self.kernel.root_modules) if index is not None]

    def _builtin_lists(self) -> list[ModuleIndex]:
        return [index for index in self._indexes() if index.builtin is not None]

    def _setting(self, config: KernelConfig) -> Setting:
        for symbol in self.driver.symbols:
            setting = config.setting(symbol)
            if setting is not Setting.OFF:
                self.evidence.append(Evidence(config.where, f"CONFIG_{symbol}={setting.value}"))
                return setting
        self.evidence.append(Evidence(config.where, f"CONFIG_{self.driver.symbols[0]} is not set"))
        return Setting.OFF

    def _listed_as_built_in(self) -> bool | None:
        """Whether ``modules.builtin`` names it; None when there is no such list, or it would not be in one."""
        if self.driver.module is None:
            return None
        for index in self._builtin_lists():
            named = self.driver.module in (index.builtin or ())
            said = f"{'names' if named else 'does not name'} {self.driver.module}"
            self.evidence.append(Evidence(f"{index.where}/modules.builtin", said))
            return named
        return None

    def _module(self) -> DriverFinding | None:
        """Its module, in the initial RAM disk or on the root, where everything that it needs is there too."""
        if self._loadable_from(self.kernel.initrd_modules):
            return self._done(DriverPlace.IN_INITRD, early=True)
        self._say_other_releases(self.kernel.initramfs, self.kernel.initrd_modules)
        if self._loadable_from(self.kernel.root_modules):
            return self._done(DriverPlace.ON_ROOT, early=self._early_without_module())
        return None

    def _loadable_from(self, index: ModuleIndex | None) -> bool:
        name = self.driver.module or ""
        entry = index.file(name) if index is not None else None
        if index is None or entry is None:
            if index is not None:
                self.evidence.append(Evidence(index.where, f"no module {name}"))
            return False
        where = f"{index.files.name}, {printable(entry.path)}"
        needs = index.needs(name)
        # Neither modules.dep nor a module's own word counts what is built in.
        missing = tuple(other for other in needs.names if index.file(other) is None)
        if missing:
            self.missing = missing
            absent = printable(", ".join(missing))
            self.evidence.append(Evidence(where, f"it is there, but not {absent}, which it needs ({needs.source})"))
            return False
        self.evidence.append(Evidence(where, f"module {name}"))
        return True

    def _early_without_module(self) -> bool | None:
        """No, where everything before the root was read and no module of it found; else that is not known."""
        initramfs = self.kernel.initramfs
        if initramfs is not None and not initramfs.complete:
            return None
        config = self.kernel.config
        return None if config is not None and config.value("INITRAMFS_SOURCE") else False

    def _no_module(self, *, may_be_built_in: bool) -> DriverFinding:
        """No module that can be loaded was found: absent, where everything that could have one was read."""
        if self.configured is Setting.OFF:
            return self._done(DriverPlace.ABSENT, early=False)
        early = None if may_be_built_in else self._early_without_module()
        if may_be_built_in or early is None:
            return self._done(DriverPlace.UNKNOWN, early=early)
        if self.kernel.whole_system or self._root_says_no():
            return self._done(DriverPlace.ABSENT, early=False)
        why = "no root file system could be read" if self.kernel.root is None else "its folder of modules is elsewhere"
        return self._ends(DriverPlace.UNKNOWN, f"whether its module is on the root is not known: {why}", early=False)

    def _root_says_no(self) -> bool:
        """Whether the root could be read, with the folder that modules stand in."""
        if self.kernel.root is None:
            return False
        if self.kernel.root_modules is not None:
            return True
        self._say_other_releases(self.kernel.root, None)
        # A link to a /usr on another file system leads nowhere here.
        return self.kernel.root.lookup("/lib") is not None

    def _say_other_releases(self, files: FileSystem | None, index: ModuleIndex | None) -> None:
        if files is None or index is not None:
            return
        releases = module_releases(files)
        if releases:
            names = printable(", ".join(releases))
            wanted = printable(self.kernel.release or "of an unknown release")
            self.evidence.append(Evidence(files.name, f"modules for {names} only", f"for the kernel {wanted}"))

    def _in_image(self, *, listed: bool | None) -> DriverFinding:
        """Without a configuration: what the list of built-in modules or the kernel image itself says."""
        if listed is False:
            return self._no_module(may_be_built_in=False)
        image = self.kernel.kernel
        if image is None:
            return self._ends(DriverPlace.UNKNOWN, "the kernel could not be read")
        found = sorted(self.driver.marks & image.marks())
        if found:
            text = printable(found[0].strip(b"\0\n").decode("utf-8", "replace"))
            return self._ends(DriverPlace.BUILT_IN, f"the driver's own words stand in the kernel: {text}", early=True)
        self.evidence.append(Evidence(self.kernel.kernel_where, "no configuration, and none of the driver's own words"))
        return self._no_module(may_be_built_in=True)

    def _ends(self, place: DriverPlace, why: str, *, early: bool | None = None) -> DriverFinding:
        self.evidence.append(Evidence(self.kernel.kernel_where, why))
        return self._done(place, early=False if place is DriverPlace.ABSENT else early)

    def _done(self, place: DriverPlace, *, early: bool | None) -> DriverFinding:
        finding = DriverFinding(self.driver, place, early, tuple(dict.fromkeys(self.evidence)), self.missing)
        return replace(finding, configured=self.configured)


def find_drivers(kernel: BootableKernel, wanted: Iterable[Driver]) -> tuple[DriverFinding, ...]:
    """Where ``kernel`` has each of the ``wanted`` drivers, in their order."""
    return tuple(find_driver(kernel, driver) for driver in wanted)

"""UEFI device paths as text: what a boot entry or a console variable points at (UEFI 2.10 §10.3, §10.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from uuid import UUID

from armvm.printable import printable

_MOST_NODES = 64
_MOST_DATA_BYTES = 24

_END = 0x7F
_END_OF_INSTANCE = 0x01

SERIAL_PORT = UUID("d3987d4b-971a-435f-8caf-4967eb627241")
"""The serial port that stands on no bus (MdeModulePkg, SerialDxe)."""
VT100 = UUID("dfa66065-b419-11d3-9a2d-0090273fc14d")
"""A terminal that speaks VT100 (UEFI 2.10 §10.3.4.12)."""

_KNOWN_VENDORS = {
    UUID("837dca9e-e874-4d82-b29a-23fe0e23d1e2"): "VirtioMmio",
    SERIAL_PORT: "SerialPort",
    UUID("e0c14753-f9be-11d2-9a0c-0090273fc14d"): "VenPcAnsi",
    VT100: "VenVt100",
    UUID("7baec70b-57e0-4c76-8e87-2f9e28088343"): "VenVt100Plus",
    UUID("ad15a0d6-8bec-4acf-a073-d01de77e2d88"): "VenUtf8",
}
"""Vendor nodes of EDK2's virtual platforms (OvmfPkg VirtioMmioTransport.h, edk2 SerialDxe) and terminal types."""


def pack_node(kind: int, subtype: int, data: bytes) -> bytes:
    """One node as it is stored: type, subtype, length, data (UEFI 2.10 §10.3.1)."""
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


END_OF_PATH = pack_node(_END, 0xFF, b"")
"""What ends the last instance of a device path."""
END_OF_INSTANCE = pack_node(_END, _END_OF_INSTANCE, b"")
"""What stands between the instances of a device path."""


def format_device_path(raw: bytes) -> str:
    """A device path as the UEFI specification writes it, printable; several instances are joined by commas.

    Nodes that are not known are shown in hex (``Path(type,subtype,data)``). What is truncated, or longer than any
    device path of a machine, ends in ``...``.
    """
    instances: list[list[str]] = [[]]
    for kind, subtype, data in _nodes(raw):
        if kind == _END:
            if subtype != _END_OF_INSTANCE:
                return _joined(instances)
            instances.append([])
        else:
            instances[-1].append(_format_node(kind, subtype, data))
    instances[-1].append("...")
    return _joined(instances)


def _joined(instances: list[list[str]]) -> str:
    return ", ".join("/".join(nodes) for nodes in instances)


def _nodes(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    for _ in range(_MOST_NODES):
        if offset + 4 > len(raw):
            return
        kind, subtype, length = struct.unpack_from("<BBH", raw, offset)
        if length < 4 or offset + length > len(raw):
            return
        yield kind, subtype, raw[offset + 4 : offset + length]
        offset += length


def _format_node(kind: int, subtype: int, data: bytes) -> str:
    formatter = _FORMATTERS.get((kind, subtype))
    if formatter is not None:
        try:
            return formatter(data)
        except struct.error:
            pass  # shorter than the specification says: shown like an unknown one
    return f"Path({kind},{subtype},{shown_hex(data)})"


def shown_hex(data: bytes) -> str:
    """The first bytes in hex, with ``...`` where there are more."""
    return data[:_MOST_DATA_BYTES].hex() + ("..." if len(data) > _MOST_DATA_BYTES else "")


def _guid(data: bytes) -> UUID:
    (raw,) = struct.unpack_from("<16s", data)
    return UUID(bytes_le=raw)


def _pci(data: bytes) -> str:
    function, device = struct.unpack("<BB", data)
    return f"Pci({device:#x},{function:#x})"


def _memory_mapped(data: bytes) -> str:
    kind, start, end = struct.unpack("<IQQ", data)
    return f"MemoryMapped({kind:#x},{start:#x},{end:#x})"


def _vendor(prefix: str) -> Callable[[bytes], str]:
    def format_vendor(data: bytes) -> str:
        guid, rest = _guid(data), data[16:]
        known = _KNOWN_VENDORS.get(guid)
        if known == "VirtioMmio" and len(rest) == 8:
            return f"VirtioMmio({int.from_bytes(rest, 'little'):#x})"
        if known:
            return f"{known}({shown_hex(rest)})"
        return f"{prefix}({guid}{',' if rest else ''}{shown_hex(rest)})"

    return format_vendor


def _acpi(data: bytes) -> str:
    hardware, unique = struct.unpack_from("<II", data)
    if hardware & 0xFFFF != 0x41D0:  # not "PNP" in EISA compression
        return f"Acpi({hardware:#010x},{unique:#x})"
    product = hardware >> 16
    root = {0x0A03: "PciRoot", 0x0A08: "PcieRoot"}.get(product)
    return f"{root}({unique:#x})" if root else f"Acpi(PNP{product:04X},{unique:#x})"


def _numbers(name: str, layout: str) -> Callable[[bytes], str]:
    unpacker = struct.Struct(layout)

    def format_numbers(data: bytes) -> str:
        return f"{name}({','.join(f'{number:#x}' for number in unpacker.unpack_from(data))})"

    return format_numbers


def _mac(data: bytes) -> str:
    address, kind = struct.unpack("<32sB", data)
    # Ethernet (types 0 and 1) has 6 significant bytes of the 32.
    return f"MAC({address[:6].hex() if kind <= 1 else address.hex()},{kind:#x})"


def _ipv4(data: bytes) -> str:
    local, remote, _, _, protocol, static = struct.unpack_from("<4s4sHHHB", data)
    origin = "Static" if static else "DHCP"
    return f"IPv4({_dotted(remote)},{_PROTOCOLS.get(protocol, hex(protocol))},{origin},{_dotted(local)})"


def _ipv6(data: bytes) -> str:
    from ipaddress import IPv6Address

    local, remote, _, _, protocol, origin = struct.unpack_from("<16s16sHHHB", data)
    how = {0: "Static", 1: "StatelessAutoConfigure", 2: "StatefulAutoConfigure"}.get(origin, hex(origin))
    return f"IPv6({IPv6Address(remote)},{_PROTOCOLS.get(protocol, hex(protocol))},{how},{IPv6Address(local)})"


_PROTOCOLS = {6: "TCP", 17: "UDP"}


def _dotted(address: bytes) -> str:
    return ".".join(map(str, address))


def _uart(data: bytes) -> str:
    _, baud, bits, parity, stop = struct.unpack("<IQBBB", data)
    parity_name = "DNEOMS"[parity] if parity < 6 else "x"
    stop_name = ("D", "1", "1.5", "2")[stop] if stop < 4 else "x"
    return f"Uart({baud or 'DEFAULT'},{bits or 'D'},{parity_name},{stop_name})"


def _nvme(data: bytes) -> str:
    namespace, identifier = struct.unpack("<I8s", data)
    return f"NVMe({namespace:#x},{identifier[::-1].hex('-').upper()})"


def _hard_drive(data: bytes) -> str:
    number, start, size, signature, _, kind = struct.unpack("<IQQ16sBB", data)
    if kind == 2:
        return f"HD({number},GPT,{UUID(bytes_le=signature)},{start:#x},{size:#x})"
    if kind == 1:
        return f"HD({number},MBR,0x{signature[3::-1].hex()},{start:#x},{size:#x})"
    return f"HD({number},{kind},{signature.hex()},{start:#x},{size:#x})"


def _file(data: bytes) -> str:
    return printable(data.decode("utf-16-le", "surrogatepass" if len(data) % 2 == 0 else "replace").split("\0")[0])


def _uri(data: bytes) -> str:
    return f"Uri({printable(data.decode(errors='replace'))})"


def _named_guid(name: str) -> Callable[[bytes], str]:
    return lambda data: f"{name}({_guid(data)})"


_FORMATTERS: dict[tuple[int, int], Callable[[bytes], str]] = {
    (1, 1): _pci,
    (1, 3): _memory_mapped,
    (1, 4): _vendor("VenHw"),
    (1, 5): _numbers("Ctrl", "<I"),
    (2, 1): _acpi,
    (3, 1): _numbers("Ata", "<BBH"),
    (3, 2): _numbers("Scsi", "<HH"),
    (3, 5): _numbers("USB", "<BB"),
    (3, 10): _vendor("VenMsg"),
    (3, 11): _mac,
    (3, 12): _ipv4,
    (3, 13): _ipv6,
    (3, 14): _uart,
    (3, 15): _numbers("UsbClass", "<HHBBB"),
    (3, 17): _numbers("Unit", "<B"),
    (3, 18): _numbers("Sata", "<HHH"),
    (3, 23): _nvme,
    (3, 24): _uri,
    (3, 26): _numbers("SD", "<B"),
    (3, 29): _numbers("eMMC", "<B"),
    (4, 1): _hard_drive,
    (4, 2): _numbers("CDROM", "<IQQ"),
    (4, 3): _vendor("VenMedia"),
    (4, 4): _file,
    (4, 6): _named_guid("FvFile"),
    (4, 7): _named_guid("Fv"),
}
"""Type and subtype to text (UEFI 2.10 §10.6.1.6, table 10-67)."""

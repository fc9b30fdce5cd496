"""Makes ``kubevirt_schema.json``: the fields of a KubeVirt VirtualMachine, as its generated API client declares them.

    npm pack @kubevirt-ui-ext/kubevirt-api@1.7.0        (Apache-2.0; generated from KubeVirt's OpenAPI description)
    tar xzf kubevirt-ui-ext-kubevirt-api-1.7.0.tgz
    python tests/tools/kubevirt_schema.py package/dist/kubevirt/index.d.ts

Only names and types are kept, as a JSON Schema in which nothing unknown is allowed. What a machine of armvm never has
(affinity, probes, the cloud-init sources …) is let through as it is.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_suffix(".json")
SOURCE = "@kubevirt-ui-ext/kubevirt-api 1.7.0 on npm, Apache-2.0"
ROOT = "V1VirtualMachine"
_INTERFACE = re.compile(r"^interface (\w+) \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^    (?:readonly )?'?([\w-]+)'?(\?)?: (?:(.+);|\{)$", re.MULTILINE)
_KEPT = re.compile(
    r"V1(VirtualMachine|VirtualMachineSpec|VirtualMachineInstanceTemplateSpec|VirtualMachineInstanceSpec|DomainSpec"
    r"|Devices|Disk|DiskTarget|BlockSize|CustomBlockSize|Interface|Port|Network|Volume|ContainerDiskSource|Firmware"
    r"|Bootloader|EFI|CPU|Memory|Machine|Features|FeatureState|Watchdog|I6300ESBWatchdog|TPMDevice|Rng"
    r")"
)


def schema_of(declarations: str) -> dict[str, Any]:
    """The JSON Schema of what the TypeScript declarations say."""
    interfaces = {name: body for name, body in _INTERFACE.findall(declarations) if _KEPT.fullmatch(name)}
    definitions = {name: _object(body, interfaces) for name, body in sorted(interfaces.items())}
    return {"$comment": SOURCE, "$ref": f"#/$defs/{ROOT}", "$defs": definitions}


def _object(body: str, interfaces: dict[str, str]) -> dict[str, Any]:
    fields = _FIELD.findall(body)
    required = [name for name, optional, _ in fields if not optional]
    return {
        "type": "object",
        "properties": {name: _type(kind, interfaces) for name, _, kind in fields},
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _type(kind: str, interfaces: dict[str, str]) -> Any:
    plain = {"string": {"type": "string"}, "number": {"type": "number"}, "boolean": {"type": "boolean"}}
    if not kind:  # a map, on lines of its own
        return {"type": "object"}
    element = re.fullmatch(r"Array<(.+)>|(.+)\[\]", kind)
    if element is not None:
        return {"type": "array", "items": _type(element[1] or element[2], interfaces)}
    if kind in interfaces:
        return {"$ref": f"#/$defs/{kind}"}
    return plain.get(kind, True)


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema_of(Path(sys.argv[1]).read_text("utf-8")), indent=1) + "\n", "utf-8")

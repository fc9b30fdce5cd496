"""Foreign XML as elements: no entities, no document types, and limits on size, depth and number."""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from armvm.errors import InputError
from armvm.printable import printable

_MOST_BYTES = 1 << 20
_MOST_DEPTH = 40
_MOST_ELEMENTS = 20_000


def parse_xml(content: bytes, *, subject: str) -> Element:
    """The root element; names in a namespace as ``{URI}name``. Raises InputError, with the line, for anything else."""
    if len(content) > _MOST_BYTES:
        raise InputError("too large for a description of a machine", subject=subject, found=f"{len(content)} bytes")
    builder = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    depth = count = 0

    def refuse(what: str) -> InputError:
        return InputError(what, subject=f"{subject}, line {parser.CurrentLineNumber}")

    def declares(*_: object) -> None:
        raise refuse("XML with a document type or entities of its own, which no description of a machine needs")

    def name_of(name: str) -> str:
        return f"{{{name}" if "}" in name else name

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > _MOST_DEPTH or count > _MOST_ELEMENTS:
            raise refuse("XML nested too deeply, or of too many elements")
        builder.start(name_of(name), {name_of(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name_of(name))

    parser.StartDoctypeDeclHandler = declares
    parser.EntityDeclHandler = declares
    parser.ExternalEntityRefHandler = declares  # type: ignore[assignment] # it raises, whatever it is to return
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise InputError(
            f"no XML: {printable(expat.ErrorString(error.code))}", subject=f"{subject}, line {error.lineno}"
        ) from error
    except (ValueError, LookupError) as error:  # an encoding that Python does not have
        raise InputError(f"no XML: {printable(str(error))}", subject=subject) from error
    return builder.close()

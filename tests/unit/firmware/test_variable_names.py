from __future__ import annotations

from uuid import UUID

import pytest

from armvm.errors import UsageError
from armvm.firmware.variable_names import (
    IMAGE_SECURITY_DATABASE,
    SHIM,
    find_key,
    format_attributes,
    known_variable,
    parse_attributes,
    parse_vendor,
)
from armvm.firmware.variables import Attributes, Variable, VariableStore
from armvm.guid import EFI_GLOBAL_VARIABLE

OWN = UUID("11111111-2222-3333-4444-555555555555")
OTHER = UUID("99999999-2222-3333-4444-555555555555")
STORE = VariableStore(
    (Variable("Mine", OWN, b"1"), Variable("Both", OWN, b"1"), Variable("Both", OTHER, b"1"), Variable("db", OWN, b"1"))
)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Timeout", ("Timeout", EFI_GLOBAL_VARIABLE)),
        ("Boot00AF", ("Boot00AF", EFI_GLOBAL_VARIABLE)),
        ("dbx", ("dbx", IMAGE_SECURITY_DATABASE)),
        ("db", ("db", OWN)),  # the only one of that name
        ("Mine", ("Mine", OWN)),
        (f"{OTHER}:Both", ("Both", OTHER)),
        ("shim:New", ("New", SHIM)),
        (f"With-dash-{OWN}", ("With-dash", OWN)),
        (f"{str(OWN).upper()}:a:b", ("a:b", OWN)),
    ],
)
def test_what_people_write(text: str, key: tuple[str, UUID]) -> None:
    assert find_key(STORE, text) == key


def test_a_vendor_that_is_given_counts_and_the_name_is_as_it_stands() -> None:
    assert find_key(STORE, "shim:New", OWN) == ("shim:New", OWN)


@pytest.mark.parametrize(("text", "why"), [("Both", "several vendors"), ("New", "whose it would be"), ("x:y", "whose")])
def test_what_is_not_clear(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        find_key(STORE, text)


def test_vendors() -> None:
    assert parse_vendor("global") == EFI_GLOBAL_VARIABLE
    assert parse_vendor(str(OWN)) == OWN
    for text in ("nobody", "{" + str(OWN) + "}", ""):
        with pytest.raises(UsageError, match="not a vendor"):
            parse_vendor(text)


def test_attributes() -> None:
    assert parse_attributes("0x27") == 0x27
    assert parse_attributes("NV, bs,at") == 0x23
    assert format_attributes(Attributes(0x107)) == "non volatile, boot service, runtime, 0x100"
    assert format_attributes(Attributes(0)) == "no attributes"
    for text in ("-1", "nv,xx", "", str(1 << 32)):
        with pytest.raises(UsageError, match="not attributes"):
            parse_attributes(text)


def test_known_variables_have_the_attributes_that_edk2_gives_them() -> None:
    for name, attributes in (("PK", 0x27), ("dbx", 0x27), ("SecureBootEnable", 3), ("Boot0001", 7), ("MokList", 3)):
        known = known_variable(name)
        assert known is not None
        assert known[1] == attributes
    assert known_variable("Boot1") is None

"""The check of what boots: whether the removable path alone, with an empty variable store, leads to a kernel."""

from __future__ import annotations

from armvm.guest.bootchain import BootChain
from armvm.image.contents import ImageContents
from armvm.spec.judgement import Judgement, not_applicable, unknown, worst


def check_self_contained(contents: ImageContents, chain: BootChain) -> Judgement:
    """image.self-contained-boot: what the boot program looks for is on the image, down to the kernel."""
    if not any(esp.volume for esp in contents.esps):
        return not_applicable("image.removable-path", "There is no boot program")
    if chain.problem is not None:
        return unknown(f"could not be determined: {chain.problem.message}")
    if not contents.boot_programs:
        return not_applicable("image.removable-path", "There is no boot program")
    if not chain.judgements:
        return not_applicable("image.efi-application", "The boot program cannot be read")
    judgements = list(chain.judgements.values())
    return worst(judgements, lambda good: " ".join(dict.fromkeys(judgement.message for judgement in good)))

"""Boots two machines of one image at once, and says what each calls itself: python examples/two_machines.py IMAGE."""

import asyncio
import sys

import armvm


async def boot(name: str, image: str) -> str:
    """Create a machine, boot it to its login prompt, and delete it."""
    async with await armvm.AsyncMachine.create(name, image, vcpus=1) as machine:
        await machine.start()
        await machine.expect(r"login:", timeout_seconds=300)
        return f"{machine.name} is up"


async def main(image: str) -> None:
    """Both at once."""
    for line in await asyncio.gather(boot("first", image), boot("second", image)):
        print(line)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

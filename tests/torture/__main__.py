"""Strike every command that writes, again and again: ``python -m tests.torture --minutes 60``, or ``make torture``.

A trial starts a command in a folder of its own and strikes it at one of the calls that change a file: it is killed
before the call or with half of it done, or the disk fails from there on. Then the same command is given again, on a
healthy disk. Its result must be that of an undisturbed run, byte for byte; what is left out of the comparison stands at
the end. An error must be one line. What failed is kept, with its state before and after the second command.
``table.txt`` counts while it runs; Ctrl-C or SIGTERM ends it after the trials under way, with the same table.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from tests.torture.campaign import KINDS, Campaign, Place
from tests.torture.commands import COMMANDS
from tests.torture.compare import RULES


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("--seed", type=int, default=0, help="of the order of the places")
    parser.add_argument(
        "--place", nargs="+", default=[], metavar="KIND:N", help=f"these alone; {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("torture"), help="folder, is emptied [default: torture]"
    )
    asked = parser.parse_args()
    began = time.monotonic()
    names = asked.only or list(COMMANDS)
    slots = 1 if asked.place else len(os.sched_getaffinity(0))
    with Campaign(asked.out, names, asked.seed, slots, lambda text: print(text, flush=True)) as campaign:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: campaign.stop())
        campaign.prepare()
        if asked.place:
            for name in names:
                for kind, _, at in (text.partition(":") for text in asked.place):
                    campaign.trial(campaign.slots[0], name, Place(kind, int(at)))
        else:
            campaign.run(60 * asked.minutes - (time.monotonic() - began))
        print("\n".join(["", *campaign.table(), "", "not compared byte for byte:"]))
        print("\n".join(f"  {name}: {why}" for name, why in RULES.items()))
        print("\n".join(campaign.failures))
    return bool(campaign.failures)


if __name__ == "__main__":
    sys.exit(main())

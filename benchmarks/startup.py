"""How long `infold serve` takes until it is ready: the first time, and later.

Ready is the first 200 of `/readyz` that does not say degraded. The first start makes the data directory, the
database in it and its tables; later ones find them. The unit beside it, doing nothing, is the start of the scripted
provider: an interpreter, uvicorn and one route. Byte code is compiled before anything is measured.
"""

import argparse
import sys

import common
from common import console, median
from data import Json
from rich.table import Table
from servers import infold_server, provider_server, workspace

FIRST_AIM, LATER_AIM = 5.0, 2.0  # seconds
QUIET_SECONDS = 0.35  # doing nothing, on a quiet machine

EXAMPLES = """\
  python benchmarks/startup.py --quick
  python benchmarks/startup.py --repeats 10 --save"""


def measure(given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each start, by kind."""
    seconds: dict[str, list[float]] = {"doing nothing": [], "first": [], "later": []}
    with common.progress() as bar, workspace() as warm:
        task = bar.add_task("starting", total=given.repeats * (1 + (not given.direct) * (1 + given.later)))
        provider = provider_server(warm)
        if not given.direct:
            once = infold_server(warm, provider.url, given.serve)
            once.start()  # byte code and the disk's cache
            once.stop()
        for _ in range(given.repeats):
            seconds["doing nothing"].append(provider.start())
            bar.advance(task)
            try:
                with workspace(given.keep) as folder:
                    for number in range(0 if given.direct else 1 + given.later):
                        infold = infold_server(folder, provider.url, given.serve)
                        try:
                            seconds["later" if number else "first"].append(infold.start())
                        finally:
                            infold.stop()
                        bar.advance(task)
            finally:
                provider.stop()
    return seconds


def facts(seconds: dict[str, list[float]]) -> Json:
    return {
        name: {"n": len(values), "median_s": round(median(values), 3), "max_s": round(max(values), 3)}
        for name, values in seconds.items()
        if values
    }


def main() -> int:
    parser = common.arguments(__doc__ or "", EXAMPLES)
    parser.add_argument("--repeats", type=int, default=5, help="data directories to make (default 5)")
    parser.add_argument("--later", type=int, default=2, help="later starts of each (default 2)")
    given = parser.parse_args()
    if given.quick:
        given.repeats, given.later = 1, 1
    about = common.header("startup", "from the command to ready", given, N=given.repeats)
    found = facts(measure(given))
    table = Table()
    for head in ("start", "N", "median s", "max s", "aim s"):
        table.add_column(head, justify="left" if head == "start" else "right")
    aims = {"first": FIRST_AIM, "later": LATER_AIM}
    for name, row in found.items():
        aim = f"{aims[name]:.0f}" if name in aims else ""
        table.add_row(name, str(row["n"]), f"{row['median_s']:.2f}", f"{row['max_s']:.2f}", aim)
    console.print(table)
    if given.save:
        common.save(about, found)
    busy = min(4.0, max(1.0, found["doing nothing"]["median_s"] / QUIET_SECONDS))
    slack = 3 * busy if given.quick else 1  # a slow or busy machine starts anything late
    held = {
        f"{n} start at most {a * slack:.0f} s": found[n]["median_s"] <= a * slack for n, a in aims.items() if n in found
    }
    return common.verdict(given, held)


if __name__ == "__main__":
    sys.exit(main())

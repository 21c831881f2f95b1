"""``python -m tests.boards [NAME …]``: builds the imitations, takes the first steps in them."""

from __future__ import annotations

import argparse
import json
import sys

from tests.boards import page, roots, steps
from tests.boards.declared import BOARDS


def main() -> int:
    """Run the boards that are named, or all; the exit code is 1 where a step fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(b.name for b in BOARDS))
    parser.add_argument("--page", action="store_true", help="write the page from the last runs")
    parser.add_argument(
        "--from",
        dest="first",
        metavar="TEXT",
        help="go on in what was built, at the first command with this text in it",
    )
    given = parser.parse_args()
    known = {board.name: board for board in BOARDS}
    strange = [name for name in given.names if name not in known]
    if strange:
        parser.error(f"{strange[0]}: expected one of {', '.join(known)}")
    boards = [known[name] for name in given.names or known]
    reason = None if given.page else roots.prepare_machine(boards)
    if reason:
        print(f"make boards {reason}", file=sys.stderr)
        return 2
    failed = False
    for board in () if given.page else boards:
        name, first = board.name, 0
        if given.first:
            try:
                first = steps.place(steps.commands(board.section), given.first)
            except ValueError as error:
                parser.error(str(error))
        print(f"{name}: {'going on' if first else 'building'}", flush=True)
        root = roots.renew(board) if first else roots.build(board)
        steps.carry_out(board, root, page.log(board), first)
        result = page.result(board)
        for step in result["steps"]:
            print("{seconds:5d} s, exit code {code}: {command}".format(**step), flush=True)
        failed |= not page.passed(board, result)
        page.keep({name: result})
    if given.page:
        page.keep({name: page.result(board) for name, board in known.items() if page.ran(board)})
    results = json.loads(page.RESULTS.read_text())
    page.PAGE.write_text(page.page(results), encoding="utf-8")
    print(page.PAGE)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

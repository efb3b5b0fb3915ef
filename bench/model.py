"""What the real model's tests cost to search: `python bench/model.py [TEST@ERA]...` (default: large ones of the library).

Each is searched with all reductions, with dead locals alone, and with none, interleaved; figures are medians. "words" is the
packed state in words of 8 bytes; "bytes" is all that a stored state takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

from userfault.check import engine, native
from userfault.check.layout import Layout
from userfault.check.result import Options, Result
from userfault.litmus import compile_test, load

LARGE = [
    "R12-grandchild@v6.8",
    "R13-migrate@v6.8",
    "R10-split@v6.8",
    "matrix/huge/split+fork@v6.8",
    "matrix/page/fork+fork+reclaim@v6.8",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=LARGE, metavar="TEST@ERA")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--max-states", type=int, default=20_000_000)
    args = parser.parse_args()
    if not native.available():
        raise SystemExit(native.why_missing())
    base = Options(max_states=args.max_states, max_bytes=12 << 30, liveness=False)
    modes = {
        "all reductions": base,
        "all but pools": replace(base, pools=False),
        "dead locals": replace(base.unreduced(), dead_locals=True),
        "dead locals, 2 cores": replace(base.unreduced(), dead_locals=True, threads=2),
        "no reductions": base.unreduced(),
    }
    print(
        f"{'test':<40} {'options':<21} {'verdict':<8} {'states':>11} {'words':>5} {'bytes':>6} {'search s':>9} {'states/s':>9}"
        f" {'compile s':>9}"
    )
    for each in args.tests:
        name, _, era = each.rpartition("@")
        started = time.perf_counter()
        program = compile_test(load(name), era)
        compiled = time.perf_counter() - started
        found: dict[str, list[Result]] = {mode: [] for mode in modes}
        for _ in range(args.runs):
            for mode, options in modes.items():
                found[mode].append(engine.run(program, options))
        for mode, options in modes.items():
            result = found[mode][0]
            seconds = statistics.median(run.seconds for run in found[mode])
            words = Layout(program, options.dead_locals).words
            print(
                f"{each:<40} {mode:<21} {result.verdict:<8} {result.states:>11,} {words:>5} {result.bytes_per_state:>6.1f}"
                f" {seconds:>9.3f} {result.states / seconds:>9,.0f} {compiled:>9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

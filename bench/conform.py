"""Operations per second of `userfault conform`, by profile, and where the time goes: the model, the kernel's side, the comparison.

python bench/conform.py [OPERATIONS]        (as root, on a quiet machine)
"""

from __future__ import annotations

import platform
import statistics
import sys
import time

from userfault.conform.compare import compare
from userfault.conform.drive import agent_for, steps_of, surroundings
from userfault.conform.profiles import PROFILES

ROUNDS = 5


def main() -> None:
    operations = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(
        f"{platform.machine()}, {platform.release()}, Python {platform.python_version()}; medians of {ROUNDS}, one core"
    )
    print(f"{'profile':8s} {'ops/s':>8s} {'model':>8s} {'kernel and comparison':>24s}")
    for name, profile in PROFILES.items():
        rates, shares = [], []
        with surroundings(profile):
            for number in range(ROUNDS):
                count = max(1, operations // profile.length)
                models, others = 0.0, 0.0
                for at in range(count):
                    started = time.perf_counter()
                    steps = steps_of(profile, 100 + number, at)
                    between = time.perf_counter()
                    compare(agent_for(name), profile, steps)
                    models += between - started
                    others += time.perf_counter() - between
                rates.append(count * profile.length / (models + others))
                shares.append(models / (models + others))
        share = statistics.median(shares)
        print(f"{name:8s} {statistics.median(rates):8.0f} {share:8.0%} {1 - share:24.0%}")


if __name__ == "__main__":
    main()

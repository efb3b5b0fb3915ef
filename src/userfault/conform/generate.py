"""Random sequences. A profile says which operations come how often; most arguments are such that something happens."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .operations import Op
from .world import HUGE_PAGES, PAGE, Window

BASE = 0x2000_0000_0000


@dataclass(frozen=True)
class Profile:
    """What sequences are like. length: operations in one; weights: how often each operation comes.

    swap: the machine must have swap on a RAM disk.
    """

    name: str
    doc: str
    window: Window
    length: int
    weights: dict[str, int] = field(default_factory=dict)
    swap: bool = False


MOVES = Profile(
    "moves",
    "small pages in one process: mappings, registrations, touches and moves, across a border of page tables",
    Window(BASE, HUGE_PAGES - 24, 40),
    120,
    {"mmap": 6, "munmap": 3, "load": 14, "store": 20, "dontneed": 8, "register": 10, "unregister": 3, "move": 30},
)
FILLS = Profile(
    "fills",
    "everything that userfaultfd does to small pages of one process, with protections, guards and advice",
    Window(BASE, HUGE_PAGES - 20, 32),
    120,
    {
        "mmap": 5,
        "munmap": 2,
        "load": 12,
        "store": 18,
        "dontneed": 6,
        "register": 12,
        "unregister": 3,
        "move": 14,
        "copy": 12,
        "zeropage": 6,
        "poison": 4,
        "writeprotect": 12,
        "mprotect": 6,
        "guard_install": 3,
        "guard_remove": 3,
        "dontdump": 1,
        "dodump": 1,
    },
)
FORKS = Profile(
    "forks",
    "small pages that processes share after forks: copy on write, what is exclusive, what may move",
    Window(BASE, HUGE_PAGES - 12, 20),
    120,
    {
        "mmap": 4,
        "munmap": 2,
        "load": 14,
        "store": 30,
        "dontneed": 5,
        "register": 6,
        "move": 20,
        "copy": 4,
        "zeropage": 2,
        "poison": 1,
        "writeprotect": 4,
        "mprotect": 4,
        "guard_install": 1,
        "dontfork": 1,
        "dofork": 1,
        "wipeonfork": 1,
        "keeponfork": 1,
        "fork": 8,
        "exit": 6,
    },
)
SWAPS = Profile(
    "swaps",
    "the same with swap: entries that are exclusive or not, moved, shared, write-protected",
    Window(BASE, HUGE_PAGES - 12, 20),
    120,
    {**FORKS.weights, "pageout": 16, "load": 24},
    swap=True,
)
PROFILES = {each.name: each for each in (MOVES, FILLS, FORKS, SWAPS)}


class Generator:
    """Draws operations for a profile; what it knows of the state is what it asked for, not what came of it."""

    def __init__(self, profile: Profile, rng: random.Random) -> None:
        self.profile, self.rng = profile, rng
        self.names = list(profile.weights)
        self.totals = list(profile.weights.values())
        self.processes = [0]
        self.main = rng.choice((0, 0, 1, 2))

    def sequence(self) -> list[Op]:
        """A prologue that maps most of the window, and then random operations."""
        window = self.profile.window
        first, pages = window.first, window.pages
        out = [
            Op(0, "mmap", (first * PAGE, (pages // 2 - 1) * PAGE, 3)),
            Op(0, "mmap", ((first + pages // 2) * PAGE, (pages // 2 - 1) * PAGE, 3)),
            Op(0, "register", (self.main, (first + pages // 2) * PAGE, (pages // 2 - 1) * PAGE, 1)),
        ]
        while len(out) < self.profile.length:
            out.append(self.draw())
        return out

    def draw(self) -> Op:
        name = self.rng.choices(self.names, self.totals)[0]
        if name == "fork":
            return self.fork()
        if name == "exit" and len(self.processes) > 1:
            return Op(self.processes.pop(self.rng.randrange(1, len(self.processes))), "exit", ())
        if name == "exit":
            name = "load"
        draw = getattr(self, f"draw_{name}", self.span)
        args: tuple[int, ...] = draw()
        return Op(self.rng.choice(self.processes), name, args)

    def fork(self) -> Op:
        """A new process, unless there are enough."""
        free = [number for number in range(1, 4) if number not in self.processes]
        parent = self.rng.choice(self.processes)
        if not free:
            return Op(parent, "load", self.draw_load())
        self.processes.append(free[0])
        return Op(parent, "fork", (free[0],))

    # -- arguments ----------------------------------------------------------------------------------------------------

    def page(self) -> int:
        """The address of a page of the window, seldom of one just outside."""
        window = self.profile.window
        if self.rng.random() < 0.02:
            return (window.first + self.rng.choice((-1, window.pages, window.pages + 1))) * PAGE
        return (window.first + self.rng.randrange(window.pages)) * PAGE

    def length(self, most: int = 8) -> int:
        pages = min(int(self.rng.expovariate(0.5)) + 1, most)
        return pages * PAGE

    def odd(self, value: int) -> int:
        """Now and then a value that is wrong."""
        if self.rng.random() < 0.02:
            return self.rng.choice(
                (value + 1, value + 100, value - 1, 0, -PAGE, 1 << 47, (1 << 64) - PAGE, 1 << 63, PAGE * 1000)
            )
        return value

    def span(self) -> tuple[int, int]:
        """A range for an operation that forgets contents: whatever is wrong with it, it ends in the window."""
        addr, length = self.inside(self.page(), self.length())
        if self.rng.random() < 0.03:
            return self.rng.choice(((addr + 1, length), (addr, length - 1), (addr, 0), (addr, -PAGE), (addr, -addr)))
        return addr, length

    def odd_span(self) -> tuple[int, int]:
        """A range for an operation that leaves what it does not know alone."""
        return self.odd(self.page()), self.odd(self.length())

    def inside(self, addr: int, length: int) -> tuple[int, int]:
        """A range cut to the window: what maps or unmaps must not leave it."""
        window = self.profile.window
        start = max(addr, window.first * PAGE)
        end = min(addr + length, (window.first + window.pages) * PAGE)
        return (start, end - start) if end > start else (window.first * PAGE, PAGE)

    def draw_mmap(self) -> tuple[int, ...]:
        prot = self.rng.choices((3, 1, 0, 7), (20, 2, 1, 1))[0]
        return (*self.inside(self.page(), self.length(12)), prot)

    def draw_munmap(self) -> tuple[int, ...]:
        addr, length = self.inside(self.page(), self.length())
        return (addr + self.rng.choice((0,) * 30 + (1,)), length)

    def draw_load(self) -> tuple[int, ...]:
        return (self.page() + 8 * self.rng.randrange(512),)

    def draw_store(self) -> tuple[int, ...]:
        return (self.page() + 8 * self.rng.randrange(512), self.rng.randrange(1, 1 << 16))

    def draw_register(self) -> tuple[int, ...]:
        return (self.fd(), *self.odd_span(), self.rng.choices((1, 3, 2, 0, 4, 8), (20, 4, 2, 1, 1, 1))[0])

    def draw_mprotect(self) -> tuple[int, ...]:
        return (*self.span(), self.rng.choices((3, 1, 0, 7, 2), (10, 5, 3, 1, 1))[0])

    def draw_copy(self) -> tuple[int, ...]:
        source = self.page() + (self.rng.randrange(PAGE) if self.rng.random() < 0.1 else 0)
        return (self.fd(), self.odd(self.page()), self.odd(source), self.odd(self.length()), self.mode(3))

    def draw_zeropage(self) -> tuple[int, ...]:
        return (self.fd(), *self.odd_span(), self.mode(1))

    def draw_poison(self) -> tuple[int, ...]:
        return (self.fd(), *self.odd_span(), self.mode(1))

    def draw_writeprotect(self) -> tuple[int, ...]:
        return (self.fd(), *self.odd_span(), self.rng.choices((1, 0, 2, 3, 4), (12, 8, 2, 1, 1))[0])

    def fd(self) -> int:
        """Mostly the userfaultfd that the sequence is about, seldom another one."""
        return self.main if self.rng.random() < 0.95 else self.rng.randrange(3)

    def mode(self, bits: int) -> int:
        """Mostly 0, sometimes allowed bits, seldom one that is not."""
        return self.rng.choices((0, self.rng.randint(0, bits), bits + 1), (10, 4, 1))[0]

    def draw_unregister(self) -> tuple[int, ...]:
        return (self.fd(), *self.odd_span())

    def draw_move(self) -> tuple[int, ...]:
        mode = self.rng.choices((0, 2, 1, 3, 4), (10, 5, 2, 2, 1))[0]
        return (
            int(self.rng.random() < 0.03),
            self.odd(self.page()),
            self.odd(self.page()),
            self.odd(self.length()),
            mode,
        )

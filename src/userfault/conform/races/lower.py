"""From a litmus test to a race on the running kernel: what is an object in the model is an address here.

Page n of an address space is the n-th small page behind the test's base. In a test with huge pages, page 2k is the first 4 KiB
of the k-th 2 MiB behind it, page 2k + 1 the second, and a range of whole pairs is all of their 2 MiB.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field

from ...kernel.race import Op, Race
from ...kernel.uapi import HUGE_SIZE_BYTES, PAGE_SIZE_BYTES, Advice, Feature, RegisterMode
from ...litmus.ast import Column, Operation, Setup, Test, Value, Vma, atoms
from ...litmus.errors import LitmusError, at_place
from ...litmus.operations import KERNEL_OPERATIONS, OPERATIONS, check_arguments

SMALL, BLOCK = PAGE_SIZE_BYTES, HUGE_SIZE_BYTES
READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE
MISSING, MISSING_WP = RegisterMode.MISSING, RegisterMode.MISSING | RegisterMode.WP
EVENTS = {
    "fork": Feature.EVENT_FORK,
    "remap": Feature.EVENT_REMAP,
    "remove": Feature.EVENT_REMOVE,
    "unmap": Feature.EVENT_UNMAP,
}


class Unrunnable(Exception):
    """The running kernel can't be asked this test's question: why, and what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason, self.remedy = reason, remedy


@dataclass
class Lowered:
    """A test as a race; fields: what the values of its outcomes are, in their order. needs: what must be there to run it."""

    test: Test
    race: Race
    fields: tuple[Value, ...]
    needs: frozenset[str]


@dataclass(frozen=True)
class Kind:
    """How an operation of the format is done here.

    op: makes the kernel's operation from its arguments. result: what it returns means the same in both worlds. needs: what
    must be there.
    """

    op: Callable[[_Lowering, int, list[int | str]], Op]
    result: bool = True
    needs: tuple[str, ...] = ()


def lower(test: Test) -> Lowered:
    """Raises Unrunnable, or LitmusError for what is no test at all."""
    return _Lowering(test).lower()


@dataclass
class _Lowering:
    test: Test
    mms: dict[str, int] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Page -> its address space and number, where it lies in the beginning."""
    tokens: dict[str, int] = field(default_factory=dict)
    needs: set[str] = field(default_factory=set)
    huge: bool = False
    waiting: bool = False
    events: int = 0
    migrated: frozenset[int | str] = frozenset()
    """Pages that compaction shall move."""
    more: dict[int, list[Op]] = field(default_factory=dict)
    """What the initial state of an address space needs for the operations of its threads."""

    def fail(self, op: Operation | Setup | Vma | Column, problem: str, instead: str) -> LitmusError:
        return at_place(self.test.file, op.at.line, op.at.column, self.test.text, problem, instead)

    # -- addresses ----------------------------------------------------------------------------------------------------

    def at(self, page: int) -> int:
        """Bytes from the base to a page."""
        return (page >> 1) * BLOCK + (page & 1) * SMALL if self.huge else page * SMALL

    def length(self, first: int, count: int) -> int:
        """Bytes of `count` pages from `first`. Raises Unrunnable for a range that is no whole block and not one page."""
        if not self.huge or count == 1:
            return count * SMALL
        if first % 2 or count % 2:
            raise Unrunnable(
                f"pages {first} to {first + count - 1} are no whole huge pages",
                "one page, or an even first page and length",
            )
        return count // 2 * BLOCK

    def place(self, page: str) -> int:
        """Where a page lies in the beginning, for the operations of the kernel on a page."""
        return self.at(self.places[page][1])

    def everywhere(self, page: str) -> tuple[int, ...]:
        """Where a page lies in the beginning, and where operations may take it: PLACES of them, the first again if there are fewer."""
        found = [self.places[page][1]]
        for operation in [op for column in self.test.threads for op in column.operations] * PLACES:
            if operation.name in ("move", "mremap"):
                dst, src, count = _moved(list(operation.args))
                places = [each - src + dst for each in found if src <= each < src + count]
                found += [each for each in places if each not in found]
        return tuple(self.at(each) for each in [*found, *found[:1] * PLACES][:PLACES])

    # -- the test -----------------------------------------------------------------------------------------------------

    def lower(self) -> Lowered:
        test = self.test
        vmas = [each for each in test.init if isinstance(each, Vma)]
        setups = [each for each in test.init if isinstance(each, Setup)]
        self.huge = (
            any(line.what == "ptreclaim" for line in setups)
            or any(each.huge or "hugepage" in each.flags for each in vmas)
            or any(op.name == "collapse" for column in test.threads for op in column.operations)
        )
        everything = [op for column in test.threads for op in column.operations]
        self.migrated = frozenset(op.args[0] for op in everything if op.name == "migrate" and op.args)
        for vma in vmas:
            self.mms.setdefault(vma.mm, len(self.mms))
        lists: list[list[Op]] = [[] for _ in self.mms]
        made: list[Op] = []
        for vma in vmas:
            lists[self.mms[vma.mm]] += self.contents(vma)
        for line in setups:
            if line.what == "fork":
                parent, child = line.names
                if self.mms.get(parent) != 0 or child in self.mms:
                    raise Unrunnable(f"{child} is forked from {parent}", "fork new address spaces from the first one")
                self.mms[child] = len(lists)
                lists.append([])
                made.append(Op("child", (self.mms[child], 0)))
        made = [Op("child", (mm, 1)) for mm in range(1, len({vma.mm for vma in vmas}))] + made
        for line in setups:
            # Reclaim leaves a page alone that a fork shares, so it is swapped out before: the child's entry is the same.
            if line.what == "swapout":
                self.setup(line, lists)
        lists[0] += made
        for vma in vmas:
            lists[self.mms[vma.mm]] += self.flags(vma)
        for line in setups:
            if line.what != "swapout":
                self.setup(line, lists)
        fields = self.fields()
        threads = []
        for number, column in enumerate(test.threads):
            mm = self.mms.get(column.mm, 0)
            ops = []
            for operation in column.operations:
                op = self.operation(mm, column, operation)
                value = Value("register", operation.register, number)
                if value in fields:
                    op = Op(op.name, op.args, fields.index(value))
                ops.append(op)
            threads.append((mm, tuple(ops)))
        while len(lists) < len(self.mms):
            lists.append([])
        for mm, made in self.more.items():
            lists[mm] += made
        for mm, done in threads:
            # A test may ask a userfaultfd of what is registered with none.
            if any(op.name in ON_USERFAULTFD for op in done) and all(op.name not in UFFD_MADE for op in lists[mm]):
                lists[mm].insert(0, Op("open"))
        for mm in range(1, len(lists)):
            if sum(each == mm for each, _ in threads) > 1:
                raise Unrunnable("two threads run in an address space that was forked", "one thread in each of them")
        observe: list[list[Op]] = [[] for _ in lists]
        for number, value in enumerate(fields):
            if value.kind != "register":
                self.observe(number, value, observe, lists)
        for each in observe:
            # Reading a page brings it in: the look at its state comes before.
            each.sort(key=lambda op: op.name == "content")
        race = Race(
            setup=tuple(map(tuple, lists)),
            threads=tuple(threads),
            observe=tuple(map(tuple, observe)),
            fields=len(fields),
            huge=self.huge,
            blocking=self.waiting,
            events=self.events,
        )
        return Lowered(test, race, fields, frozenset(self.needs))

    def contents(self, vma: Vma) -> list[Op]:
        first, count = vma.first, vma.last - vma.first
        at, length = self.at(first), self.length(first, count)
        ops = [Op("map", (at, length, int("shared" in vma.flags), READ | WRITE))]
        for number, page in enumerate(vma.pages):
            if page == "none":
                continue
            if page == "zero":
                ops.append(Op("touch", (self.at(first + number),)))
                continue
            if page in self.tokens:
                raise self.fail(vma, f"page {page} is mapped already", "share pages by `fork`")
            token = self.tokens[page] = len(self.tokens) + 1
            self.places[page] = (self.mms[vma.mm], first + number)
            if vma.huge:
                self.needs.add("thp")
                ops.append(Op("huge", (at, token, int(self.uses("collapse")))))
            else:
                made = "lone" if page in self.migrated else "store"
                ops.append(Op(made, (self.at(first + number), token)))
        if self.huge and not vma.huge and len(vma.pages) == count and count % 2 == 0 and first % 2 == 0:
            ops.append(Op("advise", (at, length, Advice.POPULATE_WRITE)))
        return ops

    def flags(self, vma: Vma) -> list[Op]:
        at, length = self.at(vma.first), self.length(vma.first, vma.last - vma.first)
        ops = []
        if "file" in vma.flags:
            raise Unrunnable("a VMA of a file", "`userfault check` explores it on the model")
        if "hugepage" in vma.flags:
            ops.append(Op("advise", (at, length, Advice.HUGEPAGE)))
        if "dontcopy" in vma.flags:
            ops.append(Op("advise", (at, length, Advice.DONTFORK)))
        if "userfault" in vma.flags:
            self.needs.add("userfaultfd")
            ops.append(Op("register", (at, length, MISSING_WP if self.uses("wp", "unwp") else MISSING)))
        if "locked" in vma.flags:
            ops.append(Op("lock", (at, length)))
        if "readonly" in vma.flags:
            ops.append(Op("protect", (at, length, READ)))
        return ops

    def uses(self, *names: str) -> bool:
        return any(op.name in names for column in self.test.threads for op in column.operations)

    def setup(self, line: Setup, lists: list[list[Op]]) -> None:
        if line.what == "swapout":
            self.needs.add("swap")
            mm, page = self.places[line.names[0]]
            lists[mm].append(Op("swapout", (self.at(page), SMALL)))
            if "cached" in line.names:
                lists[mm].append(Op("advise", (self.at(page), SMALL, Advice.WILLNEED)))
        elif line.what == "pin":
            self.needs.add("io_uring")
            mm, page = self.places[line.names[0]]
            lists[mm].append(Op("pin", (self.at(page),)))
        elif line.what == "forget":
            who, what = line.names
            if who not in self.mms or what not in self.places:
                raise self.fail(line, f"no {what} in {who}", "an address space and a page of the initial state")
            huge = any(vma.huge and what in vma.pages for vma in self.test.init if isinstance(vma, Vma))
            lists[self.mms[who]].append(Op("advise", (self.place(what), BLOCK if huge else SMALL, Advice.DONTNEED)))
        elif line.what == "waiting":
            self.waiting = True
        elif line.what == "events":
            for name in line.names:
                if name not in EVENTS:
                    raise self.fail(line, f"there is no event {name}", f"one of {', '.join(EVENTS)}")
                self.events |= EVENTS[name]
        # `pool`, `failures` and `ksm` are about the model's own limits.

    def operation(self, mm: int, column: Column, operation: Operation) -> Op:
        kind = self.kind(operation)
        shape = (OPERATIONS.get(operation.name) or KERNEL_OPERATIONS[operation.name]).shape
        if problem := check_arguments(operation, shape):
            raise self.fail(operation, problem, f"{operation.name} {' '.join(shape)}: see docs/litmus.md")
        if column.mm and column.mm not in self.mms:
            raise self.fail(column, f"there is no address space {column.mm}", "give it a VMA in the initial state")
        self.needs.update(kind.needs)
        return kind.op(self, mm, list(operation.args))

    def kind(self, operation: Operation) -> Kind:
        if operation.name not in OPERATIONS and operation.name not in KERNEL_OPERATIONS:
            known = ", ".join([*OPERATIONS, *KERNEL_OPERATIONS])
            raise self.fail(operation, f"there is no operation {operation.name}", f"one of {known}")
        if operation.name not in KINDS:
            raise Unrunnable(
                f"{operation.name} can't be done from user space" + UNSEEN.get(operation.name, ""),
                "`userfault check` explores it on the model",
            )
        return KINDS[operation.name]

    def fields(self) -> tuple[Value, ...]:
        """The values of an outcome: without what an operation returns where that means something else in the model."""
        other = {
            Value("register", op.register, number)
            for number, column in enumerate(self.test.threads)
            for op in column.operations
            if op.register and not self.kind(op).result
        }
        for atom in atoms(self.test.condition):
            if atom.of in other:
                raise Unrunnable(f"{atom.of} is not the kernel's to say", "a condition that does not name it")
        return tuple(value for value in self.test.outcome if value not in other)

    def observe(self, number: int, value: Value, observe: list[list[Op]], lists: list[list[Op]]) -> None:
        if value.kind == "mapcount":
            self.needs.add("kpagecount")
            mm, page = self.places[value.name]
            slot = list(self.places).index(value.name)
            lists[mm].append(Op("remember", (self.at(page), slot)))
            observe[mm].append(Op("mapcount", (slot,), number))
            return
        if value.name not in self.mms:
            raise Unrunnable(f"there is no address space {value.name}", "name one of the test")
        op = "content" if value.kind == "memory" else f"is_{value.kind}"
        observe[self.mms[value.name]].append(Op(op, (self.at(value.number),), number))


# -- operations -------------------------------------------------------------------------------------------------------


def _int(value: int | str) -> int:
    assert isinstance(value, int)
    return value


def _page_op(name: str) -> Callable[[_Lowering, int, list[int | str]], Op]:
    return lambda low, mm, args: Op(name, (low.at(_int(args[0])),))


def _range_op(name: str, *more: int) -> Callable[[_Lowering, int, list[int | str]], Op]:
    def made(low: _Lowering, mm: int, args: list[int | str]) -> Op:
        first, count = _int(args[0]), _int(args[1]) if len(args) > 1 else 1
        return Op(name, (low.at(first), low.length(first, count), *more))

    return made


def _moved(args: list[int | str]) -> tuple[int, int, int]:
    """To which page, from which, how many."""
    return _int(args[0]), _int(args[2]), _int(args[3]) if len(args) > 3 else 1


def _move(low: _Lowering, mm: int, args: list[int | str]) -> Op:
    dst, src, count = _moved(args)
    return Op("move", (low.at(dst), low.at(src), low.length(src, count), 2 * int("holes" in args)))


def _value_op(name: str) -> Callable[[_Lowering, int, list[int | str]], Op]:
    return lambda low, mm, args: Op(name, (low.at(_int(args[0])), _int(args[1])))


def _fork(low: _Lowering, mm: int, args: list[int | str]) -> Op:
    child = low.mms.setdefault(str(args[0]), len(low.mms))
    return Op("fork", (child,))


def _split(low: _Lowering, mm: int, args: list[int | str]) -> Op:
    return Op("advise", (low.place(str(args[0])), SMALL, Advice.COLD))


def _mremap(low: _Lowering, mm: int, args: list[int | str]) -> Op:
    dst, src, count = _moved(args)
    return Op("mremap", (low.at(src), low.length(src, count), low.at(dst), 4 * int("dontunmap" in args)))


def _pipe_op(name: str) -> Callable[[_Lowering, int, list[int | str]], Op]:
    """What is done with the pipe of the thread's address space."""
    return lambda low, mm, args: Op(name, (low.at(_int(args[0])) if args else 0, mm))


def _collapse(low: _Lowering, mm: int, args: list[int | str]) -> Op:
    return Op("collapse", (low.at(_int(args[0]) & ~1),))


def _reclaim(low: _Lowering, mm: int, args: list[int | str]) -> Op:
    return Op("reclaim", low.everywhere(str(args[0])))


def _migrate(low: _Lowering, mm: int, args: list[int | str]) -> Op:
    if any(vma.huge and args[0] in vma.pages for vma in low.test.init if isinstance(vma, Vma)):
        low.needs.add("huge-migration")
    return Op("migrate", low.everywhere(str(args[0])))


ON_USERFAULTFD = ("move", "copy", "zeropage", "wp", "poison", "wake", "event", "register", "unregister")
UFFD_MADE = ("open", "register")


def _ksm(low: _Lowering, mm: int, args: list[int | str]) -> Op:
    """ksmd merges equal pages, so one more is made that holds what the page does in the beginning."""
    page = _int(args[0])
    token = next((low.tokens[name] for name, place in low.places.items() if place == (mm, page)), 0)
    if low.huge or not token:
        raise Unrunnable(f"nothing to merge page {page} with", "a small page that is there in the beginning")
    made = (Op("map", (low.at(TWIN), SMALL, 0, READ | WRITE)), Op("store", (low.at(TWIN), token)))
    low.more.setdefault(mm, []).extend(made)
    return Op("ksm", (low.at(page), low.at(TWIN)))


PLACES = 4
"""How many places of a page an operation of the kernel's is told."""
TWIN = 18
"""The page for ksmd, beyond the model's sixteen."""
UFFD = ("userfaultfd",)
KINDS: dict[str, Kind] = {
    "load": Kind(_page_op("load")),
    "store": Kind(_value_op("store")),
    "touch": Kind(_page_op("touch")),
    "move": Kind(_move, needs=("move",)),
    "copy": Kind(_value_op("copy"), needs=UFFD),
    "zeropage": Kind(_range_op("zeropage"), needs=UFFD),
    "wp": Kind(_range_op("wp", 1), needs=("wp",)),
    "unwp": Kind(_range_op("wp", 0), needs=("wp",)),
    "poison": Kind(_range_op("poison"), needs=("poison",)),
    "wake": Kind(_range_op("wake"), needs=UFFD),
    "event": Kind(lambda low, mm, args: Op("event", (800,)), needs=UFFD),
    "userfault": Kind(_range_op("register", MISSING), needs=UFFD),
    "nouserfault": Kind(_range_op("unregister"), needs=UFFD),
    "read": Kind(_pipe_op("read")),
    "munmap": Kind(_range_op("munmap")),
    "mremap": Kind(_mremap),
    "readonly": Kind(_range_op("protect", READ)),
    "writable": Kind(_range_op("protect", READ | WRITE)),
    "lock": Kind(_range_op("lock")),
    "unlock": Kind(_range_op("unlock")),
    "dontneed": Kind(_range_op("advise", Advice.DONTNEED)),
    "dontfork": Kind(_range_op("advise", Advice.DONTFORK)),
    "dofork": Kind(_range_op("advise", Advice.DOFORK)),
    "free": Kind(_range_op("advise", Advice.FREE)),
    "cold": Kind(_range_op("advise", Advice.COLD)),
    "pageout": Kind(_range_op("advise", Advice.PAGEOUT), needs=("swap",)),
    "guard": Kind(_range_op("advise", Advice.GUARD_INSTALL), needs=("guard",)),
    "unguard": Kind(_range_op("advise", Advice.GUARD_REMOVE), needs=("guard",)),
    "populate": Kind(_range_op("advise", Advice.POPULATE_WRITE)),
    "populateread": Kind(_range_op("advise", Advice.POPULATE_READ)),
    "fork": Kind(_fork),
    "vmread": Kind(_page_op("vmread")),
    "vmwrite": Kind(_value_op("vmwrite")),
    "vmsplice": Kind(_pipe_op("vmsplice")),
    "splice": Kind(lambda low, mm, args: Op("splice", (0, mm))),
    "pin": Kind(_page_op("pin"), needs=("io_uring",)),
    "unpin": Kind(lambda low, mm, args: Op("unpin"), needs=("io_uring",)),
    "pinned": Kind(_pipe_op("pinned"), needs=("io_uring",)),
    "look": Kind(_page_op("look")),
    "ksm": Kind(_ksm, result=False, needs=("ksm",)),
    "collapse": Kind(_collapse, result=False, needs=("thp",)),
    "reclaim": Kind(_reclaim, result=False, needs=("swap",)),
    "split": Kind(_split, result=False, needs=("thp",)),
    "migrate": Kind(_migrate, result=False, needs=("compaction",)),
    "compact": Kind(lambda low, mm, args: Op("compact"), needs=("compaction",)),
}

UNSEEN = {
    "pinwrite": ": pin_user_pages does not stop at its fast path; `vmwrite` is a pin that also faults",
    "pinread": ": nothing here keeps a pin for reading; `vmread` is a short one",
    "devwrite": ": process_vm_writev pins by the slow path only; `vmwrite` is that",
    "memory_failure": ": it takes a page of this machine for good",
    "get_anon_vma": ": a reference to an anon_vma leaves no trace there",
    "referenced": ": nothing asks reclaim to look at one page",
    "idle": ": it takes /sys/kernel/mm/page_idle and a physical address",
}

"""The operations of a sequence: how each is done to the kernel, how to the model, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..kernel.agent import (
    EXIT,
    FORK,
    HOLD,
    KSM,
    LOAD,
    MASK,
    MEANWHILE,
    PIN,
    RELEASE,
    SLOTS,
    STORE,
    SYSCALL,
    UNPIN,
    VMREAD,
    Answer,
    Command,
)
from ..kernel.uapi import PAGE_SIZE_BYTES, Ioctl
from ..model import fs_userfaultfd as uffd
from ..model import gup, madvise, mincore, mlock, mmap, mprotect, mremap, user
from ..model.errno import EBADF, EBUSY, EEXIST, EFAULT, EINVAL, ENXIO, ESRCH
from ..model.fs_userfaultfd import UNWRITTEN
from ..model.madvise import MADV
from ..model.mm_types import mm_struct, vm
from ..model.slab import put_page
from .world import Meanwhile, World

SYS_MMAP, SYS_MPROTECT, SYS_MUNMAP, SYS_IOCTL, SYS_MINCORE, SYS_MADVISE = 9, 10, 11, 16, 27, 28
SYS_MREMAP, SYS_MUNLOCK, SYS_MLOCK2, SYS_PROCESS_MADVISE = 25, 150, 325, 440
MAP_FIXED_PRIVATE_ANONYMOUS = 0x32
PROT = {1: vm.READ, 2: vm.WRITE, 4: vm.EXEC}
ADDRESS_BITS = 47
ADVICE = tuple(MADV)
CONTEXT_FD = 200
"""The userfaultfds have this number and the following ones."""
WORD_BYTES = 8
MERGE, UNMERGE = 1, 2
"""What ksmd is told (/sys/kernel/mm/ksm/run)."""
PIDFD = 199
"""Of the first process; all others inherit it."""


class Outcome(NamedTuple):
    """What an operation gives back: its result (negative: the errno), an output field, the signal that an access raised."""

    result: int
    out: int = 0
    signal: int = 0


class Op(NamedTuple):
    """One operation of a sequence. Addresses are bytes from the window's base."""

    process: int
    name: str
    args: tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """An operation. parameters: names of its arguments; `@name` is an address, `:name` a length.

    command: (base, process, arguments) -> what the agent does. outcome: its answer. apply: the model's.
    """

    parameters: tuple[str, ...]
    doc: str
    command: Callable[[int, int, tuple[int, ...]], Command]
    apply: Callable[..., Outcome]
    out: int = -1
    """Which scratch word the call writes its output field to; -1: none."""

    def outcome(self, answer: Answer) -> Outcome:
        if answer.signal:
            return Outcome(0, 0, answer.signal)
        return Outcome(answer.value, signed(answer.scratch[self.out]) if self.out >= 0 else 0)


def signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def prot_flags(prot: int) -> int:
    return sum(int(flag) for bit, flag in PROT.items() if prot & bit)


def by_value(result: int) -> Outcome:
    return Outcome(result)


def accessed(result: int) -> Outcome:
    """user.py's accesses return the signal, negative."""
    return Outcome(0, 0, -result) if result < 0 else Outcome(result)


def fork_process(world: World, mm: mm_struct, child: int) -> Outcome:
    if not 0 < child < len(world.processes) or world.processes[child] is not None:
        return Outcome(-EEXIST)
    world.forked(mm, child)
    return Outcome(0)


def exit_process(world: World, mm: mm_struct) -> Outcome:
    if mm is world.processes[0]:
        return Outcome(-EINVAL)
    process = world.processes.index(mm)
    for keeper, slot in list(world.pins):
        if keeper == process:
            unpin_page(world, mm, slot)
    for keeper, slot in list(world.holds):
        if keeper == process:
            release_page(world, mm, slot)
    mmap.exit_mmap(mm)
    world.gone(mm)
    return Outcome(0)


def pin_page(world: World, mm: mm_struct, slot: int, addr: int) -> Outcome:
    key = world.running, slot % SLOTS
    if key in world.pins:
        return Outcome(-EBUSY)
    got = gup.get_user_pages_fast(mm, addr, 1)
    if got < 0:
        return Outcome(got)
    world.pins[key] = gup.taken()
    return Outcome(0)


def unpin_page(world: World, mm: mm_struct, slot: int) -> Outcome:
    p = world.pins.pop((world.running, slot % SLOTS), None)
    if p is None:
        return Outcome(-ENXIO)
    gup.pin_is_over(p)
    gup.unpin_user_page(p)
    return Outcome(0)


def hold_page(world: World, mm: mm_struct, slot: int, addr: int) -> Outcome:
    key = world.running, slot % SLOTS
    if key in world.holds:
        return Outcome(-EBUSY)
    there, p = gup.get_user_page(mm, addr)
    if not there:
        return Outcome(-EFAULT)
    world.holds[key] = p
    return Outcome(PAGE_SIZE_BYTES)


def release_page(world: World, mm: mm_struct, slot: int) -> Outcome:
    """What the page holds by now is what comes out of the pipe."""
    key = world.running, slot % SLOTS
    if key not in world.holds:
        return Outcome(-ENXIO)
    p = world.holds.pop(key)
    content = world.content(p)
    if p is not None:
        put_page(p)
    return Outcome(signed(content))


def read_pinned(world: World, mm: mm_struct, addr: int) -> Outcome:
    first = addr & -PAGE_SIZE_BYTES
    data = gup.process_vm_read(mm, first)
    if isinstance(data, int) and data < 0:
        return Outcome(data)
    # Of a page that was only cleared, and of the zero page, the model has no bytes.
    word = data[addr - first : addr - first + WORD_BYTES] if isinstance(data, bytes) else b""
    return Outcome(WORD_BYTES, signed(int.from_bytes(word, "little")))


def drive_ksmd(world: World, mm: mm_struct, what: int) -> Outcome:
    if what == MERGE:
        world.ksmd.run()
    else:
        world.ksmd.unmerge()
    return Outcome(0)


def load_word(world: World, mm: mm_struct, addr: int) -> Outcome:
    data = user.peek(mm, addr, 8)
    if isinstance(data, int):
        return Outcome(0, 0, -data)
    return Outcome(signed(int.from_bytes(data, "little")))


def store_word(world: World, mm: mm_struct, addr: int, value: int) -> Outcome:
    done = user.poke(mm, addr, value.to_bytes(8, "little"))
    return Outcome(0, 0, -done if done < 0 else 0)


def resident(world: World, mm: mm_struct, addr: int, length: int) -> Outcome:
    """mincore's answers are a byte a page; the generator draws no more than the scratch word holds."""
    result, answers = mincore.sys_mincore(mm, addr, length)
    word = bytearray(UNWRITTEN.to_bytes(8, "little"))
    word[: len(answers)] = bytes(answers)
    return Outcome(result, signed(int.from_bytes(word, "little")))


def ask_mincore(base: int, process: int, args: tuple[int, ...]) -> Command:
    """Raises ValueError for more pages than the scratch word holds answers; a length that wraps gets none."""
    addr, length = args
    if 8 * PAGE_SIZE_BYTES < length < 1 << ADDRESS_BITS:
        raise ValueError(f"mincore of {length} bytes: its answers are compared as one word, so ask for 8 pages at most")
    return Command(SYSCALL, process, SYS_MINCORE, (base + addr, length, 0), 0b100, (UNWRITTEN,))


def stays(flags: int) -> int:
    """mremap's flags, of which MREMAP_MAYMOVE alone would let the kernel choose a place."""
    return 0 if flags == mremap.MREMAP_MAYMOVE else flags


def move_mapping(world: World, mm: mm_struct, addr: int, length: int, new: int, flags: int, to: int) -> Outcome:
    if mremap.page_align(length) == mremap.page_align(new):
        return Outcome(mremap.mremap_fixed(mm, addr, length, flags, to))
    return Outcome(mremap.mremap_resize(mm, addr, length, new, stays(flags), to))


def ioctl(request: int, scratch: Callable[[int, tuple[int, ...]], tuple[int, ...]]) -> Callable[..., Command]:
    """An ioctl of a userfaultfd: the first argument says of which."""

    def command(base: int, process: int, args: tuple[int, ...]) -> Command:
        return Command(SYSCALL, process, SYS_IOCTL, (CONTEXT_FD + args[0], request, 0), 0b100, scratch(base, args[1:]))

    return command


def uffd_outcome(answer: tuple[int, int]) -> Outcome:
    return Outcome(*answer)


def advice(number: int) -> Callable[..., Command]:
    return lambda base, process, a: Command(SYSCALL, process, SYS_MADVISE, (base + a[0], a[1], number))


KINDS: dict[str, Kind] = {
    "mmap": Kind(
        ("@addr", ":length", "prot"),
        "mmap(MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS)",
        lambda base, process, a: Command(
            SYSCALL, process, SYS_MMAP, (base + a[0], a[1], a[2], MAP_FIXED_PRIVATE_ANONYMOUS, (1 << 64) - 1, 0)
        ),
        lambda world, mm, addr, length, prot: Outcome(mmap.sys_mmap(mm, addr, length, prot_flags(prot))),
    ),
    "munmap": Kind(
        ("@addr", ":length"),
        "munmap",
        lambda base, process, a: Command(SYSCALL, process, SYS_MUNMAP, (base + a[0], a[1])),
        lambda world, mm, addr, length: Outcome(mmap.sys_munmap(mm, addr, length)),
    ),
    "load": Kind(
        ("@addr",),
        "read a word",
        lambda base, process, a: Command(LOAD, process, 0, (base + a[0],)),
        load_word,
    ),
    "store": Kind(
        ("@addr", "value"),
        "write a word",
        lambda base, process, a: Command(STORE, process, 0, (base + a[0], a[1])),
        store_word,
    ),
    "register": Kind(
        ("fd", "@addr", ":length", "mode"),
        "UFFDIO_REGISTER",
        ioctl(Ioctl.REGISTER, lambda base, a: (base + a[0], a[1], a[2], UNWRITTEN)),
        lambda world, mm, fd, addr, length, mode: uffd_outcome(
            uffd.userfaultfd_register(world.contexts[fd], addr, length, mode)
        ),
        out=3,
    ),
    "unregister": Kind(
        ("fd", "@addr", ":length"),
        "UFFDIO_UNREGISTER",
        ioctl(Ioctl.UNREGISTER, lambda base, a: (base + a[0], a[1])),
        lambda world, mm, fd, addr, length: Outcome(uffd.userfaultfd_unregister(world.contexts[fd], addr, length)),
    ),
    "move": Kind(
        ("fd", "@dst", "@src", ":length", "mode"),
        "UFFDIO_MOVE",
        ioctl(Ioctl.MOVE, lambda base, a: (base + a[0], base + a[1], a[2], a[3], UNWRITTEN)),
        lambda world, mm, fd, dst, src, length, mode: uffd_outcome(
            uffd.userfaultfd_move(world.contexts[fd], mm, dst, src, length, mode)
        ),
        out=4,
    ),
}


KINDS["mremap"] = Kind(
    ("@addr", ":length", ":new", "flags", "@to"),
    "mremap, to no place of the kernel's choice",
    lambda base, process, a: Command(SYSCALL, process, SYS_MREMAP, (base + a[0], a[1], a[2], stays(a[3]), base + a[4])),
    move_mapping,
)
KINDS["mlock"] = Kind(
    ("@addr", ":length", "flags"),
    "mlock2",
    lambda base, process, a: Command(SYSCALL, process, SYS_MLOCK2, (base + a[0], a[1], a[2])),
    lambda world, mm, addr, length, flags: Outcome(mlock.sys_mlock(mm, addr, length, flags == 1)),
)
KINDS["munlock"] = Kind(
    ("@addr", ":length"),
    "munlock",
    lambda base, process, a: Command(SYSCALL, process, SYS_MUNLOCK, (base + a[0], a[1])),
    lambda world, mm, addr, length: Outcome(mlock.sys_munlock(mm, addr, length)),
)
KINDS["mincore"] = Kind(
    ("@addr", ":length"),
    "mincore",
    ask_mincore,
    resident,
    out=0,
)
KINDS["fork"] = Kind(("child",), "fork", lambda base, process, a: Command(FORK, process, 0, a), fork_process)
KINDS["exit"] = Kind((), "exit, and be waited for", lambda base, process, a: Command(EXIT, process), exit_process)
KINDS["pin"] = Kind(
    ("slot", "@addr"),
    "pin a page for writing: a registered buffer of an io_uring",
    lambda base, process, a: Command(PIN, process, 0, (a[0], base + a[1])),
    pin_page,
)
KINDS["unpin"] = Kind(("slot",), "let go of it", lambda base, process, a: Command(UNPIN, process, 0, a), unpin_page)
KINDS["hold"] = Kind(
    ("slot", "@addr"),
    "take a reference to a page: vmsplice to a pipe",
    lambda base, process, a: Command(HOLD, process, 0, (a[0], base + a[1])),
    hold_page,
)
KINDS["release"] = Kind(
    ("slot",),
    "let go of it, by reading the page from the pipe",
    lambda base, process, a: Command(RELEASE, process, 0, a),
    release_page,
)
KINDS["vmread"] = Kind(
    ("@addr",),
    "process_vm_readv of a word of its own: a pin for reading",
    lambda base, process, a: Command(VMREAD, process, 0, (base + a[0],)),
    read_pinned,
    out=0,
)
KINDS["ksmd"] = Kind(
    ("run",),
    "ksmd scans everything until nothing changes (1), or unmerges it (2)",
    lambda base, process, a: Command(KSM, process, 0, a),
    drive_ksmd,
)
KINDS["mprotect"] = Kind(
    ("@addr", ":length", "prot"),
    "mprotect",
    lambda base, process, a: Command(SYSCALL, process, SYS_MPROTECT, (base + a[0], a[1], a[2])),
    lambda world, mm, addr, length, prot: Outcome(mprotect.sys_mprotect(mm, addr, length, prot_flags(prot))),
)
KINDS["copy"] = Kind(
    ("fd", "@dst", "@src", ":length", "mode"),
    "UFFDIO_COPY",
    ioctl(Ioctl.COPY, lambda base, a: (base + a[0], base + a[1], a[2], a[3], UNWRITTEN)),
    lambda world, mm, fd, dst, src, length, mode: uffd_outcome(
        uffd.userfaultfd_copy(world.contexts[fd], mm, dst, src, length, mode)
    ),
    out=4,
)
KINDS["zeropage"] = Kind(
    ("fd", "@addr", ":length", "mode"),
    "UFFDIO_ZEROPAGE",
    ioctl(Ioctl.ZEROPAGE, lambda base, a: (base + a[0], a[1], a[2], UNWRITTEN)),
    lambda world, mm, fd, addr, length, mode: uffd_outcome(
        uffd.userfaultfd_zeropage(world.contexts[fd], addr, length, mode)
    ),
    out=3,
)
KINDS["poison"] = Kind(
    ("fd", "@addr", ":length", "mode"),
    "UFFDIO_POISON",
    ioctl(Ioctl.POISON, lambda base, a: (base + a[0], a[1], a[2], UNWRITTEN)),
    lambda world, mm, fd, addr, length, mode: uffd_outcome(
        uffd.userfaultfd_poison(world.contexts[fd], addr, length, mode)
    ),
    out=3,
)
KINDS["writeprotect"] = Kind(
    ("fd", "@addr", ":length", "mode"),
    "UFFDIO_WRITEPROTECT",
    ioctl(Ioctl.WRITEPROTECT, lambda base, a: (base + a[0], a[1], a[2])),
    lambda world, mm, fd, addr, length, mode: Outcome(
        uffd.userfaultfd_writeprotect(world.contexts[fd], addr, length, mode)
    ),
)

KINDS["wake"] = Kind(
    ("fd", "@addr", ":length"),
    "UFFDIO_WAKE",
    ioctl(Ioctl.WAKE, lambda base, a: (base + a[0], a[1])),
    lambda world, mm, fd, addr, length: Outcome(uffd.userfaultfd_wake(world.contexts[fd], addr, length)),
)
KINDS["continue"] = Kind(
    ("fd", "@addr", ":length", "mode"),
    "UFFDIO_CONTINUE",
    ioctl(Ioctl.CONTINUE, lambda base, a: (base + a[0], a[1], a[2], UNWRITTEN)),
    lambda world, mm, fd, addr, length, mode: uffd_outcome(
        uffd.userfaultfd_continue(world.contexts[fd], addr, length, mode)
    ),
    out=3,
)


def advise(advice: MADV) -> Callable[..., Outcome]:
    return lambda world, mm, addr, length: Outcome(madvise.sys_madvise(mm, addr, length, advice))


for _advice in MADV:
    KINDS[_advice.name.lower()] = Kind(
        ("@addr", ":length"), f"madvise(MADV_{_advice.name})", advice(_advice.value), advise(_advice)
    )


KINDS["process_madvise"] = Kind(
    ("@addr", ":length", "@other", ":more", "advice"),
    "process_madvise of two ranges of the first process; the advice is a place in the list of those that are modelled",
    lambda base, process, a: Command(
        SYSCALL,
        process,
        SYS_PROCESS_MADVISE,
        (PIDFD, 0, 2, ADVICE[a[4] % len(ADVICE)].value, 0),
        0b10,
        (base + a[0], a[1], base + a[2], a[3]),
    ),
    lambda world, mm, addr, length, other, more, advice: Outcome(
        madvise.process_madvise(mm, world.mm_of(0), addr, length, other, more, ADVICE[advice % len(ADVICE)])
    ),
)


OF_USERFAULTFD = tuple(name for name, kind in KINDS.items() if kind.parameters[:1] == ("fd",))
"""Ioctls of a userfaultfd, by a descriptor that a process need not have."""
MEANWHILES = tuple(f"meanwhile_{name}" for name in OF_USERFAULTFD if name not in ("register", "unregister"))


def meanwhile(kind: Kind) -> Kind:
    """The ioctl, done by the first process when the next message of a userfaultfd waits to be read: that one refuses it."""

    def command(base: int, process: int, args: tuple[int, ...]) -> Command:
        fd, request, *_ = kind.command(base, process, args)[3]
        return Command(MEANWHILE, process, 0, (fd, request, 0, kind.out), 0, kind.command(base, process, args).scratch)

    def apply(world: World, mm: mm_struct, fd: int, *args: int) -> Outcome:
        def act() -> Meanwhile:
            done = with_descriptor(kind, world, world.mm_of(0), fd, *args)
            return Meanwhile(done.result, done.out, woken(kind, args, done))

        world.meanwhile = fd, act
        return Outcome(0)

    return Kind(kind.parameters, f"{kind.doc}, while the next message is unread", command, apply)


def woken(kind: Kind, args: tuple[int, ...], done: Outcome) -> range:
    """The addresses at which an ioctl has woken who waited: where it did something, unless it was told not to."""
    named = dict(zip(kind.parameters[1:], args, strict=True))
    mode = named.get("mode", 0)
    length = max(done.out, 0) if kind.out >= 0 and done.out != UNWRITTEN else 0
    if kind.out < 0 and done.result == 0:
        length = named[":length"]
    quiet = mode & 1 if kind.out >= 0 else mode
    return range(args[0], args[0]) if quiet else range(args[0], args[0] + length)


def with_descriptor(kind: Kind, world: World, mm: mm_struct, fd: int, *args: int) -> Outcome:
    """The ioctl, if the process has the descriptor."""
    if fd >= world.descriptors(mm):
        return Outcome(-EBADF, UNWRITTEN if kind.out >= 0 else 0)
    return kind.apply(world, mm, fd, *args)


for _name in MEANWHILES:
    KINDS[_name] = meanwhile(KINDS[_name.removeprefix("meanwhile_")])


def command(op: Op, base: int) -> Command:
    """What the agent does for an operation in a window at `base`."""
    return KINDS[op.name].command(base, op.process, op.args)


def outcome(op: Op, answer: Answer) -> Outcome:
    """What the kernel gave back. A mapping's address is not compared: it was given."""
    found = KINDS[op.name].outcome(answer)
    if op.name in ("mmap", "mremap") and found.result > 0:
        return Outcome(0)
    return found


def apply(op: Op, world: World) -> Outcome:
    """What the model gives back. Addresses wrap at 64 bits, and are relative again afterwards; lengths are unsigned."""
    kind = KINDS[op.name]
    base = world.window.base
    args = []
    for name, value in zip(kind.parameters, op.args, strict=True):
        if name[0] == "@":
            value = (base + value & MASK) - base
        elif name[0] == ":":
            value &= MASK
        args.append(value)
    if world.processes[op.process] is None:
        return Outcome(-ESRCH)
    if op.name in OF_USERFAULTFD:
        return with_descriptor(kind, world, world.mm(op.process), *args)
    return kind.apply(world, world.mm(op.process), *args)


def text(op: Op) -> str:
    """`P0 move fd=0 dst=p12 src=p3 length=2p mode=0`."""
    parts = []
    for name, value in zip(KINDS[op.name].parameters, op.args, strict=True):
        if name[0] in "@:":
            shown = f"{value // 4096}p" if value % 4096 == 0 else f"{value // 4096}p+{value % 4096}"
            parts.append(f"{name[1:]}={shown}")
        else:
            parts.append(f"{name}={value:#x}" if value > 9 else f"{name}={value}")
    return " ".join([f"P{op.process}", op.name, *parts])

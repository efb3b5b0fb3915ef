"""From a litmus test to a program: boot the model's machine, run it into the initial state, lower the threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..check.compile import Call, ThreadSpec, compile_program
from ..check.ir import Program
from ..model import era as eras
from ..model import machine as machines
from ..model.anon_vma import anon_vma_prepare
from ..model.errno import SIGBUS, SIGSEGV
from ..model.events import FEATURE_EVENT_FORK, FEATURE_EVENT_REMAP, FEATURE_EVENT_REMOVE, FEATURE_EVENT_UNMAP
from ..model.fork import sys_fork
from ..model.huge_memory import do_huge_pmd_anonymous_page
from ..model.lang import check, reached
from ..model.locks import check_no_locks_held
from ..model.machine import config, machine
from ..model.madvise import madvise_dontneed
from ..model.memory import do_anonymous_page, pte_alloc
from ..model.mm_types import (
    PmdKind,
    PteKind,
    address_space,
    mm_struct,
    page,
    page_table,
    register,
    rmap_item,
    stable_node,
    tlb_t,
    userfaultfd_ctx,
    vm,
    vm_area_struct,
)
from ..model.mmap import do_mmap
from ..model.pgtable import is_swap_pmd, pmd_trans_huge
from ..model.properties import ALWAYS, anon_vmas_are_accounted, pages_are_accounted
from ..model.slab import anon_vma_chain_new, get_page, put_page
from ..model.vmscan import shrink_page
from .ast import EXISTS, At, Atom, Column, Formula, Operation, Setup, Test, Value, Vma, atoms
from .errors import LitmusError, at_place
from .mutants import substitutes
from .operations import FAULT, HUGE_COPY, HUGE_FAULT, KERNEL_OPERATIONS, OPERATIONS, Need

FLAGS = {
    "dontcopy": vm.DONTCOPY,
    "userfault": vm.USERFAULT,
    "locked": vm.LOCKED,
    "shared": vm.SHARED,
    "hugepage": vm.HUGEPAGE,
}


EVENTS = {
    "fork": FEATURE_EVENT_FORK,
    "remap": FEATURE_EVENT_REMAP,
    "remove": FEATURE_EVENT_REMOVE,
    "unmap": FEATURE_EVENT_UNMAP,
}


class Builder:
    """One test on one era."""

    def __init__(self, test: Test, era: str) -> None:
        self.test, self.era = test, era
        self.mms: dict[str, mm_struct] = {}
        self.pages: dict[str, page] = {}
        self.places: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.registers: dict[tuple[int, str], register] = {}
        self.ctxs: dict[str, userfaultfd_ctx] = {}

    def fail(self, at: At, problem: str, instead: str) -> LitmusError:
        return at_place(self.test.file, at.line, at.column, self.test.text, problem, instead)

    def program(self, mutant: str | None, outcome: bool = False) -> Program:
        """outcome: for `check.outcomes`: the final states are read, not judged."""
        if self.era not in eras.ERAS:
            raise LitmusError(f"there is no era {self.era!r}: one of {', '.join(eras.ERAS)}")
        if self.era not in self.test.eras:
            raise LitmusError(
                f"{self.test.name} says nothing of {self.era} (it has {', '.join(self.test.eras)}): add `expect {self.era} ...`"
            )
        eras.use(self.era)
        self.initial_state()
        threads = [self.thread(number, column) for number, column in enumerate(self.test.threads)]
        self.provide()
        self.name_objects()
        finals = [Call(self.condition())] if self.test.condition is not None and not outcome else []
        if config.MEMORY_IS_SHORT and not outcome:
            finals += [Call(anon_vmas_are_accounted), Call(pages_are_accounted)]
        for at, value in self.test.locations:
            self.reading(value, at)
        observers = [self.observer(number, value) for number, value in enumerate(self.test.outcome)] if outcome else []
        return compile_program(
            self.test.name,
            threads,
            roots=[machine],
            invariants=[Call(each) for each in ALWAYS],
            finals=finals,
            names=self.names,
            substitute=substitutes(mutant) if mutant else None,
            ignore=self.test.ignored(self.era),
            observers=observers,
            pools=machines.pools(),
        )

    # -- the initial state --------------------------------------------------------------------------------------------

    def initial_state(self) -> None:
        test = self.test
        vmas = [each for each in test.init if isinstance(each, Vma)]
        setups = [each for each in test.init if isinstance(each, Setup)]
        words = {op.name for column in test.threads for op in column.operations}
        huge = any(each.huge for each in vmas) or "hugepage" in {flag for each in vmas for flag in each.flags}
        machines.boot(
            cpus=len(test.threads),
            ksm="ksm" in words or any(line.what == "ksm" for line in setups),
            pt_reclaim=eras.era.empty_tables_are_freed and any(line.what == "ptreclaim" for line in setups),
            batched_unmap=eras.era.folios and any(line.what == "batchedflush" for line in setups),
            vma_locks=eras.era.per_vma_locks and any(line.what == "vmalocks" for line in setups),
            raced_events=self.raced_events(setups),
            huge=huge or not words.isdisjoint({"collapse", "split"}),
        )
        remaps = [op.args for column in test.threads for op in column.operations if op.name == "mremap"]
        ends = [int(args[0]) + (int(args[3]) if len(args) > 3 else 1) for args in remaps]
        self.span = max([each.last for each in vmas] + ends, default=0)
        if self.span > 16:
            raise self.fail(vmas[0].at, f"page {self.span - 1} is beyond the model's 16 pages", "use lower pages")
        for each in vmas:
            if each.mm not in self.mms:
                self.new_mm(each.mm)
        made = [(each, self.vma(each)) for each in vmas]
        for line in setups:
            if line.what == "fork":
                parent, child = line.names
                self.known_mm(parent, line.at)
                if child in self.mms:
                    raise self.fail(line.at, f"{child} exists already", "fork into a new name")
                sys_fork(self.mms[parent], self.new_mm(child))
        for each, vma in made:
            vma.vm_flags = self.flags(each)
            if "file" in each.flags:
                vma.vm_file = address_space()
            if "userfault" in each.flags and self.uses("wp", "unwp", "zeropage", "poison"):
                vma.ctx = self.ctxs.setdefault(each.mm, userfaultfd_ctx(mm=vma.vm_mm, wp_unpopulated=True))
                if self.uses("wp", "unwp"):
                    vma.vm_flags |= int(vm.UFFD_WP)
        for line in setups:
            self.setup(line)
        for number, column in enumerate(test.threads):
            here = machine.cpus[number]
            here.tlb = [tlb_t() for _ in range(self.span)]
            if column.mm:
                here.mm = self.known_mm(column.mm, column.at)

    def raced_events(self, setups: list[Setup]) -> int:
        """What the monitor asked to be told."""
        asked = 0
        for line in setups:
            for name in line.names if line.what == "events" else ():
                if name not in EVENTS:
                    raise self.fail(line.at, f"there is no event {name}", f"one of {', '.join(EVENTS)}")
                asked |= EVENTS[name]
        return asked

    def uses(self, *names: str) -> bool:
        return any(op.name in names for column in self.test.threads for op in column.operations)

    def new_mm(self, name: str) -> mm_struct:
        mm = machines.new_mm(self.span)
        self.mms[name] = mm
        return mm

    def known_mm(self, name: str, at: At) -> mm_struct:
        if name not in self.mms:
            raise self.fail(at, f"there is no address space {name}", "give it a VMA in the initial state")
        return self.mms[name]

    def known_page(self, name: str, at: At) -> page:
        if name not in self.pages:
            raise self.fail(at, f"there is no page {name}", "map it in the initial state: `A:0-1 = P`")
        return self.pages[name]

    def flags(self, each: Vma) -> int:
        flags = int(vm.READ) if "readonly" in each.flags else int(vm.READ | vm.WRITE)
        for name, flag in FLAGS.items():
            if name in each.flags:
                flags |= int(flag)
        return flags

    def vma(self, each: Vma) -> vm_area_struct:
        mm = self.mms[each.mm]
        for other in mm.mmap:
            if other.vm_start < each.last and each.first < other.vm_end:
                raise self.fail(each.at, "this VMA overlaps another", "give it pages of its own")
        if len(each.pages) > each.last - each.first:
            raise self.fail(each.at, f"{len(each.pages)} pages in a VMA of {each.last - each.first}", "a larger VMA")
        machine.cpus[0].mm = mm
        machine.cpus[0].tlb = [tlb_t() for _ in range(self.span)]
        pgoff = each.first if each.pgoff is None else each.pgoff
        vma = do_mmap(mm, each.first, each.last - each.first, int(vm.WRITE), pgoff)
        if "untouched" in each.flags:
            if each.pages:
                raise self.fail(each.at, "an untouched VMA has no pages", "leave out `untouched` or the pages")
            return vma
        anon_vma_prepare(vma)
        for at, name in enumerate(each.pages):
            if name in self.pages:
                raise self.fail(each.at, f"page {name} is mapped already", "share pages by `fork`")
            addr = each.first + at
            if name == "zero":
                do_anonymous_page(vma, addr, False)
                continue
            if name == "none":
                continue
            self.places[name] = addr
            if each.huge:
                if each.first % 2 or each.last - each.first < 2:
                    raise self.fail(
                        each.at, "a huge page is two aligned pages here", "an even first page, two or more pages"
                    )
                do_huge_pmd_anonymous_page(vma, addr)
                self.pages[name] = mm.pmd[addr >> 1].pmd.page
                token = len(self.pages)
                machine.pages[self.pages[name].pfn].data = token
                machine.pages[self.pages[name].pfn + 1].data = token
            else:
                do_anonymous_page(vma, addr, True)
                table: page_table = mm.pmd[addr >> 1].pmd.table
                self.pages[name] = table.pte[addr & 1].pte.page
                self.pages[name].data = len(self.pages)
        if not each.pages and not self.huge_target(each):
            pte_alloc(mm, each.first)
        return vma

    def huge_target(self, each: Vma) -> bool:
        """An empty VMA that a huge page may be moved to keeps its PMD empty."""
        return each.first % 2 == 0 and each.last - each.first >= 2

    def setup(self, each: Setup) -> None:
        if each.what == "swapout":
            p = self.known_page(each.names[0], each.at)
            cached = "cached" in each.names
            machine.cpus[0].mm = None  # type: ignore[assignment]
            if cached:
                get_page(p)
            shrink_page(p)
            if cached:
                put_page(p)
        elif each.what == "forget":
            mm, p = self.known_mm(each.names[0], each.at), self.known_page(each.names[1], each.at)
            if madvise_dontneed(mm, self.places[each.names[1]], 2 if p.compound else 1) != 0:
                raise self.fail(each.at, f"{each.names[0]} has nothing there", "fork it from who has the page")
        elif each.what == "failures":
            if not 0 < each.number <= 3:
                raise self.fail(each.at, f"{each.number} allocations can't fail", "1 to 3")
            config.MEMORY_IS_SHORT = True
            machine.failures = each.number
        elif each.what == "waiting":
            raise self.fail(each.at, "a fault of the model raises SIGBUS", '`kernel only "reason"`')
        elif each.what == "pin":
            p = self.known_page(each.names[0], each.at)
            get_page(p)
            p.pincount += 1
        elif each.what == "pool":
            makers: dict[str, Callable[[], object]] = {
                "page": machines.new_page,
                "anon_vma": machines.new_anon_vma,
                "anon_vma_chain": self.free_chain,
                "swap_slot": machines.new_swap_slot,
                "page_table": self.free_table,
            }
            if each.names[0] not in makers:
                raise self.fail(each.at, f"there is no pool {each.names[0]}", f"one of {', '.join(makers)}")
            for _ in range(each.number):
                makers[each.names[0]]()

    @staticmethod
    def free_chain() -> None:
        anon_vma_chain_new().allocated = False

    @staticmethod
    def free_table() -> None:
        machines.new_page_table().allocated = False

    def provide(self) -> None:
        """Free objects for what the threads may allocate."""
        needs = [OPERATIONS[op.name].need for column in self.test.threads for op in column.operations]
        if config.TRANSPARENT_HUGEPAGE:
            # A write to a shared huge page copies all of it, in v3.10, or splits the mapping and copies a part.
            hugepage = any(isinstance(each, Vma) and "hugepage" in each.flags for each in self.test.init)
            needs += [HUGE_FAULT if hugepage else HUGE_COPY for need in needs if need is FAULT]
            migrations = sum(op.name == "migrate" for column in self.test.threads for op in column.operations)
            if eras.era.pte_mapped_huge and any(isinstance(each, Vma) and each.huge for each in self.test.init):
                needs += [Need(huge=1)] * migrations
        self.ensure(machine.pages, sum(n.pages for n in needs), machines.new_page)
        for _ in range(sum(n.huge for n in needs)):
            while len(machine.pages) % 2:
                machines.new_page()
            machines.new_page()
            machines.new_page()
        self.ensure(machine.anon_vmas, sum(n.anon_vmas for n in needs), machines.new_anon_vma)
        self.ensure(machine.anon_vma_chains, sum(n.anon_vma_chains for n in needs), self.free_chain)
        self.ensure(machine.page_tables, sum(n.page_tables for n in needs), self.free_table)
        self.ensure(machine.swap_slots, sum(n.swap_slots for n in needs), machines.new_swap_slot)
        for _ in range(sum(n.stable_nodes for n in needs)):
            machine.stable_nodes.append(stable_node())
            machine.rmap_items.append(rmap_item())
        for _ in range(sum(n.vmas for n in needs)):
            machine.vmas.append(vm_area_struct())

    @staticmethod
    def ensure(pool: list[Any], count: int, make: Callable[[], object]) -> None:
        free = sum(
            not getattr(each, "allocated", each in machine.swap_slots and (each.swap_map or each.has_cache))
            for each in pool
        )
        for _ in range(count - free):
            make()

    def name_objects(self) -> None:
        for name, p in self.pages.items():
            self.names[id(p)] = name
        self.names[id(machine)] = "machine"
        for number, here in enumerate(machine.cpus):
            self.names[id(here)] = f"cpu{number}"
        for name, mm in self.mms.items():
            self.names[id(mm)] = name
            for at, pmdp in enumerate(mm.pmd):
                self.names[id(pmdp)] = f"pmd[{name}:{2 * at}]"
                if pmdp.pmd.kind == PmdKind.TABLE:
                    self.names[id(pmdp.pmd.table)] = f"table[{name}:{2 * at}]"
                    for slot, ptep in enumerate(pmdp.pmd.table.pte):
                        self.names[id(ptep)] = f"pte[{name}:{2 * at + slot}]"
            for vma in mm.mmap:
                self.names[id(vma)] = f"vma[{name}:{vma.vm_start}]"
                if vma.anon_vma is not None and id(vma.anon_vma) not in self.names:
                    self.names[id(vma.anon_vma)] = f"anon_vma[{name}:{vma.vm_start}]"

    # -- threads ------------------------------------------------------------------------------------------------------

    def thread(self, number: int, column: Column) -> ThreadSpec:
        calls = [self.operation(number, column, op) for op in column.operations]
        title = "; ".join(" ".join([op.name, *map(str, op.args)]) for op in column.operations)
        return ThreadSpec(title, calls, [Call(check_no_locks_held)])

    def operation(self, number: int, column: Column, op: Operation) -> Call:
        kind = OPERATIONS.get(op.name)
        if kind is None and op.name in KERNEL_OPERATIONS:
            raise self.fail(op.at, f"no era of the model has {op.name}", '`kernel only "reason"` instead of `expect`')
        if kind is None:
            raise self.fail(op.at, f"there is no operation {op.name}", f"one of {', '.join(OPERATIONS)}")
        if kind.eras and self.era not in kind.eras:
            raise self.fail(
                op.at, f"{op.name} does not exist in {self.era}", f"expect it only in {', '.join(kind.eras)}"
            )
        if kind.needs_mm and not column.mm:
            raise self.fail(
                op.at, f"{op.name} runs in an address space, {column.name} has none", f"`{column.name} : A`"
            )
        args = self.arguments(op, kind.shape)
        fn, values = kind.call(self.mms.get(column.mm, None), args)  # type: ignore[arg-type]
        into = None
        if op.register:
            into = (self.register_of(number, op.register), "value")
        return Call(fn, values, into)

    def arguments(self, op: Operation, shape: tuple[str, ...]) -> list[Any]:
        required = shape.index("?") if "?" in shape else len(shape)
        wanted = [each for each in shape if each != "?"]
        if not required <= len(op.args) <= len(wanted):
            raise self.fail(
                op.at, f"{op.name} takes {' '.join(shape)}", "see `userfault litmus show` and docs/litmus.md"
            )
        out: list[Any] = []
        for value, want in zip(op.args, wanted, strict=False):
            if want in ("addr", "int"):
                if not isinstance(value, int):
                    raise self.fail(op.at, f"{value} is not a number", f"{op.name} {' '.join(shape)}")
                if want == "addr" and not 0 <= value < self.span:
                    raise self.fail(op.at, f"page {value} is beyond every VMA", f"0 to {self.span - 1}")
                out.append(value)
            elif want == "page":
                out.append(self.known_page(str(value), op.at))
            elif want == "mm":
                if str(value) in self.mms:
                    raise self.fail(op.at, f"{value} exists already", "fork into a new name")
                fresh = self.new_mm(str(value))
                fresh.allocated = False
                out.append(fresh)
            elif str(value) == want:
                out.append(value)
            else:
                raise self.fail(op.at, f"expected {want}, found {value}", f"{op.name} {' '.join(shape)}")
        return out

    def register_of(self, number: int, name: str) -> register:
        key = (number, name)
        if key not in self.registers:
            self.registers[key] = register()
            machine.registers.append(self.registers[key])
            self.names[id(self.registers[key])] = f"{number}:{name}"
        return self.registers[key]

    # -- the condition ------------------------------------------------------------------------------------------------

    def condition(self) -> Callable[[], None]:
        """The condition as a function for the checker: its text is made from the formula."""
        scope: dict[str, Any] = {"check": check, "reached": reached, **STATES}
        assert self.test.condition is not None
        expression = self.expression(self.test.condition, scope)
        words = {"forall": "", "~exists": "not "}.get(self.test.quantifier)
        if words is None:
            lines = ["def condition() -> None:", f"    if {expression}:", f"        reached({EXISTS!r})"]
        else:
            message = "the threads ended in a state that the test rules out"
            lines = ["def condition() -> None:", f"    check({words}({expression}), 'condition', {message!r})"]
        exec(compile("\n".join(lines), f"{self.test.name}.litmus", "exec"), scope)
        fn: Callable[[], None] = scope["condition"]
        fn.__source__ = (f"litmus/{self.test.name}", 1, lines)  # type: ignore[attr-defined]
        return fn

    def expression(self, node: Formula | Atom, scope: dict[str, Any]) -> str:
        if isinstance(node, Formula):
            if node.kind == "not":
                return f"(not {self.expression(node.parts[0], scope)})"
            return "(" + f" {node.kind} ".join(self.expression(part, scope) for part in node.parts) + ")"
        compare = "==" if node.compare == "=" else node.compare
        name = f"v{len(scope)}"
        at = node.at
        if node.of.kind == "register":
            scope[name] = self.known_register(node.of, at)
            return f"({name}.value {compare} {node.value})"
        if node.of.kind == "mapcount":
            scope[name] = self.known_page(node.of.name, at)
            return f"({name}.mapcount.counter {compare} {node.value})"
        scope[name] = self.known_mm(node.of.name, at)
        if node.of.kind not in STATES:
            raise self.fail(at, f"the model of {self.era} knows no {node.of.kind}", '`kernel only "reason"`')
        return f"({node.of.kind}({name}, {node.of.number}) {compare} {node.value})"

    def known_register(self, value: Value, at: At) -> register:
        if (value.number, value.name) not in self.registers:
            raise self.fail(at, f"no operation sets {value}", "`r0 = OPERATION` in that thread")
        return self.registers[value.number, value.name]

    # -- the outcome --------------------------------------------------------------------------------------------------

    def observer(self, number: int, value: Value) -> Call:
        """Writes part `number` of the outcome to a register of its own."""
        out = register()
        machine.registers.append(out)
        self.names[id(out)] = f"outcome {number}"
        named = [*self.test.locations, *((atom.at, atom.of) for atom in atoms(self.test.condition))]
        at = next((at for at, each in named if each == value), At(1, 1))
        fn, args = self.reading(value, at)
        return Call(fn, args, (out, "value"))

    def reading(self, value: Value, at: At) -> tuple[Callable[..., int], tuple[Any, ...]]:
        """The function that reads a value of a final state, and its arguments."""
        if value.kind == "register":
            return register_value, (self.known_register(value, at),)
        if value.kind == "mapcount":
            return page_mapcount, (self.known_page(value.name, at),)
        if value.kind not in STATES:
            raise self.fail(at, f"the model of {self.era} knows no {value.kind}", '`kernel only "reason"`')
        return STATES[value.kind], (self.known_mm(value.name, at), value.number)


def register_value(of: register) -> int:
    return of.value


def page_mapcount(p: page) -> int:
    return p.mapcount.counter


def content(mm: mm_struct, number: int) -> int:
    """What user code would find at a page without faulting anything in: its content, 0 for the zero page, -1 for none."""
    pmd = mm.pmd[number >> 1].pmd
    if config.TRANSPARENT_HUGEPAGE and pmd.kind == PmdKind.HUGE:
        return machine.pages[pmd.page.pfn + (number & 1)].data  # type: ignore[return-value]
    if pmd.kind == PmdKind.HUGE_ZERO:
        return 0
    if pmd.kind != PmdKind.TABLE:
        return -1
    pte = pmd.table.pte[number & 1].pte
    if pte.kind == PteKind.PRESENT:
        return 0 if pte.special else pte.page.data  # type: ignore[return-value]
    if pte.kind == PteKind.SWAP:
        return pte.slot.data if pte.slot.cache is None else pte.slot.cache.data  # type: ignore[return-value]
    if pte.kind == PteKind.GUARD_MARKER:
        return -SIGSEGV
    if pte.kind == PteKind.POISON_MARKER or pte.kind == PteKind.WP_MARKER:
        return -SIGBUS
    return -1


def present(mm: mm_struct, number: int) -> int:
    """1 if the page table maps a page there."""
    pmd = mm.pmd[number >> 1].pmd
    if pmd_trans_huge(pmd):
        return 1
    return int(pmd.kind == PmdKind.TABLE and pmd.table.pte[number & 1].pte.kind == PteKind.PRESENT)


def swapped(mm: mm_struct, number: int) -> int:
    """1 if the page table holds an entry that is no mapping: swap, migration."""
    pmd = mm.pmd[number >> 1].pmd
    if pmd.kind != PmdKind.TABLE:
        return int(is_swap_pmd(pmd))
    kind = pmd.table.pte[number & 1].pte.kind
    return int(kind != PteKind.NONE and kind != PteKind.PRESENT)


def wp(mm: mm_struct, number: int) -> int:
    """1 if the page table has the page, or the hole, write-protected by userfaultfd."""
    pmd = mm.pmd[number >> 1].pmd
    return int(pmd.kind == PmdKind.TABLE and pmd.table.pte[number & 1].pte.uffd_wp)


STATES = {"memory": content, "content": content, "present": present, "swapped": swapped, "wp": wp}

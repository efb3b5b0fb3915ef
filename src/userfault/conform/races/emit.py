"""A litmus test as a C program of its own: one file without dependencies, as one sends it to the kernel's developers."""

from __future__ import annotations

from collections.abc import Sequence

from ...kernel.race import Op, Race, defines, pieces
from ...litmus.ast import Atom, Formula, Test, Value
from ..needs import NEEDS
from .histogram import show_formula, value_kind
from .lower import BLOCK, SMALL, Lowered, lower

ALWAYS = ("head", "place", "rounds", "engine", "report")
PROTECTIONS = {1: "PROT_READ", 2: "PROT_WRITE", 3: "PROT_READ | PROT_WRITE"}


def emit(test: Test) -> str:
    """The program. It takes numbers of rounds and seconds and prints what `userfault run` prints. Raises Unrunnable, LitmusError."""
    lowered = lower(test)
    race = lowered.race
    lists = [*race.setup, *(ops for _, ops in race.threads), *race.observe]
    used = chosen(race, {op.name for ops in lists for op in ops})
    needs = [f"//   {need}: {NEEDS[need].remedy}" for need in sorted(lowered.needs)]
    parts = [
        "// SPDX-License-Identifier: Apache-2.0",
        f"// {test.name}: {test.question}",
        "//",
        # A line of a test may end in a backslash, which would carry the comment on.
        *(f"// {line}".rstrip().removesuffix("\\") for line in test.text.splitlines()),
        "//",
        "// gcc -O2 -pthread -Wall -Wextra FILE.c && ./a.out [ROUNDS [SECONDS]]  (--help)",
        *(["// It needs:", *needs] if needs else []),
    ]
    for piece in pieces():
        if piece.name in used:
            parts += ["", piece.text]
    return "\n".join([*parts, "", *body(lowered, used)]) + "\n"


def chosen(race: Race, operations: set[str]) -> set[str]:
    """The names of the pieces that define the operations, and of those that they need."""
    by_name = {piece.name: piece for piece in pieces()}
    work = [*ALWAYS, *(piece.name for piece in pieces() if operations & set(defines(piece)))]
    if race.blocking or race.events:
        work.append("rescue")
    used: set[str] = set()
    while work:
        name = work.pop()
        if name not in used:
            used.add(name)
            work += by_name[name].needs
    return used


def body(lowered: Lowered, used: set[str]) -> list[str]:
    test, race, fields = lowered.test, lowered.race, lowered.fields
    out = ["// The test.", "", *address_macro(race)]
    out += ["static long setup(char *base, int mm)", "{", "    long r = 0;"]
    for mm, ops in enumerate(race.setup):
        if ops:
            out.append(f"    if (mm == {mm}) {{")
            for at, op in enumerate(ops):
                if mm == 0:
                    out.append(f"        step(-1, {at + 1});")
                out.append(f"        if ((r = {call(op, race)}) < 0) return r;")
            out.append("    }")
    out += ["    return r;", "}", ""]
    if not any(race.setup):
        out[-6:-6] = ["    (void)base, (void)mm;"]
    out += ["static void thread(char *base, int number)", "{"]
    for number, (_, ops) in enumerate(race.threads):
        out.append(f"    if (number == {number}) {{")
        for at, (op, said) in enumerate(zip(ops, test.threads[number].operations, strict=True)):
            text = " ".join([*([f"{said.register} ="] if said.register else []), said.name, *map(str, said.args)])
            call_ = call(op, race)
            done = f"set({op.field}, {call_});" if op.field >= 0 else f"{call_};"
            out.append(f"        step(number, {at + 1});")
            out.append(f"        {done} // {text}")
        out.append("    }")
    out += ["}", "", "static void observe(char *base, int mm)", "{"]
    if not any(race.observe):
        out.append("    (void)base, (void)mm;")
    for mm, ops in enumerate(race.observe):
        out += [f"    if (mm == {mm}) set({op.field}, {call(op, race)}); // {fields[op.field]}" for op in ops]
    out += ["}", "", "static int holds(const int32_t *f)", "{"]
    out += ["    (void)f;", f"    return {expression(test.condition, fields)};", "}", ""]
    before = [
        f"    {name}();"
        for piece, name in (("pipe", "empty_pipes"), ("ring", "let_go"), ("event", "close_children"))
        if piece in used
    ]
    if before:
        out += ["static void before(void)", "{", *before, "}", ""]
    names = ", ".join(f'"{field}"' for field in fields) or '""'
    kinds = "".join(value_kind(test, field) for field in fields)
    condition = show_formula(test, test.condition).replace("\\", "\\\\") if test.condition is not None else ""
    mms = ", ".join(str(mm) for mm, _ in race.threads)
    out += [
        f"static const char *const names[] = {{{names}}};",
        "static const struct test the_test = {",
        f'    .name = "{test.name}", .threads = {len(race.threads)}, .mms = {len(race.setup)}, .fields = {len(fields)},',
        f"    .huge = {int(race.huge)}, .blocking = {int(race.blocking)}, .events = {int(race.events)}, .mm_of = {{{mms}}},",
        "    .setup = setup, .thread = thread, .observe = observe, .holds = holds, .names = names,",
        *(["    .before = before,"] if before else []),
        *(["    .rescuer = rescuer,"] if "rescue" in used else []),
        f'    .kinds = "{kinds}", .quantifier = "{test.quantifier}",',
        f'    .condition = "{condition}",',
        "};",
        "",
        "int main(int count, char **arguments)",
        "{",
        "    return run_and_report(&the_test, count, arguments);",
        "}",
    ]
    return out


def address_macro(race: Race) -> list[str]:
    if race.huge:
        return [
            "// Page 2k is the first small page of the k-th 2 MiB, page 2k + 1 the second.",
            "#define PAGE(n) ((n) / 2 * BLOCK + (n) % 2 * SMALL)",
            "",
        ]
    return ["#define PAGE(n) ((n) * SMALL)", ""]


ADDRESSES = {
    "move": (0, 1),
    "reclaim": (0, 1, 2, 3),
    "migrate": (0, 1, 2, 3),
    "mremap": (0, 2),
    "fork": (),
    "child": (),
    "mapcount": (),
    "splice": (),
    "event": (),
    "sleep": (),
}
"""Which arguments of an operation are addresses; of the others, the first."""
LENGTHS = {"map": 1, "advise": 1, "protect": 1, "lock": 1, "unlock": 1, "register": 1, "swapout": 1, "move": 2}
LENGTHS |= {"zeropage": 1, "wp": 1, "poison": 1, "wake": 1, "unregister": 1, "munmap": 1, "mremap": 1}
FLAGS = {"map": 3, "protect": 2}


def call(op: Op, race: Race) -> str:
    """The call, with addresses as pages and lengths as pages or blocks."""
    args = []
    for at, value in enumerate((*op.args, 0, 0, 0, 0)[:4]):
        if at >= len(op.args):
            args.append("0")
        elif at in ADDRESSES.get(op.name, (0,)):
            args.append(f"PAGE({page(value, race)})")
        elif LENGTHS.get(op.name) == at:
            args.append(f"{value // BLOCK} * BLOCK" if value % BLOCK == 0 else f"{value // SMALL} * SMALL")
        elif FLAGS.get(op.name) == at:
            args.append(PROTECTIONS[value])
        else:
            args.append(str(int(value)))
    return f"op_{op.name}(base, {', '.join(args)})"


def page(offset: int, race: Race) -> int:
    return offset // BLOCK * 2 + offset % BLOCK // SMALL if race.huge else offset // SMALL


def expression(node: Formula | Atom | None, fields: Sequence[Value]) -> str:
    """The condition in C, over the outcome's fields."""
    if node is None:
        return "1"
    if isinstance(node, Atom):
        compare = "==" if node.compare == "=" else node.compare
        return f"(f[{fields.index(node.of)}] {compare} {node.value})"
    if node.kind == "not":
        return f"!{expression(node.parts[0], fields)}"
    joint = " && " if node.kind == "and" else " || "
    return "(" + joint.join(expression(part, fields) for part in node.parts) + ")"

"""The words of the model that the checker knows: waiting, checking, choosing."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from . import lists
from .ir import Op
from .names import SITUATIONS
from .symbols import Label, Py, Sym, Unreachable, Val
from .types import INT, IntT

if TYPE_CHECKING:
    from .body import Body


def intrinsic(body: Body, name: str, args: list[Sym], node: ast.AST) -> Sym:
    if name == "read_once":
        return args[0]
    if name == "wait_until":
        cond = lists.truth(body, args[0], node)
        if cond.operand < 0:
            if not body.value(cond):
                body.emit(Op.WAIT, a=cond.operand)
                body.dead = True
                raise Unreachable
        else:
            body.emit(Op.WAIT, a=cond.operand)
        return Py(None)
    if name == "check":
        cond = lists.truth(body, args[0], node)
        prop, message = args[1], args[2]
        if not (isinstance(prop, Py) and isinstance(message, Py)):
            body.refuse(node, "check() needs literal property and message", "string literals")
        if body.unit.ask("ignored", prop.obj):
            return Py(None)
        ok, bad = Label(), Label()
        body.branch(cond, ok, bad)
        body.label(bad)
        if not body.dead:
            body.fail(str(prop.obj), str(message.obj))
        body.label(ok)
        if body.dead:
            raise Unreachable
        return Py(None)
    if name == "exhausted":
        assert isinstance(args[0], Py)
        body.fail("bound", f"the pool of {args[0].obj} is exhausted")
        raise Unreachable
    if name == "reached":
        assert isinstance(args[0], Py)
        body.emit(Op.REACH, base=SITUATIONS[str(args[0].obj)])
        return Py(None)
    if name == "touched":
        return Py(None)
    if name == "choose":
        assert isinstance(args[0], Val | Py)
        count = body.convert(args[0], INT, node)
        if count.operand >= 0:
            body.refuse(node, "choose() of a number not known while compiling", "a constant")
        n = body.value(count)
        d = body.local("choice", IntT(0, max(n - 1, 0)))
        if body.shared():
            body.begin_step()
        body.emit(Op.CHOOSE, d=d, base=n)
        return Val(INT, d)
    if name == "current_cpu":
        body.asked = True
        return Py(body.cpu)
    body.refuse(node, f"unknown intrinsic {name}", "a word of the vocabulary")

"""The import arrows of ARCHITECTURE.md hold in the code, and its rooms are the rooms on disk."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "userfault"

Arrows = dict[str, set[str]]


def read_arrows(markdown: str) -> Arrows:
    """The table under `## Arrows`: each room and the rooms it may import."""
    section = markdown.split("\n## Arrows\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("|")]
    header, _rule, *body = [[cell.strip().replace("`", "") for cell in row] for row in rows]
    assert header == ["room", "may import"]
    return {
        room: set() if allowed == "nothing" else {name.strip() for name in allowed.split(",")} for room, allowed in body
    }


def rooms_on_disk(package: Path) -> set[str]:
    """Directories with Python in them; what a switched branch left behind (caches) is no room."""
    return {path.relative_to(package).parts[0] for path in package.glob("*/**/*.py")}


def imported_names(tree: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of each import in a module of the package `inside`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            for alias in node.names:
                yield node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name])


def violations(package: Path, arrows: Arrows) -> list[str]:
    """One line, `file:line: what`, for each import that the table does not allow."""
    rooms = arrows.keys() | rooms_on_disk(package)
    found = []
    for path in sorted(package.glob("*/**/*.py")):
        inside = path.parent.relative_to(package.parent).parts
        room = inside[1]
        for line, name in imported_names(ast.parse(path.read_text(), str(path)), inside):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            allowed = {room} | arrows.get(room, set())
            if top == package.name and target in rooms - allowed:
                found.append(f"{path}:{line}: {room} may not import {target}")
    return found


ARROWS = read_arrows((ROOT / "ARCHITECTURE.md").read_text())


def test_rooms_on_disk_are_the_rooms_of_the_table() -> None:
    assert rooms_on_disk(PACKAGE) == ARROWS.keys()


def test_arrows_lead_to_rooms() -> None:
    assert set().union(*ARROWS.values()) <= ARROWS.keys()


def test_nobody_may_import_cli() -> None:
    assert not [room for room, allowed in ARROWS.items() if "cli" in allowed]


def test_code_follows_the_arrows() -> None:
    assert not violations(PACKAGE, ARROWS)


@pytest.mark.parametrize(
    "statement",
    [
        "import userfault.model",
        "import userfault.model.rmap as rmap",
        "from userfault import __version__, model",
        "from userfault.model import rmap",
        "from userfault.model.rmap import folio",
        "from ... import model",
        "from ...model import rmap",
        "def late():\n    from userfault.model import rmap",
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "userfault" / "check" / "engine" / "slow.py"
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    line = len(statement.splitlines())
    arrows: Arrows = {"model": set(), "check": {"native"}, "native": set()}
    assert violations(tmp_path / "userfault", arrows) == [f"{path}:{line}: check may not import model"]


@pytest.mark.parametrize(
    "statement",
    [
        "import ast, model",
        "from userfault import __version__",
        "from userfault.native import library",
        "from ...native import library",
        "from ..model import own",
        "from . import model",
        "from .model import own",
    ],
)
def test_an_allowed_import_is_not_found(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "userfault" / "check" / "engine" / "slow.py"
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    arrows: Arrows = {"model": set(), "check": {"native"}, "native": set()}
    assert violations(tmp_path / "userfault", arrows) == []


def test_a_room_outside_the_table_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "attic" / "deep").mkdir(parents=True)
    (tmp_path / "attic" / "deep" / "box.py").touch()
    (tmp_path / "gone" / "__pycache__").mkdir(parents=True)
    assert rooms_on_disk(tmp_path) == {"attic"}

"""The picture of the rooms, drawn from the imports: who may import from whom, and what `import mxa` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mxa

PACKAGE = Path(mxa.__file__).parent

#: From the ground up; a room imports from the floors below it alone.
FLOORS = (
    ("utils",),
    ("labels",),
    ("layers", "metrics"),
    ("data",),
    ("models",),
    ("task", "explain"),
    ("evaluation",),
    ("training",),
    ("deployment",),
    ("commands",),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

#: Modules that only give another room's names under the documented one, or start it.
DOORS = {"__init__", "__main__", "evaluate", "predictions", "run", "train"}

#: What `import mxa` may load at module level, beside the standard library.
LIGHT = {"mxa", "torch", "torchvision", "timm", "safetensors", "huggingface_hub", "numpy"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Every module that one imports, and whether it does so as it is loaded."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    late = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base, id(node) not in late


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_room_has_its_floor():
    rooms = {room_of(module) for module in MODULES} - DOORS - {"recipes"}
    assert rooms == set(FLOOR_OF)
    assert len(list(PACKAGE.glob("*.py"))) <= 10


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) not in DOORS])
def test_no_arrow_goes_upwards(module):
    own = room_of(module)
    for imported, _ in imports(module):
        if imported.startswith("mxa.") and (room := room_of(imported)) != own:
            assert room in FLOOR_OF, f"{module} imports {imported}, which is a door for outside code"
            assert FLOOR_OF[room] < FLOOR_OF[own], f"{module} imports {imported}, which is not below it"


def test_no_circle_between_files():
    """Late imports count too: a circle that only a function closes is one."""
    arrows = {module: {i for i, _ in imports(module) if i in MODULES and i != module} for module in MODULES}
    arrows = {m: {i for i in found if i not in ("mxa",)} for m, found in arrows.items() if room_of(m) not in DOORS}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(arrows.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


def loaded_by_import_mxa() -> set[str]:
    code = "import sys, mxa; print('\\n'.join(m for m in sys.modules if m == 'mxa' or m.startswith('mxa.')))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(shown.stdout.split())


def test_import_mxa_loads_nothing_heavy():
    loaded = loaded_by_import_mxa()
    assert {"mxa.models.efficientvit_ml", "mxa.layers.mxa_block"} <= loaded
    for module in loaded:
        for imported, at_once in imports(module):
            name = imported.partition(".")[0]
            assert not at_once or name in LIGHT | set(sys.stdlib_module_names), f"{module} imports {imported} at once"

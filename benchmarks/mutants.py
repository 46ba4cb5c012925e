"""What the tests would notice: mutants killed of mutants made, benchmarks/results/mutants.json.

    python benchmarks/mutants.py                              # goes on where it was, in order
    python benchmarks/mutants.py --only advssl/evaluation/ --sample 40

A mutant is a module with one small fault: another comparison, operator or constant, a statement, a
keyword, a context or a `detach` that is missing, another value returned. Of each module a seeded
sample is tried, in a copy of what is committed. Tests of the module's own file are run, and of
them those that execute the mutated line, quickest first, until one fails; one that hangs kills too.

A process imports and collects once and forks for each mutant, which then costs its tests alone: in
a function, its code is exchanged; outside of one, and where no test executes the line in that
process, the module is imported anew and all tests, or those that use it, are run. A longer sample
begins with the shorter one, so that a record grows. Survivors are tried again when tests changed; a
reason why one is harmless is written into the record by hand (`"harmless"`), and stays.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
import gc
import hashlib
import inspect
import json
import os
import random
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "mutants.json"
PRELOADED = ["torch", "timm", "pytorch_lightning", "lightly.loss", "kornia.augmentation", "scipy"]
PRELOADED += ["torchvision", "matplotlib.pyplot", "pandas", "jinja2", "msgspec", "hypothesis"]
PRELOADED += ["rich.progress", "safetensors", "pyautoattack", "torchmetrics", "sklearn.datasets"]
PRELOADED += ["sklearn.cluster", "sklearn.linear_model", "scipy.stats", "torch.utils.data"]
RUNNING = [f"tests/evaluation/test_{name}.py" for name in ("running", "evaluate")]
# In this order; what has one file of tests for many modules is collected once.
PLACES = [
    ("integrations", "advssl/integrations/lightning", ["tests/integrations/test_lightning.py"]),
    ("cli", "advssl/cli.py", ["tests/test_cli*.py", "tests/test_gallery.py"]),
    ("cli", "advssl/options.py", ["tests/test_options.py", "tests/test_cli.py"]),
    ("integrations", "advssl/integrations", ["tests/integrations/test_{}.py"]),
    ("evaluation", "advssl/evaluation/report", ["tests/evaluation/report/test_*.py"]),
    ("evaluation", "advssl/evaluation/running.py", RUNNING),
    ("evaluation", "advssl/evaluation", ["tests/evaluation/test_{}.py"]),
    ("papers", "examples/papers", ["tests/examples/papers/test_*.py"]),
    ("the rest", "advssl/doctor", ["tests/test_doctor.py"]),
    ("the rest", "advssl/monitors", ["tests/test_monitors.py"]),
    ("core", "advssl", ["tests/test_{}.py"]),
]
EXECUTED = "__executed__"
KILLED, TOOL = 1, 70  # what a process of a mutant ends with
QUIET = not os.environ.get("LOUD")


# --- mutants --------------------------------------------------------------------------------------


class Mutant(NamedTuple):
    """A module's text from `start` to `end`, in bytes, is another; lines stay where they are."""

    start: int
    end: int
    text: str
    operator: str
    lines: tuple[int, int]  # which a test must execute
    inside: bool  # of a function's body

    def applied(self, source: bytes) -> str:
        return (source[: self.start] + self.text.encode() + source[self.end :]).decode()


COMPARED: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
CALCULATED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
SHAPING = {"property", "staticmethod", "classmethod", "dataclass", "overload", "contextmanager"}


def mutants(source: str, most: int) -> list[Mutant]:
    """Of a module, the first so many in an order that is the same whenever it is asked."""
    data, whole = source.encode(), ast.dump(ast.parse(source))
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    changes = list(_changes(ast.parse(source)))
    random.Random(0).shuffle(changes)
    found: dict[Any, Mutant] = {}
    for node, text, operator, statement, inside in changes:
        start = starts[node.lineno - 1] + node.col_offset
        start -= operator == "decorator dropped"  # its node begins after its @
        end = starts[node.end_lineno - 1] + node.end_col_offset
        missing = "\n" * (data[start:end].count(b"\n") - text.count("\n"))
        text = text[:-1] + missing + text[-1:] if text.endswith(")") else text + missing
        mutant = Mutant(start, end, text, operator, (statement.lineno, node.end_lineno), inside)
        try:
            changed = ast.dump(ast.parse(mutant.applied(data))) != whole
        except SyntaxError:  # as where a part of an f-string has no place of its own
            continue
        if changed:
            found[mutant[:3]] = mutant
        if len(found) == most:
            break
    return list(found.values())


def _changes(tree: ast.Module) -> Iterator[tuple[Any, str, str, ast.stmt, bool]]:
    """A node, what it becomes, by which operator, in which statement, inside a function or not."""

    def walk(node: Any, statement: Any, inside: bool, names: list[str]) -> Iterator[Any]:
        if isinstance(node, ast.stmt):
            if _says_nothing(node):
                return
            statement = node
        for becomes, text, operator in _of(node, names):
            yield becomes, text, operator, statement, inside
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [a.arg for a in arguments if a.arg not in ("self", "cls")]
            for outer in (*node.args.defaults, *node.args.kw_defaults):
                yield from walk(outer, statement, inside, names) if outer else ()
            # A lambda outside of functions is made where the module is imported.
            within = inside or not isinstance(node, ast.Lambda)
            for part in [node.body] if isinstance(node, ast.Lambda) else node.body:
                yield from walk(part, statement, within, own)
            return
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST) and not isinstance(part, ast.JoinedStr):
                    yield from walk(part, statement, inside, names)

    return walk(tree, None, False, [])


def _says_nothing(node: ast.stmt) -> bool:
    """Imports, docstrings, names for types; of what is raised only that it is."""
    text = ast.unparse(node)
    return (
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        or (isinstance(node, ast.Assign | ast.AnnAssign) and "TypeVar(" in text)
        or (isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation))
        or (isinstance(node, ast.Assign) and text.startswith("__"))
    )


def _of(node: Any, names: list[str]) -> Iterator[tuple[Any, str, str]]:
    """What a node may become."""

    def other(operator: str, **fields: Any) -> tuple[Any, str, str]:
        changed = copy.copy(node)
        for name, value in fields.items():
            setattr(changed, name, value)
        return node, f"({ast.unparse(changed)})", operator

    match node:
        case ast.Compare(ops=[op]):
            for kind in COMPARED[type(op)]:
                yield other("comparison", ops=[kind()])
        case ast.BinOp(op=op, left=left, right=right) if type(op) in CALCULATED:
            if not any(isinstance(side, ast.JoinedStr) or _text(side) for side in (left, right)):
                yield other("arithmetic", op=CALCULATED[type(op)]())
        case ast.BoolOp(op=op):
            yield other("boolean", op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield node, f"({ast.unparse(operand)})", "sign or `not` dropped"
        case ast.IfExp(body=body, orelse=orelse):
            yield other("branches swapped", body=orelse, orelse=body)
        case ast.If(test=test) | ast.While(test=test):
            yield test, f"(not ({ast.unparse(test)}))", "condition negated"
        case ast.Constant(value=bool(value)):
            yield node, repr(not value), "constant"
        case ast.Constant(value=int(value)):
            yield node, repr(value + 1), "constant"
            if value > 1:
                yield node, repr(value - 1), "constant"
        case ast.Constant(value=float(value)):
            yield node, repr(2 * value if value else 1.0), "constant"
        case ast.Constant(value=str(value)) if value and " " not in value and "\n" not in value:
            yield node, repr(value + "_"), "constant"
        case ast.Call(func=ast.Attribute(value=value, attr=attr), args=[], keywords=[]):
            if attr not in ("items", "keys", "values", "__init__"):
                yield node, f"({ast.unparse(value)})", f"`.{attr}()` dropped"
        case ast.Call(keywords=[_, *_] as keywords):
            for word in keywords:
                if word.arg:
                    less = [k for k in keywords if k is not word]
                    changed = copy.copy(node)
                    changed.keywords = less
                    yield node, ast.unparse(changed), "keyword dropped"
        case ast.Return(value=value) if value is not None:
            if ast.unparse(value) != "None":
                yield node, "return None", "another return"
            if names and ast.unparse(value) != names[0]:
                yield node, f"return {names[0]}", "another return"
        case ast.AugAssign(op=op):
            if type(op) in CALCULATED:
                changed = copy.copy(node)
                changed.op = CALCULATED[type(op)]()
                yield node, ast.unparse(changed), "arithmetic"
            yield node, "pass", "statement dropped"
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete() | ast.Continue() | ast.Break():
            yield node, "pass", "statement dropped"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass", "statement dropped"
        case ast.With(items=items) if not any(item.optional_vars for item in items):
            head = copy.copy(items[-1].context_expr)
            head.lineno, head.col_offset = node.lineno, node.col_offset
            yield head, "if True", "context dropped"
        case ast.FunctionDef(decorator_list=decorators):
            for decorator in decorators:
                called = ast.unparse(decorator).partition("(")[0].rpartition(".")[2]
                if called not in SHAPING and called != "setter":
                    yield decorator, "", "decorator dropped"


def _text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# --- tests ----------------------------------------------------------------------------------------


class Suite:
    """A plugin of pytest's which hands what is collected over to `work`."""

    def __init__(self, work: Callable[[Suite], None]) -> None:
        self.work = work
        self.items: dict[str, Any] = {}
        self.failed = False
        self.fixture = ""  # of more than one test, while it is made
        self.users: dict[str, list[str]] = {}  # tests, by such a fixture

    def run(self, name: str) -> None:
        item = self.items[name]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.work(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.failed

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        before, name = self.fixture, fixturedef.argname
        if fixturedef.scope != "function":
            self.fixture = name
            self.users[name] = [test for test, i in self.items.items() if name in i.fixturenames]
        yield
        self.fixture = before


def collected(paths: Iterable[str], work: Callable[[Suite], None]) -> int:
    options = ["-q", "-s", "-pno:xdist", "-pno:cacheprovider", "-pno:faulthandler"]
    options += ["-Wignore::pytest.PytestAssertRewriteWarning"]  # of what is preloaded
    return int(pytest.main([*options, "--basetemp=../made", *paths], plugins=[Suite(work)]))


def forked(work: Callable[[], Any], seconds: float | None = None) -> int | None:
    """What a silent process of its own ends with; None if it took too long."""
    child = os.fork()
    if not child:
        code = TOOL
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2) if QUIET else ():
                os.dup2(null, stream)
            code = work() or 0
        finally:
            os._exit(code)
    ended = os.pidfd_open(child)
    in_time = bool(select.select([ended], [], [], seconds)[0])
    os.close(ended)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what it had started
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if in_time else None


class Baseline(NamedTuple):
    """Of modules as they are: which lines each test executes, and how long those that pass take."""

    lines: dict[str, dict[int, set[str]]]
    seconds: dict[str, float]

    def tests(self, module: str, mutant: Mutant) -> list[str]:
        """That may notice a mutant, quickest first."""
        found = self.executing(module, mutant)
        if not found and mutant.inside:  # in another process, perhaps: those that use the module
            found = set().union(*self.lines.get(module, {}).values())
        if not found:  # on import: a constant may only be read
            found = set(self.seconds)
        return sorted(found & set(self.seconds), key=self.seconds.__getitem__)

    def executing(self, module: str, mutant: Mutant) -> set[str]:
        """That were seen to execute it."""
        lines, (first, last) = self.lines.get(module, {}), mutant.lines
        return set().union(*(lines.get(n, ()) for n in range(first, last + 1) if mutant.inside))

    def limit(self, chosen: list[str], budget: float) -> float:
        """Seconds after which a mutant hangs, on a machine that does much else."""
        return 60 + 10 * min(budget, sum(self.seconds[t] for t in chosen))


def traced(tests: Suite, modules: dict[str, str], out: Path) -> None:
    """Run each test once, and write down what it executes of the modules, given by their paths."""
    hits: dict[tuple[str, int], set[str]] = defaultdict(set)
    seconds: dict[str, float] = {}
    running = ""

    def executed(module: str, line: int) -> None:
        hits[module, line].add(tests.fixture or running)

    setattr(builtins, EXECUTED, executed)
    for path, module in modules.items():
        before = Path(path).read_text(encoding="utf-8")
        exchange(before, compile(Noted(module).visit(ast.parse(before)), path, "exec"), path)
    for name in tests.items:
        running, tests.failed, started = name, False, time.monotonic()
        tests.run(name)
        if not tests.failed:
            seconds[name] = time.monotonic() - started
    lines = [[*at, sorted(found)] for at, found in hits.items()]
    out.write_text(json.dumps([lines, seconds, tests.users]), encoding="utf-8")


class Noted(ast.NodeTransformer):
    """Each statement of a function says that it is executed."""

    def __init__(self, module: str) -> None:
        self.module = module

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = self.each(node.body)
        return node

    def each(self, body: list[ast.stmt]) -> list[ast.stmt]:
        found = []
        for at in body:
            said = ast.parse(f"{EXECUTED}({self.module!r}, {at.lineno})").body[0]
            found += [ast.copy_location(n, at) for n in ast.walk(said) if isinstance(n, ast.stmt)]
            ast.fix_missing_locations(found[-1])
            for field in ("body", "orelse", "finalbody"):
                if inner := getattr(at, field, None):
                    setattr(at, field, self.each(inner))
            for part in (*getattr(at, "handlers", ()), *getattr(at, "cases", ())):
                part.body = self.each(part.body)
            found.append(at)
        return found


def baseline(path: Path) -> Baseline:
    found, seconds, users = json.loads(path.read_text(encoding="utf-8"))
    lines: dict[str, dict[int, set[str]]] = defaultdict(dict)
    for module, line, tests in found:
        lines[module][line] = set().union(*(users.get(name, [name]) for name in tests))
    return Baseline(lines, seconds)


def functions(code: CodeType) -> Iterator[CodeType]:
    """All that a module's code has in it."""
    for const in code.co_consts:
        if isinstance(const, CodeType):
            if const.co_flags & inspect.CO_OPTIMIZED:  # not a class
                yield const
            yield from functions(const)


def exchange(before: str, after: CodeType, path: str) -> bool:
    """Give the functions that are there a mutant's code; False where that is not enough."""
    old, new = (list(functions(code)) for code in (compile(before, path, "exec"), after))
    if [(c.co_name, c.co_firstlineno) for c in old] != [(c.co_name, c.co_firstlineno) for c in new]:
        return False
    changed, done = {a: b for a, b in zip(old, new, strict=True) if a != b}, False
    gc.unfreeze()  # what is collected may be kept out of searches, as tests/conftest.py does
    for f in gc.get_objects():
        if type(f) is FunctionType and f.__code__.co_filename == path and f.__code__ in changed:
            try:
                f.__code__, done = changed[f.__code__], True
            except ValueError:  # it closes over other names
                return False
    return done


def no_bytecode() -> None:
    """Python tells sources apart by second and size, which mutants may have in common."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


# --- trying ---------------------------------------------------------------------------------------


Todo = dict[str, dict[int, Mutant]]


def tried(todo: Todo, paths: Sequence[str], budget: float) -> Iterator[tuple[str, int, str]]:
    """Of each mutant how it ended, with the tests of some files, in the copy where we are."""
    sources = {m: Path(m).read_text(encoding="utf-8") for m in todo}
    at = Path("../baseline.json").resolve()

    def trial(tests: Suite, chosen: list[str]) -> None:
        no_bytecode()
        started = time.process_time()
        for name in chosen:
            tests.run(name)
            if tests.failed:
                os._exit(KILLED)
            if time.process_time() - started > budget:
                break
        os._exit(0)

    def inside(tests: Suite) -> None:
        no_bytecode()
        path_of = {str(Path(m).resolve()): m for m in todo}
        if forked(lambda: traced(tests, path_of, at)):
            os._exit(TOOL)
        known = baseline(at)
        for path, m in path_of.items():
            for number, mutant in todo[m].items():
                chosen = known.tests(m, mutant)
                executed = known.executing(m, mutant)
                end = "unexecuted" if not chosen else "" if executed else "outside"
                if not end:
                    text = mutant.applied(sources[m].encode())
                    Path(m).write_text(text, encoding="utf-8")  # for processes that tests start

                    def work() -> None:
                        if not exchange(sources[m], compile(text, path, "exec"), path):
                            os._exit(TOOL)
                        trial(tests, chosen)

                    end = ended(forked(work, known.limit(chosen, budget)))
                os.write(writing, json.dumps([m, number, end]).encode() + b"\n")
            Path(m).write_text(sources[m], encoding="utf-8")
        os._exit(0)

    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2) if QUIET else ():
            os.dup2(null, stream)
        collected(paths, inside)
        os._exit(TOOL)
    os.close(writing)
    left = []
    with open(reading, encoding="utf-8") as rows:
        for row in rows:
            m, number, end = json.loads(row)
            if end == "outside":
                left.append((m, number))
            else:
                yield m, number, end
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(f"the tests of {paths} ended with {code}")
    known = baseline(at)
    for m, number in left:
        mutant = todo[m][number]
        chosen = known.tests(m, mutant)
        Path(m).write_text(mutant.applied(sources[m].encode()), encoding="utf-8")
        files = dict.fromkeys(name.partition("::")[0] for name in chosen)
        work = partial(collected, files, partial(trial, chosen=chosen))
        end = ended(forked(work, known.limit(chosen, budget)))
        seen = known.executing(m, mutant) or not mutant.inside
        yield m, number, end if seen or end != "survived" else "unexecuted"
        Path(m).write_text(sources[m], encoding="utf-8")


def ended(code: int | None) -> str:
    if code == TOOL:
        return "outside"
    return "hung" if code is None else "killed" if code else "survived"


# --- the record -----------------------------------------------------------------------------------


def groups() -> Iterator[tuple[str, list[str], list[str]]]:
    """What it is counted as, modules, and the files of their tests."""
    taken: set[str] = set()
    for kind, place, patterns in PLACES:
        at = Path(place)
        files = [at] if at.suffix else sorted(at.rglob("*.py"))
        new = [str(f) for f in files if f.name != "__init__.py" and str(f) not in taken]
        taken.update(new)
        for modules in [[m] for m in new] if "{}" in patterns[0] else [new]:
            named = (p.format(Path(modules[0]).stem) for p in patterns)
            tests = [str(f) for name in named for f in sorted(Path().glob(name))]
            if tests:
                yield kind, modules, tests


def digest(paths: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(Path(p).read_bytes() for p in paths)).hexdigest()[:12]


def begun(row: dict[str, Any] | None, module: str, tests: list[str], sample: int) -> dict[str, Any]:
    """A module's row: a new one if its text changed; survivors of other tests are to be tried."""
    source, by = digest([module]), digest(tests)
    reasons = {(s["was"], s["is"]): s["harmless"] for s in (row or {}).get("survivors", [])}
    if not row or row["source"] != source:
        row = {"source": source, "tests": by, "sampled": 0, "killed": 0, "hung": 0}
        row |= {"left": [], "survivors": []}
    if row["tests"] != by:
        row["left"] += [s["number"] for s in row["survivors"] if not s["harmless"]]
        row["survivors"] = [s for s in row["survivors"] if s["harmless"]]
        row["tests"] = by
    row["left"] += range(row["sampled"], sample)
    row["sampled"] = max(row["sampled"], sample)
    row["reasons"] = [[*both, why] for both, why in reasons.items() if why]
    return row


def settle(row: dict[str, Any], number: int, end: str, mutant: Mutant, source: str) -> None:
    """A mutant's end, in its module's row."""
    row["left"].remove(number)
    if end in ("killed", "hung"):
        row["killed"] += 1
        row["hung"] += end == "hung"
        return
    first, last = mutant.lines
    was, becomes = (
        " ".join(" ".join(text.splitlines()[first - 1 : last]).split())
        for text in (source, mutant.applied(source.encode()))
    )
    why = next((why for *both, why in row["reasons"] if both == [was, becomes]), None)
    found = {"number": number, "line": first, "operator": mutant.operator, "was": was}
    row["survivors"].append(
        {**found, "is": becomes, "executed": end == "survived", "harmless": why}
    )


def read(record: Path) -> dict[str, Any]:
    return json.loads(record.read_text(encoding="utf-8"))["rows"] if record.exists() else {}


def write(record: Path, module: str, row: dict[str, Any], told: dict[str, Any]) -> None:
    """A module's row in its place; what else was written meanwhile stays."""
    row = {k: v for k, v in row.items() if k != "reasons"}
    rows = dict(sorted({**read(record), module: row}.items()))
    part = record.with_suffix(".part")
    text = json.dumps({"name": "mutants", "rows": rows, **told}, indent=1, ensure_ascii=False)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(record)


def main(arguments: Sequence[str] | None = None) -> None:
    """Try what is not in the record yet, and write it on the way."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sample", type=int, default=20, help="mutants of a module")
    add("--only", default="", help="modules whose path begins so, or so, with commas")
    add("--budget", type=float, default=30, help="CPU seconds of tests for a mutant at most")
    add("--record", type=Path, default=RECORD)
    o = parser.parse_args(words)
    os.environ["OMP_NUM_THREADS"] = "1"
    told = dict(zip(("commit", "machine"), provenance(), strict=True))
    told["command"] = shlex.join(["python", "benchmarks/mutants.py", *words])
    for name in PRELOADED:
        with suppress(ImportError):
            import_module(name)
    record = o.record.resolve()
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        tree.mkdir()
        packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=-1, check=True)
        subprocess.run(["tar", "-x"], cwd=tree, input=packed.stdout, check=True)
        os.chdir(tree)
        sys.path[0] = os.environ["PYTHONPATH"] = str(tree)
        for kind, modules, tests in groups():
            rows, todo, sources = read(record), {}, {}
            for m in modules:
                if not m.startswith(tuple(o.only.split(","))):
                    continue
                sources[m] = Path(m).read_text(encoding="utf-8")
                found = mutants(sources[m], max(o.sample, rows.get(m, {}).get("sampled", 0)))
                sample = min(o.sample, len(found))
                rows[m] = {**begun(rows.get(m), m, tests, sample), "kind": kind}
                rows[m]["commit"] = told["commit"][:10]
                todo[m] = {n: found[n] for n in rows[m]["left"]}
            todo = {m: numbers for m, numbers in todo.items() if numbers}
            started = time.monotonic()
            for m, number, end in tried(todo, tests, o.budget) if todo else ():
                settle(rows[m], number, end, todo[m][number], sources[m])
                write(record, m, rows[m], told)
            for m in todo:
                row = rows[m]
                survived = f"{row['killed']} of {row['sampled']}"
                print(f"{time.monotonic() - started:5.0f} s", m, survived, flush=True)


def provenance() -> tuple[str, dict[str, Any]]:
    """Commit and machine, asked of another process: here nothing of ours is imported."""
    code = "import json; from advssl.evaluation.provenance import *; "
    code += "print(json.dumps([commit(), machine()]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=-1, check=True)
    commit, machine = json.loads(done.stdout)
    return commit.removesuffix("-dirty"), machine  # what is committed is what is tried


if __name__ == "__main__":
    main()

"""In an environment without the extras, all that is there works or names the line to install."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from test_architecture import PACKAGE

from advssl.extras import EXTRA_OF, check, lacking, needed

BASE = {"advssl", "kornia", "numpy", "torch", *sys.stdlib_module_names}
# Each as it is where nothing but torch, numpy and kornia is installed, in one process.
LEAN = """
import sys

sys.modules.update(dict.fromkeys(BLOCKED))
from advssl import cli
for words in (
    *("evaluate --backbone timm:resnet18", "evaluate --backbone cifar:cnn", "compare a b"),
    *("doctor ast:parse", "cost ast:parse", "gallery ast:parse"),
):
    try:
        cli.main(words.split())
    except SystemExit as error:
        print("said", words.split()[0], error, sep="|")
sys.path.insert(0, PAPERS)
import contextlib, io, reproduce, robustify
for script, words in (
    *((reproduce, words) for words in ("--list", "--help", "advcll", "advcl", "--table advcl-4")),
    *((robustify, words) for words in ("--help", "--steps 0", "--no-such", "--backbone cifar:cnn")),
):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            script.main(words.split())
        except SystemExit as error:
            print(error if isinstance(error.code, str) else "")
    lines = out.getvalue().splitlines()
    print("script", script.__name__, words, len(lines), lines[-1], sep="|")
print("heavy", [m for m in ("torch", "numpy", "kornia") if m in sys.modules], sep="|")
import advssl
for name in advssl.__all__:
    getattr(advssl, name)
from pathlib import Path
import torch
from advssl.evaluation import checkpoints, datasets, files, folders, hub, images
from advssl.integrations.timm import backbone
"""
USES = {
    "PIL": 'images.read_image("x.png")',
    "jinja2": "from advssl.evaluation.report.faces import _templates; _templates()",
    "markupsafe": "from advssl.evaluation.report import faces; faces.html(None)",
    "matplotlib": "from advssl.evaluation.report.look import look; look().__enter__()",
    "msgspec": "import advssl.evaluation.records",
    "pandas": "from advssl.evaluation.measuring import transfer; transfer({}, [], None)",
    "pyautoattack": "from advssl.evaluation.autoattack import AutoAttack; AutoAttack().settings",
    "rich": "from advssl.evaluation.progress import progress_bars; progress_bars().__enter__()",
    "safetensors": 'files._safetensors(Path("x.safetensors"))',
    "scipy": "from advssl.evaluation import damages",
    "sklearn": "datasets.open_digits(None, 0)",
    "torchvision": 'datasets.open_cifar(10, "", None)',
    "timm": 'backbone("timm:resnet18")',
    "transformers": 'hub._transformers(Path("x"), {}, "ViTForImageClassification")',
    "lightning_utilities": "from advssl.integrations.lightning.batches import _applied; "
    "_applied(1, None)",
    "pytorch_lightning": "import advssl.integrations.lightning",
}
# These stand behind an import that needs msgspec or Lightning.
ALONE = {"jinja2", "markupsafe", "matplotlib", "pandas", "pyautoattack", "rich"} | {
    "lightning_utilities"
}


def third_party(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    called = [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "needed"]
    names += [n.args[0].value for n in called if isinstance(n.args[0], ast.Constant)]
    return {name.partition(".")[0] for name in names} - BASE


def test_every_library_that_is_imported_is_of_an_extra():
    met = {name for file in PACKAGE.rglob("*.py") for name in third_party(file)}
    assert met - {"sklearn", "lightning"} <= {*EXTRA_OF}
    assert {*EXTRA_OF} - met <= {"sklearn"}  # which is needed by a name that is put together
    assert {*USES} == {*EXTRA_OF}


def run(code: str) -> list[list[str]]:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [line.split("|") for line in ran.stdout.splitlines()]


@pytest.mark.slow
def test_without_extras_commands_and_uses_say_at_once_what_to_install():
    """Each library alone is lacking where it is used, all of them where a command begins."""
    papers = str(PACKAGE.parent / "examples" / "papers")
    code = f"BLOCKED = {[*EXTRA_OF]}\nPAPERS = {papers!r}\n{LEAN}"
    for name in (name for name in USES if name not in ALONE):
        code += (
            f"try:\n    {USES[name]}\nexcept ImportError as e:\n    print('{name}', e, sep='|')\n"
        )
    said, lines = run(code), {}
    for first, *rest in said:
        lines.setdefault(first, []).append(rest)
    (_, timm), (_, own), (_, compare), *steps = lines.pop("said")
    assert [command for command, _ in steps] == ["doctor", "cost", "gallery"]
    for command, told in steps:
        assert told.startswith(f"advssl: advssl {command} needs msgspec")
        assert told.endswith('run: pip install "advssl[eval]"')
    assert timm.endswith('run: pip install "advssl[eval,timm]"')
    assert own.endswith('run: pip install "advssl[eval]"')
    assert compare.endswith('run: pip install "advssl[eval]"')
    assert "advssl: advssl compare needs PIL, jinja2, markupsafe, matplotlib, msgspec" in compare
    scripts = {(name, words): told for name, words, *told in lines.pop("script")}
    assert int(scripts["reproduce", "--list"][0]) > 100
    assert all(int(scripts[name, "--help"][0]) > 20 for name in ("reproduce", "robustify"))
    for (script, words), (_, told) in scripts.items():
        if words in ("advcl", "--table advcl-4", "--backbone cifar:cnn"):
            assert told.startswith(f"{script}.py: {script}.py needs PIL, "), told
            assert told.endswith('run: pip install "advssl[eval,lightning,timm]"')
    assert lines.pop("heavy") == [["[]"]]
    assert {*lines} == {*USES} - ALONE
    for name, ((message,),) in lines.items():
        assert f"needs {name}, which is not installed" in message
        assert message.endswith(f'run: pip install "advssl[{EXTRA_OF[name]}]"')


@pytest.mark.parametrize("name", sorted(ALONE))
def test_a_single_library_that_is_lacking_is_named(name, monkeypatch):
    import advssl.integrations.lightning.batches  # noqa: F401 (Lightning has it too)
    from advssl.evaluation.report import faces

    faces._templates.cache_clear()
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    install = rf'pip install "advssl\[{EXTRA_OF[name]}\]"'
    with pytest.raises(ImportError, match=f"needs {name}, .*{install}"):
        exec(USES[name], {})
    with pytest.raises(ImportError, match=f"evaluate needs {name}, which is not installed"):
        check(EXTRA_OF, "evaluate")


def test_all_that_is_lacking_is_said_in_one_line():
    error = lacking(["timm", "scipy", "rich"], "that")
    assert str(error) == (
        "that needs timm, scipy, rich, which are not installed; "
        'run: pip install "advssl[timm,eval]"'
    )
    assert needed("timm").create_model
    check(EXTRA_OF, "this")

"""Who may import whom, read from the sources; and what importing the SDK loads."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "safetensors", "transformers", "timm"}


def imports(path):
    """(module, whether at the top of the file) of every import statement."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), id(node) in top


def sources(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no sources"
    return files


@pytest.mark.parametrize("path", sources("ps3_sdk"), ids=lambda path: path.name)
def test_sdk_imports_neither_runtimes_nor_export_nor_heavy_packages(path):
    for module, at_top in imports(path):
        assert module.split(".")[0] not in HEAVY, f"{path.name} imports {module}"
        if at_top:
            assert not module.lstrip(".").startswith(("runtimes", "export")), f"{path.name} imports {module} at its top"


@pytest.mark.parametrize("path", sources("runtimes"), ids=lambda path: path.name)
def test_runtimes_import_no_export_at_their_top(path):
    for module, at_top in imports(path):
        assert not (at_top and "export" in module), f"{path.name} imports {module}"
        assert not (at_top and module.split(".")[0] in HEAVY), f"{path.name} imports {module} when imported"


def test_importing_the_sdk_loads_no_torch_and_no_runtime(tmp_path):
    code = f"import sys, ps3_sdk; print(sorted({HEAVY!r} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path).strip() == "[]"


@pytest.mark.parametrize("folder", ["ps3_sdk", "runtimes", "export", "tests", "examples", "benchmarks"])
def test_no_file_has_more_than_400_lines(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_source_folder_alone_says_what_to_do():
    result = subprocess.run([sys.executable, "-S", "-c", "import ps3_sdk"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode and "pip install ." in result.stderr


def test_children_do_not_import_the_checkout_they_are_started_in():
    """A checkout has the package's sources without the compiled core; `python -m` there would import those."""
    pytest.importorskip("torch", reason="children belong to exports: pip install 'ps3_sdk[export]'")
    from ps3_sdk.export.child import module
    result = subprocess.run(module("ps3_sdk", "info"), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "ps3" in result.stdout, result.stderr

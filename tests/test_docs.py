"""Documentation: its code runs, its links lead somewhere, its pictures are there, and what it names exists."""

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import stores
from cli import g2l
from pipeline.encoders.torchvision_cpu import make_importable
from stores.format import features, manifest
from tests.tools.deploy import deploy, write_tiles
from tests.tools.encoders import TINY
from tests.tools.settings import ROOT

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for top in ("docs", "pipeline", "stores") for page in ROOT.glob(f"{top}/**/*.md")),
    ]
)
CODE = sorted(
    [
        *ROOT.glob("*.py"),
        *(path for top in ("pipeline", "stores", "tests") for path in ROOT.glob(f"{top}/**/*.py")),
    ]
)


def test_the_reader_in_the_store_format_reads_a_store(store: Path) -> None:
    text = (ROOT / "docs/reference/store-format.md").read_text(encoding="utf-8")
    whole, code = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(whole, names)
    files = sorted(store.glob("manifest/**/*.parquet"))
    assert files
    assert all(names["parquet_is_whole"](path) for path in files)
    names = {}
    exec(code.replace('"brca"', repr(str(store))), names)
    assert set(names["targets"]) == {"a", "b", "c"}
    for row in manifest.read_slides(store):
        slide = features.open_features(store, row["slide_id"])
        np.testing.assert_array_equal(names["targets"][row["slide_id"]], slide.read_block(0, 0))


@pytest.mark.slow
def test_the_training_loop_trains(store: Path) -> None:
    """As it is written, but for the store, fewer steps and smaller batches."""
    text = (ROOT / "docs/how-to/train-in-your-own-loop.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code.splitlines()) <= 25
    for written, used in (('"brca", 1000', f"{str(store)!r}, 2"), ("batch_size=32", "batch_size=4")):
        assert written in code
        code = code.replace(written, used)
    make_importable()  # the example imports timm itself
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["saved"]["data"]["views_consumed"] == 8
    assert np.isfinite(names["loss"].item())


def test_the_features_of_a_slide_are_read_into_numpy(store: Path) -> None:
    text = (ROOT / "docs/how-to/read-features-into-numpy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code.splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(code.replace('"brca"', repr(str(store))), names)
    slide = features.open_features(store, names["slide_id"])
    np.testing.assert_array_equal(names["features"], slide.read_block(0, 0))
    np.testing.assert_array_equal(names["coords"], features.read_coords(store, names["slide_id"]))


def test_the_exported_student_runs_as_the_page_says(tmp_path: Path) -> None:
    text = (ROOT / "docs/how-to/deploy-a-student.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "onnxruntime" in block)
    deploy(TINY, tmp_path / "student-onnx", write_tiles(tmp_path / "tiles"), format="onnx")
    names: dict[str, Any] = {}
    exec(code.replace('"student-onnx', f'"{tmp_path}/student-onnx'), names)
    assert names["features"].shape == (4, 24)


def test_every_member_of_a_store_is_in_the_api_reference() -> None:
    text = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    for name in dir(stores.Store):
        assert name.startswith("_") or re.search(rf"`{name}\b", text), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def test_no_machine_paths_are_documented() -> None:
    for page in PAGES:
        assert not re.search(r"(^|[^A-Za-z0-9_.])/(home|root|tmp|work)/", page.read_text(encoding="utf-8")), (
            page
        )


_PATH = re.compile(r"""(?<![\w./"'-])(?:pipeline|stores|tests|docs)/[\w./*-]*\w""")
_DOTTED = re.compile(r"(?<![\w./-])(?:pipeline|stores|tests)(?!\.py\b)(?:\.[A-Za-z_]\w*)+")


def _prose(path: Path) -> str:
    """The page; of Python code its docstrings and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    strings = [
        node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    return "\n".join([*comments, *map(str, strings)])


def _names(module: Path) -> set[str]:
    """What a module binds anywhere in it: definitions, fields, imports, and what `__all__` lists."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Assign) and any(ast.unparse(to) == "__all__" for to in node.targets):
            found.update(ast.literal_eval(node.value))
    return found


def _missing(dotted: str) -> str:
    """The first part of a dotted name that does not exist, or an empty string."""
    folder, *rest = dotted.split(".")
    place = ROOT / folder
    while rest and (place / rest[0]).is_dir():
        place /= rest.pop(0)
    if rest and (place / f"{rest[0]}.py").is_file():
        module = place / f"{rest.pop(0)}.py"
    else:
        module = place / "__init__.py"
    names = _names(module) if rest else set()
    return next(
        (f"{dotted}: no {part} in {module.relative_to(ROOT)}" for part in rest if part not in names), ""
    )


def _stale(path: Path) -> list[str]:
    text = _prose(path)
    found = [f"{name} does not exist" for name in _PATH.findall(text) if next(ROOT.glob(name), None) is None]
    return found + [wrong for name in _DOTTED.findall(text) if (wrong := _missing(name))]


@pytest.mark.slow
@pytest.mark.parametrize("files", [PAGES, CODE], ids=["pages", "docstrings and comments"])
def test_paths_and_modules_that_are_named_exist(files: list[Path]) -> None:
    assert len(files) > 20
    assert not {str(path): wrong for path in files if (wrong := _stale(path))}


@pytest.mark.parametrize(
    "text",
    [
        "pipeline/views.py",
        "`stores/features.py`",
        "pipeline.cluster",
        "`pipeline.encoders.no_such_function`",
        "`stores.format.manifest.Commit.no_such_field`",
    ],
)
def test_a_stale_name_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    (tmp_path / "module.py").write_text(f'"""{text}"""\n')
    (tmp_path / "comment.py").write_text(f"# {text}\n")
    assert all(_stale(tmp_path / name) for name in ("page.md", "module.py", "comment.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_imported_names_in_examples_exist(page: Path) -> None:
    named = []
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "pipeline",
                "stores",
            ):
                named += [f"{node.module}.{name.name}" for name in node.names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("g2l", "stores"):
                named.append(f"{'pipeline' if ast.unparse(node.value) == 'g2l' else 'stores'}.{node.attr}")
    assert not [wrong for name in named if (wrong := _missing(name))]


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        named = re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M)
        assert set(named) <= targets, page


def _commands(page: Path) -> list[list[str]]:
    """The g2l commands in the examples of a page, each as words without ``g2l``."""
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
    blocks = blocks.replace("g2l view 1\n", "")  # a key that is hashed, no command
    lines = blocks.replace("\\\n", " ").replace("[", "").splitlines()
    found = (re.search(r"(?:^|\s)(?:g2l|cli\.py) ([a-z].*?)(?:\s#|$)", line) for line in lines)
    return [match[1].split() for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_examples_have_the_options_they_are_given(page: Path) -> None:
    for words in _commands(page):
        command: click.Command = g2l
        context = click.Context(command)
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0))
            assert found is not None, words
            command = found
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, (command.name, words)


def test_the_map_of_the_docs_leads_to_every_page() -> None:
    docs = ROOT / "docs"
    text = (docs / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        if docs in page.parents and page.name != "index.md" and page.parent.name != "decisions":
            assert f"]({page.relative_to(docs)})" in text, page

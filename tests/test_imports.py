"""What loading a module brings along: executors load little, definitions start nothing, our packages win."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
EXECUTOR_MODULES = [
    "events.app_events",
    "features.daily_fields",
    "features.encoded_rows",
    "features.feature_tokens",
    "features.feature_vocabulary",
    "features.normalize",
    "labels.training_set",
    "models.bundle",
    "models.bundle_loader",
    "row_groups",
    "scoring.predictions",
    "scoring.scoring_threads",
]
STEPS = REPOSITORY / "pipelines/steps"
FOLDERS = ["config", "events", "features", "labels", "models", "promotion", "scoring", "targeting"]
"""The data flow, as README has it."""
PACKAGES = ["pipelines", "assets", "resources"]
ABOVE_STEPS = {"dagster", "great_expectations", "assets", "resources"}
MAX_CPU_SECONDS = 5.0
"""Contract of the design. Measured 2.2 s; a machine half as fast, or as busy, must not fail the test."""
SLACK = 2


def run(
    code: str, *, directory: Path = REPOSITORY, pythonpath: Path | None = None, **environment: str
) -> dict[str, Any]:
    """What a fresh interpreter prints as JSON, run in a directory with only this PYTHONPATH."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if pythonpath is not None:
        inherited["PYTHONPATH"] = str(pythonpath)
    finished = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        cwd=directory,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    printed: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return printed


def is_installed() -> bool:
    try:
        importlib.metadata.distribution("audience-factory")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# --- steps ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executor() -> dict[str, Any]:
    return run(
        f"""
        import importlib, json, sys

        def loaded():
            return sorted({{name.partition(".")[0] for name in sys.modules}})

        import pipelines.steps.models.bundle_loader
        bundle = loaded()
        import pipelines.steps.scoring.predictions
        scoring = loaded()
        for name in {EXECUTOR_MODULES}:
            importlib.import_module(f"pipelines.steps.{{name}}")
        print(json.dumps({{"bundle": bundle, "scoring": scoring, "all": loaded()}}))
        """
    )


def test_executors_import_nothing_above_the_steps(executor: dict[str, Any]) -> None:
    assert ABOVE_STEPS.isdisjoint(executor["all"])


def test_executors_import_no_engine_before_a_bundle_asks_for_it(executor: dict[str, Any]) -> None:
    assert {"torch", "xgboost", "sklearn", "onnxruntime"}.isdisjoint(executor["all"])


def test_scoring_imports_no_reader_of_configuration_and_no_format_of_weights(
    executor: dict[str, Any],
) -> None:
    unneeded = {"pydantic", "sqlglot", "yaml", "pandas", "sklearn", "safetensors", "onnx"}
    assert unneeded.isdisjoint(executor["scoring"])


def test_a_bundle_needs_no_spark(executor: dict[str, Any]) -> None:
    assert "pyspark" not in executor["bundle"]


def test_no_step_names_what_is_above_it() -> None:
    steps = sorted(STEPS.rglob("*.py"))
    assert len(steps) > len(EXECUTOR_MODULES)
    assert above(steps, ABOVE_STEPS) == {}


def test_no_resource_names_an_asset_and_neither_names_what_binds_them() -> None:
    resources = sorted((REPOSITORY / "resources").glob("*.py"))
    assets = sorted((REPOSITORY / "assets").glob("*.py"))
    assert above(resources, {"assets"}) == {}
    bound = {"pipelines.definitions", "pipelines.jobs", "pipelines.demo"}
    assert {p.name for p in [*resources, *assets] if modules_imported_by(p) & bound} == set()


def above(modules: list[Path], packages: set[str]) -> dict[str, list[str]]:
    found = {str(module): sorted(imported_by(module) & packages) for module in modules}
    return {name: above for name, above in found.items() if above}


def test_a_folder_of_steps_imports_only_those_before_it() -> None:
    folders = [path for path in STEPS.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [path.name for path in sorted(folders, key=place)] == FOLDERS
    found = [
        f"{name} imports {other}"
        for name, others in imports_of_steps().items()
        for other in others
        if place(STEPS / other.split(".")[0]) > place(STEPS / name.split(".")[0])
    ]
    assert found == []


def test_steps_import_nothing_of_pipelines_but_steps() -> None:
    ours = {name for path in STEPS.rglob("*.py") for name in modules_imported_by(path) if "pipelines" in name}
    assert {name for name in ours if not name.startswith("pipelines.steps.")} == set()


def test_no_step_imports_itself_by_way_of_others() -> None:
    left = imports_of_steps()
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_packages_hold_a_docstring_only() -> None:
    """Importing a module imports the packages that it lies in: executors would load what they hold."""
    packages = [path for folder in PACKAGES for path in sorted((REPOSITORY / folder).rglob("__init__.py"))]
    assert len(packages) > len(FOLDERS)
    assert [str(p) for p in packages if len(ast.parse(p.read_text()).body) != 1] == []


def place(path: Path) -> int:
    """The place of a folder in the data flow; a module beside the folders is open to all of them."""
    return FOLDERS.index(path.name) if path.name in FOLDERS else -1


def imports_of_steps() -> dict[str, set[str]]:
    """Each module of the steps, such as `models.bundle`, and those that it imports, within functions too."""
    names = {
        ".".join(path.relative_to(STEPS).with_suffix("").parts): path
        for path in STEPS.rglob("*.py")
        if path.stem != "__init__"
    }
    prefix = "pipelines.steps."
    return {
        name: {
            other.removeprefix(prefix)
            for other in modules_imported_by(path)
            if other.removeprefix(prefix) in names and other.startswith(prefix)
        }
        for name, path in names.items()
    }


def imported_by(module: Path) -> set[str]:
    """The packages that a module imports, within functions too."""
    return {name.partition(".")[0] for name in modules_imported_by(module)}


def modules_imported_by(module: Path) -> set[str]:
    """`a.b`, and `a.b.c` too, where it says `from a.b import c`: whether c is a module is not known here."""
    nodes = list(ast.walk(ast.parse(module.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


# --- definitions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loading() -> dict[str, Any]:
    return run(
        """
        import json, sys, time
        asked = []
        network = {"socket.connect", "socket.getaddrinfo", "socket.bind"}
        sys.addaudithook(lambda event, arguments: asked.append(event) if event in network else None)
        import pipelines.definitions
        seconds = time.process_time()
        from pyspark import SparkContext
        print(json.dumps({
            "cpu_seconds": seconds,
            "modules": sorted(sys.modules),
            "jvm": SparkContext._gateway is not None,
            "network": asked,
        }))
        """
    )


def test_loading_definitions_starts_no_jvm(loading: dict[str, Any]) -> None:
    assert not loading["jvm"]


def test_loading_definitions_touches_no_network(loading: dict[str, Any]) -> None:
    assert loading["network"] == []


def test_loading_definitions_imports_no_framework_that_only_runs_need(loading: dict[str, Any]) -> None:
    assert {"torch", "great_expectations"}.isdisjoint(loading["modules"])


def test_loading_definitions_is_quick(loading: dict[str, Any]) -> None:
    assert loading["cpu_seconds"] < MAX_CPU_SECONDS * SLACK


# --- what `python -O` leaves out ------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["pipelines", "assets", "resources", "benchmarks", "scripts"])
def test_nothing_that_runs_is_an_assertion(folder: str) -> None:
    """What must happen or must hold is a statement of its own: `python -O` once started no Spark."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


# --- where packages come from ---------------------------------------------------------------------

PRINT_ORIGINS = """
import json, sys
import assets, pipelines, resources
print(json.dumps({m.__name__: m.__file__ for m in (assets, pipelines, resources)}))
"""
OURS = {name: str(REPOSITORY / name / "__init__.py") for name in ("assets", "pipelines", "resources")}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A directory with an `assets` package of somebody else's, a name that many projects use."""
    (tmp_path / "foreign/assets").mkdir(parents=True)
    (tmp_path / "foreign/assets/__init__.py").touch()
    return tmp_path / "foreign"


def test_in_the_repository_our_packages_win_over_pythonpath(foreign: Path) -> None:
    # `python -m` and `python -c` put the working directory first; workspace.yaml does so for Dagster.
    assert run(PRINT_ORIGINS, pythonpath=foreign) == OURS


@pytest.mark.skipif(
    not is_installed(), reason="audience-factory is not installed here; `make setup` installs it"
)
def test_installed_our_packages_are_found_from_any_directory(tmp_path: Path) -> None:
    assert run(PRINT_ORIGINS, directory=tmp_path) == OURS


@pytest.mark.skipif(
    not is_installed(), reason="audience-factory is not installed here; `make setup` installs it"
)
def test_elsewhere_pythonpath_wins_which_is_why_make_unsets_it(tmp_path: Path, foreign: Path) -> None:
    # Nothing that is installed comes before PYTHONPATH; our commands therefore run without it.
    origins = run(PRINT_ORIGINS, directory=tmp_path, pythonpath=foreign)
    assert origins["assets"] == str(foreign / "assets/__init__.py")
    for program in ("run", "Makefile"):
        assert "unset PYTHONPATH" in (REPOSITORY / program).read_text()

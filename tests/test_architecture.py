"""Who may import whom: the table is the map of the house."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "ivdtool"

# Module: what it may import of ivdtool, and torch. `module` allows all of it, `module.Name` that
# name only: a stage knows the data type it receives, and the pipeline alone knows their order.
# What stands after the bar may be imported inside functions only.
ALLOWED = {
    # vocabulary and tools
    "discs": "",
    "errors": "",
    "files": "errors",
    "config": "errors",
    # stages, in the order of the data
    "volumes": "errors files.is_nifti",
    "preprocessing": "errors volumes.Volume",
    "plane": "errors heatmaps.Heatmaps preprocessing volumes.Volume",
    "networks.blocks": "torch",
    "networks.hourglass": "networks.blocks torch",
    "networks.hca": "networks.blocks torch",
    "networks.counting": "networks.blocks torch",
    "networks.lookonce": "networks.blocks torch",
    "networks.template": "torch",
    "networks.ensemble": "torch",
    "networks.__init__": "",
    "model": "networks torch",
    "device": "errors torch",
    "metadata": "candidates.CandidateConfig config discs levels.LevelCalibration "
    "preprocessing.PreprocessingConfig search.SearchConfig skeleton.Skeleton verdict.Judge",
    "modelfile": "errors",
    "inference": "device errors files modelfile heatmaps.Heatmaps heatmaps.cells_to_pixels "
    "metadata preprocessing.Image torch",
    "constraints": "candidates.Candidates discs errors preprocessing.Grid search skeleton.Skeleton",
    "levels": "discs search.Assignment",
    "heatmaps": "_core",
    "candidates": "_core heatmaps.Heatmaps",
    "skeleton": "discs",
    "search": "_core candidates.Candidates skeleton.Skeleton",
    "verdict": "discs labels.Verdict preprocessing.Grid search.Assignment",
    "explain": "discs search.Assignment",
    "search_tree": "candidates.Candidates discs explain.REASONS files search",
    "measurement": "bids discs errors files label_files skeleton",
    "labels": "__version__ discs | writers",
    "label_files": "discs errors files volumes",
    "writers": "discs errors files labels.DiscLabels label_files.read_labels volumes.read_volume",
    "overlay": "files",
    "phantom_anatomy": "",
    "phantom_tissues": "phantom_anatomy.Floats",
    "phantom_painter": "phantom_anatomy phantom_tissues.smooth_field",
    "phantom": "discs phantom_anatomy phantom_painter.Painter phantom_tissues",
    "phantom_dataset": "errors files phantom writers",
    # the stages together
    "labelling": "errors inference.Model metadata.ModelInfo pipeline volumes.read_volume writers "
    "| overlay",
    "pipeline": "candidates constraints discs errors inference labels levels metadata.ModelInfo "
    "plane preprocessing search verdict volumes",
    "bids": "errors files label_files.find_label_file label_files.is_label_file",
    "batch.inputs": "bids errors files label_files.is_label_file writers.default_name",
    "batch.worker": "__version__ errors files modelfile.BATCH_SIZE writers | inference labelling "
    "pipeline.Constraints",
    "batch.pool": "batch.worker errors",
    "batch.dask_pool": "batch.pool batch.worker errors",
    "batch.manifest": "batch.worker errors",
    "batch.plan": "batch.inputs.Scan batch.manifest batch.worker errors files "
    "writers.check_replaceable",
    "batch.progress": "",
    "batch.summary": "__version__ batch.inputs.Scan batch.manifest batch.worker.DiscRow errors "
    "files",
    "batch.derivatives": "__version__ files",
    "batch.run": "batch.derivatives batch.inputs batch.manifest batch.plan batch.progress "
    "batch.summary batch.worker errors files",
    "batch.__init__": "",
    "checks": "bids discs errors files label_files skeleton.Skeleton volumes",
    "evaluation": "",
    "reliability": "",
    "calibration": "levels metadata.Calibration verdict.Evidence verdict.Judge",
    "scoring": "bids discs errors evaluation files label_files reliability volumes",
    "diagrams": "errors files",
    "reports": "__version__ discs evaluation files metadata.ModelInfo scoring.Evaluation",
    "comparison": "bids config device errors files labels.Disc labels.DiscLabels methods.registry "
    "plane preprocessing scoring training.checkpoint training.loop.TrainingConfig "
    "training.presets training.progress.Progress training.run volumes writers torch",
    "comparison_report": "__version__ comparison diagrams evaluation.Summary files report_folder "
    "reports",
    "report_folder": "__version__ diagrams discs errors evaluation files label_files overlay "
    "plane preprocessing reliability.Reliability reports scoring volumes.read_volume",
    "export": "files inference.INFO_FILE metadata.ModelInfo networks.blocks.Norm torch",
    "training.losses": "training.candidate_loss training.counts training.batches.Batch torch",
    "training.counts": "networks.counting training.batches.Batch torch",
    "training.candidate_loss": "training.batches.Batch torch",
    "training.augmentation": "torch",
    "training.dataset": "bids errors files label_files preprocessing volumes",
    "training.composition": "discs.ALL_LABELS training.dataset.Case",
    "training.batches": "heatmaps training.augmentation training.composition training.dataset "
    "torch",
    "training.stream": "training.batches.Batch torch",
    "training.slabs": "errors files label_files preprocessing training.dataset volumes",
    "training.checkpoint": "errors files model torch",
    "training.engine": "device errors torch",
    "training.history": "diagrams files | torch",
    "training.progress": "",
    "training.loop": "config discs errors model preprocessing.PreprocessingConfig "
    "skeleton.Skeleton training.augmentation training.batches training.checkpoint "
    "training.dataset.Case training.engine.Precision training.history training.losses "
    "training.stream torch",
    "training.validation": "evaluation training.dataset",
    "training.run": "config discs errors files methods.registry skeleton.Skeleton "
    "training.checkpoint training.dataset training.engine training.loop training.progress "
    "training.slabs torch",
    "training.release": "__version__ calibration evaluation.TOLERANCE_MM candidates errors export "
    "inference levels metadata.ModelInfo model.STRIDE networks.ensemble.Ensemble "
    "pipeline.credible preprocessing search skeleton.Skeleton training.augmentation "
    "training.checkpoint training.dataset training.loop verdict torch",
    "training.presets": "config errors training.loop",
    "training.__init__": "",
    "methods.method": "skeleton.Skeleton training.dataset training.loop torch",
    "methods.pose": "candidates heatmaps.Heatmaps methods.method model.STRIDE search "
    "skeleton.Skeleton training.dataset training.loop training.validation torch",
    "methods.counting": "candidates heatmaps.Heatmaps methods.method methods.pose model.STRIDE "
    "networks.counting skeleton.Skeleton torch",
    "methods.lookonce": "candidates.Candidates heatmaps.cells_to_pixels methods.method "
    "methods.pose model.STRIDE skeleton.Skeleton training.candidate_loss torch",
    "methods.template": "candidates config heatmaps methods.method methods.pose networks.template "
    "skeleton.Skeleton training.checkpoint training.dataset training.loop torch",
    "methods.registry": "methods preprocessing.PreprocessingConfig skeleton.Skeleton "
    "training.checkpoint training.loop torch",
    "methods.__init__": "",
    "benchmark.timing": "errors",
    "benchmark.heatmaps": "benchmark.timing heatmaps",
    "benchmark.candidates": "benchmark.heatmaps benchmark.timing candidates heatmaps",
    "benchmark.search": "_core benchmark.timing candidates.CandidateConfig candidates.Candidates "
    "discs search skeleton.Skeleton",
    "benchmark.pipeline": "benchmark.timing files heatmaps.Heatmaps inference labels.DiscLabels "
    "phantom phantom_dataset pipeline preprocessing.Image volumes writers",
    "benchmark.report": "__version__ benchmark errors files",
    "benchmark.__init__": "",
    # the surface: everything heavy is imported when it is called
    "__init__": "| labels.Disc labels.DiscLabels pipeline.label",
    "__main__": "cli",
    "cli": "__version__ commands errors | *",
    "commands.imports": "",
    "commands.options": "errors",
    **{
        f"commands.{path.stem}": "commands.imports commands.options errors modelfile.BATCH_SIZE | *"
        for path in sorted((PACKAGE / "commands").glob("*.py"))
        if path.stem not in {"imports", "options"}
    },
}
TORCHSCRIPT = {"export", "inference"}  # deprecated in torch: a move must touch two files only


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): parse(path) for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(tree: ast.AST, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Dotted names, and whether the import waits for a call (or is for type checkers only)."""
    for node in ast.iter_child_nodes(tree):
        yield from ((name, late) for name in imported_names(node))
        waits = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        yield from imports(node, late or waits)


def edges(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    for name, late in imports(tree):
        if name.startswith("ivdtool."):
            yield name.removeprefix("ivdtool."), late
        elif name.split(".")[0] == "torch":
            yield "torch", late


def is_allowed(edge: str, rule: str, late: bool) -> bool:
    eager, _, waiting = rule.partition("|")
    names = eager.split() + (waiting.split() if late else [])
    return any(name == "*" or f"{edge}.".startswith(f"{name}.") for name in names)


def test_every_module_is_in_the_table() -> None:
    assert sorted(MODULES) == sorted(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_imports(module: str) -> None:
    rule = ALLOWED.get(module, "")
    wrong = [edge for edge, late in edges(MODULES[module]) if not is_allowed(edge, rule, late)]
    assert not wrong, f"{module} may not import {wrong}"


@pytest.mark.parametrize("module", [name for name in ALLOWED if not name.startswith("commands.")])
def test_the_table_allows_nothing_unused(module: str) -> None:
    """Commands share their entries."""
    used = [f"{edge}." for edge, _ in edges(MODULES[module])]
    names = set(ALLOWED[module].replace("|", " ").split()) - {"*"}
    stale = [name for name in names if not any(edge.startswith(f"{name}.") for edge in used)]
    assert not stale, f"{module} does not import {stale}"


def test_the_table_has_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module, rule in ALLOWED.items():
        names = rule.partition("|")[0].split()
        graph[module] = {m for m in ALLOWED for name in names if f"{name}.".startswith(f"{m}.")}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("module", sorted(set(MODULES) - TORCHSCRIPT))
def test_torchscript_stays_in_two_files(module: str) -> None:
    used = [
        ast.unparse(node)
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.jit"
    ]
    used += [name for name, _ in imports(MODULES[module]) if name.startswith("torch.jit")]
    assert not used


def test_third_party_imports_are_declared() -> None:
    """Those of the `train` extra wait for a call: without it, all but training works."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required, optional = (
        {requirement.split(">")[0].lower().replace("_", "-") for requirement in requirements}
        for requirements in (
            project["dependencies"],
            [own for extra in project["optional-dependencies"].values() for own in extra],
        )
    )
    distributions = packages_distributions()
    eager: set[str] = set()
    late: set[str] = set()
    for tree in MODULES.values():
        for name, waits in imports(tree):
            package = name.split(".")[0]
            if package not in {*sys.stdlib_module_names, "ivdtool"}:
                distribution = distributions[package][0].lower().replace("_", "-")
                (late if waits else eager).add(distribution)
    assert eager == required
    assert late <= required | optional


@pytest.mark.parametrize("module", ["ivdtool", "ivdtool.cli"])
def test_start_up_is_light(module: str) -> None:
    """`ivdtool --help` answers at once: nothing heavy is imported before a command runs."""
    heavy = ["torch", "numpy", "nibabel", "PIL"]
    code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_python_stays_out_of_the_algorithms() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("csrc/*.[ch]pp")}
    assert sources
    foreign = ("pybind11", "Python.h")
    python = {name for name, text in sources.items() if any(word in text for word in foreign)}
    assert python == {"bindings.cpp"}


def test_same_word_on_both_sides() -> None:
    ideas = {path.stem.split("_")[0] for path in ROOT.glob("csrc/*.cpp")} - {"bindings"}
    assert ideas <= set(MODULES)
    assert all((ROOT / "tests" / f"test_{idea}.py").is_file() for idea in ideas)

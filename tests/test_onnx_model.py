"""A model of any framework, exported to ONNX, scores from a bundle as at home, or is refused by name."""

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import EncodedRows, Ragged, count_matrix
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.models.bundle import NO_MEMBERS, TORCH_WEIGHTS, Scorer, TrainedModel, write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.onnx_export import export_onnx
from pipelines.steps.models.onnx_model import InputForm, OnnxModel, OutputKind
from pipelines.steps.scoring.predictions import score_devices
from tests.conftest import Frame

VOCABULARY = Vocabulary(
    (
        FieldVocabulary("apps", 4, tuple(f"app-{number}" for number in range(6))),  # 8 ids
        FieldVocabulary("model", 1, ("pixel", "nokia")),  # 4 ids
    )
)
COLUMNS = 12
OTHER_VOCABULARY = Vocabulary((FieldVocabulary("apps", 4, ("app-0",)), VOCABULARY.fields[1]))
APP_WEIGHTS = np.asarray([0, -1.5, 0.25, 1.75, -0.5, 3, -2.25, 0.125], dtype=np.float32)
MODEL_WEIGHTS = np.asarray([0.5, -0.75, 1, -1.25], dtype=np.float32)
ROWS: EncodedRows = {
    "apps": Ragged.from_lists([[2], [0], [1, 3, 3, 7], [5, 1], [7, 6, 5, 4]]),
    "model": Ragged.from_lists([[2], [3], [0], [1], [2]]),
}


def graph(text: str) -> bytes:
    """A graph in ONNX's own notation."""
    return bytes(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{text}').SerializeToString()
    )


def literal(name: str, values: np.ndarray) -> str:
    """A constant in that notation."""
    shape = ", ".join(map(str, values.shape))
    return f"float[{shape}] {name} = {{{', '.join(map(str, values.ravel().tolist()))}}}"


def linear_graph(output: str = "float[rows, 1] score", ending: str = "score = Sigmoid (logit)") -> bytes:
    """A weight per column; the sums are `logit`, [rows, 1]."""
    weights = literal("weights", np.concatenate([APP_WEIGHTS, MODEL_WEIGHTS]).reshape(COLUMNS, 1))
    return graph(
        f"linear (float[rows, {COLUMNS}] counts) => ({output}) <{weights}, int64[1] one = {{1}}>"
        f"{{ logit = MatMul (counts, weights) {ending} }}"
    )


def padded_graph(
    integer: str = "int64", apps_shape: str = "rows, 4", app_weights: np.ndarray = APP_WEIGHTS
) -> bytes:
    """A weight per id, as an embedding layer looks it up."""
    return graph(
        f"padded ({integer}[{apps_shape}] apps, {integer}[rows, 1] model) => (float[rows] score) "
        f"<{literal('a', app_weights)}, {literal('m', MODEL_WEIGHTS)}, int64[1] one = {{1}}>"
        "{ each_app = Gather (a, apps) each_model = Gather (m, model)"
        " all = Concat <axis = 1> (each_app, each_model)"
        " logit = ReduceSum <keepdims = 0> (all, one) score = Sigmoid (logit) }"
    )


def expected_scores(rows: EncodedRows) -> np.ndarray:
    """What both graphs answer, in double precision."""
    counts = count_matrix(rows, VOCABULARY.sizes).toarray().astype(np.float64)
    return np.asarray(1 / (1 + np.exp(-counts @ np.concatenate([APP_WEIGHTS, MODEL_WEIGHTS]))))


def write(directory: Path, model: TrainedModel, vocabulary: Vocabulary = VOCABULARY) -> Path:
    write_bundle(directory, model, vocabulary, training_days=["2025-01-31"], code_version="test", metrics={})
    return directory


def scorer_of(directory: Path, content: bytes, inputs: InputForm, **reading: Any) -> Scorer:
    return load_bundle(write(directory / "bundle", OnnxModel(content, VOCABULARY, inputs=inputs, **reading)))


# --- a model of scikit-learn, on Spark ------------------------------------------------------------------

DEVICES = 300


def sklearn_graph(model: Any, columns: int | None = COLUMNS, **options: object) -> bytes:
    counts = [("counts", FloatTensorType([None, columns]))]
    converted = to_onnx(model, initial_types=counts, options={id(model): {"zipmap": False} | options})
    return bytes(converted.SerializeToString())


def device_tokens() -> list[tuple[str, date, list[str] | None, list[str]]]:
    """Devices with none to too many tokens; some of them unknown, some twice."""
    random = np.random.default_rng(0)
    return [
        (
            f"device-{number:03}",
            date(2025, 3, 10),
            [["pixel"], ["nokia"], ["unheard-of"], [], None][number % 5],
            [f"app-{app}" for app in random.integers(0, 8, size=number % 7)],
        )
        for number in range(DEVICES)
    ]


@pytest.mark.parametrize(
    "model", [LogisticRegression(C=10), GradientBoostingClassifier(n_estimators=20, random_state=0)]
)
def test_a_model_of_scikit_learn_scores_on_spark_as_at_home(frame: Frame, tmp_path: Path, model: Any) -> None:
    tokens = frame("device_id string, day date, model array<string>, apps array<string>", device_tokens())
    rows = VOCABULARY.encode(tokens.orderBy("device_id").toArrow())
    counts = count_matrix(rows, VOCABULARY.sizes)
    wants = np.asarray(counts[:, [2, 5, 9]].sum(axis=1)).ravel() + np.arange(DEVICES) % 3
    model.fit(counts, wants > 2)
    exported = OnnxModel(sklearn_graph(model), VOCABULARY, inputs="multi_hot")
    directory = write(tmp_path / "bundle", exported)

    scored = score_devices(tokens, {"buyers": directory}).orderBy("device_id").toArrow()

    probabilities = scored.column("probability")
    assert probabilities.type == pa.float32()
    assert len(np.unique(probabilities)) > 10  # else equality would say little
    expected = model.predict_proba(counts)[:, 1]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)


# --- forms of input and output --------------------------------------------------------------------------


def test_the_bundle_says_how_its_graph_is_read() -> None:
    model = OnnxModel(linear_graph(), VOCABULARY, inputs="multi_hot")
    assert (model.engine, model.weights()) == ("onnx", linear_graph())
    assert model.architecture == {
        "name": "graph",
        "inputs": "multi_hot",
        "output": "score",
        "output_is": "probability",
    }


@pytest.mark.parametrize(
    "content", [padded_graph(), padded_graph("int32"), padded_graph(apps_shape="rows, tokens")]
)
def test_padded_ids_are_looked_up(tmp_path: Path, content: bytes) -> None:
    """MISSING_ID weighs nothing in `apps`, as with Keras's mask_zero, so neither does padding."""
    scores = scorer_of(tmp_path, content, "padded_ids").score(ROWS)
    np.testing.assert_allclose(scores, expected_scores(ROWS), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("output", "ending", "reading"),
    [
        ("float[rows, 1] score", "score = Sigmoid (logit)", {}),
        ("float[rows] score", "p = Sigmoid (logit) score = Squeeze (p, one)", {}),
        ("double[rows, 1] score", "p = Sigmoid (logit) score = Cast <to = 11> (p)", {}),
        (
            "float[rows, 2] score",
            "p = Sigmoid (logit) n = Neg (logit) q = Sigmoid (n) score = Concat <axis = 1> (q, p)",
            {},
        ),
        ("float[rows, 1] score", "score = Identity (logit)", {"output_is": "logit"}),
        ("float[rows] score", "score = Squeeze (logit, one)", {"output_is": "logit"}),
        ("int64[rows, 1] label, float[rows, 1] score",
         "score = Sigmoid (logit) label = Cast <to = 7> (score)", {}),
        ("float[rows, 1] logit, float[rows, 1] score", "score = Sigmoid (logit)", {"output": "score"}),
        ("float[rows, 1] logit, float[rows, 1] score", "score = Sigmoid (logit)",
         {"output": "logit", "output_is": "logit"}),
    ],
)  # fmt: skip
def test_an_answer_becomes_a_probability(
    tmp_path: Path, output: str, ending: str, reading: Mapping[str, Any]
) -> None:
    scores = scorer_of(tmp_path, linear_graph(output, ending), "multi_hot", **reading).score(ROWS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected_scores(ROWS), rtol=0, atol=1e-6)


# --- refusals: the file -----------------------------------------------------------------------------------


def with_opset(version: int) -> bytes:
    model = onnx.load_from_string(linear_graph())
    model.opset_import[0].version = version
    return bytes(model.SerializeToString())


def with_an_operator_of_ones_own() -> bytes:
    model = onnx.load_from_string(linear_graph())
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    model.graph.node[0].domain = "mine"
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "content",
    [b"", b"not a graph", pickle.dumps(VOCABULARY.sizes), linear_graph()[:-40], with_opset(99),
     with_an_operator_of_ones_own()],
    ids=["empty", "text", "pickle", "torn", "opset", "operator"],
)  # fmt: skip
def test_what_onnxruntime_cannot_load_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"(?s)cannot be loaded by onnxruntime.*older opset"):
        OnnxModel(content, VOCABULARY, inputs="multi_hot")


@pytest.fixture
def split_graph(tmp_path: Path) -> Path:
    """A graph whose weights lie in a file beside it."""
    path = tmp_path / "split" / "model.onnx"
    path.parent.mkdir()
    model = onnx.load_from_string(linear_graph())
    for weights in model.graph.initializer:  # in the one form that is ever moved out
        weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights), weights.name))
    onnx.save_model(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert (path.parent / "model.data").stat().st_size
    return path


def test_weights_outside_the_file_are_refused(split_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(split_graph.parent)  # where they would be found
    with pytest.raises(BundleError, match=r"(?s)cannot be loaded.*without external data"):
        OnnxModel(split_graph.read_bytes(), VOCABULARY, inputs="multi_hot")


def test_weights_beside_a_bundles_file_are_refused(split_graph: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "bundle", OnnxModel(linear_graph(), VOCABULARY, inputs="multi_hot"))
    for file in split_graph.parent.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    rewrite_manifest(directory, weights_sha256=sha256(split_graph.read_bytes()).hexdigest())
    with pytest.raises(BundleError, match=r"(?s)model\.onnx cannot be loaded.*without external data"):
        load_bundle(directory)


# --- refusals: inputs and outputs -------------------------------------------------------------------------


def counts_graph(inputs: str) -> bytes:
    """Any inputs, of which `counts` is read."""
    return graph(
        f"any ({inputs}) => (float[rows, 1] score) <int64[1] one = {{1}}>"
        "{ floats = Cast <to = 1> (counts) sums = ReduceMean (floats, one) score = Sigmoid (sums) }"
    )


@pytest.mark.parametrize(
    ("content", "form", "found", "expected"),
    [
        (counts_graph("float[rows, 13] counts"), "multi_hot",
         r"float\) \['rows', 13\]", r"any name.*\[rows, 12\]"),
        (counts_graph("float[rows, columns] counts"), "multi_hot", "'rows', 'columns'", r"\[rows, 12\]"),
        (counts_graph("float[1, 12] counts"), "multi_hot", r"\[1, 12\]", r"\[rows, 12\]"),
        (counts_graph("float[rows, 12, 1] counts"), "multi_hot", r"'rows', 12, 1\]", r"\[rows, 12\]"),
        (counts_graph("float16[rows, 12] counts"), "multi_hot", "float16", r"tensor\(float\)"),
        (counts_graph("float[rows, 12] counts, float[rows, 1] age"), "multi_hot", "age", "any name"),
        (linear_graph(), "padded_ids", "counts", r"apps .*int64.* \[rows, 4\], model .* \[rows, 1\]"),
        (linear_graph(), "bags", "counts", r"apps_ids .* \[tokens\], apps_offsets .* \[rows \+ 1\]"),
        (padded_graph(), "multi_hot", "apps", "any name"),
        (padded_graph(apps_shape="rows, 5"), "padded_ids", r"'rows', 5", r"apps .* \[rows, 4\]"),
        (padded_graph(apps_shape="1, 4"), "padded_ids", r"\[1, 4\]", r"apps .* \[rows, 4\]"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_the_vocabulary_are_refused(
    content: bytes, form: InputForm, found: str, expected: str
) -> None:
    message = (
        f"(?s)inputs of the ONNX model do not fit.*found:.*{found}.*expected:.*{expected}.*remedy: +export"
    )
    with pytest.raises(BundleError, match=message):
        OnnxModel(content, VOCABULARY, inputs=form)


def test_a_graph_without_room_for_every_id_is_refused() -> None:
    content = padded_graph(app_weights=APP_WEIGHTS[:-1])
    with pytest.raises(BundleError, match=r"(?s)cannot be run over the vocabulary.*room for every id"):
        OnnxModel(content, VOCABULARY, inputs="padded_ids")


TWO = "float[rows, 1] logit, float[rows, 1] score"
PAIR = "score = Concat <axis = 1> (logit, logit)"


@pytest.mark.parametrize(
    ("content", "output", "output_is", "message"),
    [
        (linear_graph(TWO), None, "probability",
         r"no one output to read.*'logit': .*'score': .*name the output"),
        (linear_graph(TWO), "nothing", "probability", "no one output to read.*named 'nothing'"),
        (linear_graph("float[rows, 3] score", "score = Concat <axis = 1> (logit, logit, logit)"), None,
         "probability", r"no one output to read.*\[rows, 2\]"),
        (linear_graph("float[n, 2] score",
                      "some = NonZero (counts) same = Cast <to = 1> (some) score = Transpose (same)"),
         None, "probability", r"another shape.*found: +\[\d{4}, 2\].*\[1024\] or \[1024, 1 or 2\]"),
        (linear_graph("float[n] score", "score = ReduceSum <keepdims = 0> (logit)"), None, "logit",
         r"another shape.*found: +\[\]"),
        (linear_graph("float[rows, 2] score", PAIR), None, "logit",
         r"another shape.*found: +\[1024, 2\].*end with Softmax"),
        (linear_graph("float[rows, 1] score", "score = Identity (logit)"), None, "probability",
         r"no probabilities.*found: +\[-0\.75.*call it a logit"),
        (linear_graph("float[rows, 1] score", "root = Sqrt (logit) score = Sigmoid (root)"), None,
         "probability", r"no probabilities.*found: +\[nan\]"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_probability_is_refused(
    content: bytes, output: str | None, output_is: OutputKind, message: str
) -> None:
    with pytest.raises(BundleError, match=f"(?s){message}"):
        OnnxModel(content, VOCABULARY, inputs="multi_hot", output=output, output_is=output_is)


def test_a_classifier_that_answers_in_dictionaries_is_refused() -> None:
    model = LogisticRegression().fit(np.eye(COLUMNS), np.arange(COLUMNS) % 2)
    with pytest.raises(BundleError, match=r"(?s)no one output to read.*zipmap=False"):
        OnnxModel(sklearn_graph(model, zipmap=True), VOCABULARY, inputs="multi_hot")


def test_an_answer_that_is_no_probability_for_some_rows_is_refused_then(tmp_path: Path) -> None:
    """Answers the rows of app 3 alone so, which none of the rows that a graph is tried with holds."""
    weights = literal("weights", (np.arange(COLUMNS) == 3).astype(np.float32).reshape(COLUMNS, 1) * 2)
    content = graph(
        f"faulty (float[rows, {COLUMNS}] counts) => (float[rows, 1] score) <{weights}>"
        "{ score = MatMul (counts, weights) }"
    )
    scorer = scorer_of(tmp_path, content, "multi_hot")
    with pytest.raises(BundleError, match=r"(?s)values that are no probabilities.*found: +\[4\.0\]"):
        scorer.score(ROWS)


# --- refusals: bundles and rows ---------------------------------------------------------------------------


def rewrite_manifest(directory: Path, **changes: object) -> None:
    path = directory / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


READING = {"name": "graph", "inputs": "multi_hot", "output": "score", "output_is": "probability"}


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (READING | {"name": "tree"}, r"unknown architecture.*tree.*'graph'"),
        (READING | {"inputs": "images"}, "unknown way.*'images'.*'bags', 'multi_hot', 'padded_ids'"),
        (READING | {"output_is": "rank"}, "unknown way.*'rank'.*'probability' or 'logit'"),
        (READING | {"scale": 2}, "architecture of .* cannot be read.*'scale': 2"),
        ({"name": "graph", "inputs": "multi_hot"}, "architecture of .* cannot be read"),
        (READING | {"output": "label"}, r"model\.onnx has no one output to read.*named 'label'"),
    ],
)
def test_an_architecture_that_is_not_understood_is_refused(
    tmp_path: Path, architecture: Mapping[str, str], message: str
) -> None:
    directory = write(tmp_path / "bundle", OnnxModel(linear_graph(), VOCABULARY, inputs="multi_hot"))
    rewrite_manifest(directory, architecture=architecture)
    with pytest.raises(BundleError, match=f"(?s){message}"):
        load_bundle(directory)


def test_a_bundle_with_another_vocabulary_than_its_graphs_is_refused(tmp_path: Path) -> None:
    model = OnnxModel(linear_graph(), VOCABULARY, inputs="multi_hot")
    directory = write(tmp_path / "bundle", model, OTHER_VOCABULARY)
    with pytest.raises(BundleError, match=r"(?s)inputs of .*model\.onnx do not fit.*\[rows, 7\]"):
        load_bundle(directory)


def test_bags_longer_than_a_graph_reads_are_refused(tmp_path: Path) -> None:
    rows = {"apps": Ragged.from_lists([[2, 3, 4, 5, 6]]), "model": Ragged.from_lists([[2]])}
    scorer = scorer_of(tmp_path, padded_graph(), "padded_ids")
    with pytest.raises(BundleError, match=r"(?s)'apps'.*longer bags.*a bag of 5 ids.*at most 4"):
        scorer.score(rows)


# --- our own networks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logistic:
    """A network of known weights."""

    apps: Sequence[float]

    engine = "torch"
    weights_file = TORCH_WEIGHTS
    members = NO_MEMBERS

    @property
    def architecture(self) -> dict[str, object]:
        return {"name": "logistic"}

    def weights(self) -> bytes:
        state = {"weights": torch.tensor(self.apps)[:, None], "bias": torch.tensor([0.5])}
        return safetensors.torch.save(state)


LONG = Vocabulary((FieldVocabulary("apps", 1_000_000, ("app-0",)),))


@pytest.fixture
def logistic(tmp_path: Path) -> Path:
    """The bundle of a torch network."""
    return write(tmp_path / "torch", Logistic([0.0, 0.0, 2e-6]), LONG)


def test_sums_are_right_with_several_threads(logistic: Path, tmp_path: Path) -> None:
    """A row of many tokens shows that onnxruntime loses terms where it adds up in parallel."""
    directory = write(tmp_path / "onnx", export_onnx(logistic), LONG)
    rows = {"apps": Ragged.from_lists([np.full(300_000, 2, dtype=np.int32).tolist()])}
    scorer = load_bundle(directory, threads=2)
    exact = 1 / (1 + np.exp(-0.5 - 300_000 * 2e-6))
    for _ in range(5):
        np.testing.assert_allclose(scorer.score(rows), [exact], rtol=0, atol=1e-3)


def test_only_our_own_networks_are_exported(logistic: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "onnx", export_onnx(logistic), LONG)
    with pytest.raises(
        BundleError, match=r"(?s)holds no network to export.*'onnx'.*'audience_net', 'logistic'"
    ):
        export_onnx(directory)


# --- what is imported -------------------------------------------------------------------------------------


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Packages that a fresh interpreter has loaded after this."""
    code = dedent(program) + "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code, *arguments]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_bundles_load_no_onnxruntime_before_one_needs_it() -> None:
    assert {"onnxruntime", "onnx"}.isdisjoint(loaded_by("import pipelines.steps.models.bundle_loader"))


def test_scoring_needs_no_package_but_onnxruntime(tmp_path: Path) -> None:
    directory = write(tmp_path / "bundle", OnnxModel(linear_graph(), VOCABULARY, inputs="multi_hot"))
    loaded = loaded_by(
        """
        import sys
        from pathlib import Path
        from pipelines.steps.models.bundle_loader import load_bundle
        load_bundle(Path(sys.argv[1]))
        """,
        str(directory),
    )
    assert "onnxruntime" in loaded
    assert {"onnx", "skl2onnx", "sklearn", "torch", "xgboost"}.isdisjoint(loaded)

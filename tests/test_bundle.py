"""A bundle comes back as it was written, scores every row alike, and refuses to guess."""

import errno
import json
import pickletools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import EncodedRows, Ragged, count_matrix
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import TrainingRows
from pipelines.steps.models.blend_model import BlendedModel
from pipelines.steps.models.bundle import (
    SCORE_BATCH_ROWS,
    BundleManifest,
    TrainedModel,
    bundle_version,
    read_manifest,
    write_bundle,
)
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.dnn_config import DnnConfig
from pipelines.steps.models.dnn_model import TrainedDnn
from pipelines.steps.models.dnn_training import train_dnn
from pipelines.steps.models.logistic_model import LogisticConfig, train_logistic
from pipelines.steps.models.xgboost_model import XGBoostConfig, train_xgboost

VOCABULARY = Vocabulary(
    (
        FieldVocabulary("apps", 50, tuple(f"app {i}" for i in range(40))),
        FieldVocabulary("model", 1, ("pixel", "galaxy")),
    )
)
OTHER_VOCABULARY = Vocabulary(
    (FieldVocabulary("apps", 50, ("app 0",)), FieldVocabulary("model", 1, ("pixel", "galaxy")))
)
MODELS = ["dnn", "xgboost", "logistic"]


def simulated_rows(rows: int, seed: int) -> TrainingRows:
    random = np.random.default_rng(seed)
    apps = [random.integers(1, 42, size=random.integers(1, 30)).tolist() for _ in range(rows)]
    labels = [float(random.random() < (0.8 if min(row) < 5 else 0.2)) for row in apps]
    return TrainingRows(
        np.asarray(labels, dtype=np.float32),
        np.asarray([row % 3 for row in range(rows)], dtype=np.int8),
        {
            "apps": Ragged.from_lists(apps),
            "model": Ragged.from_lists([[int(random.integers(0, 4))] for _ in range(rows)]),
        },
    )


@pytest.fixture(scope="module")
def models() -> dict[str, TrainedModel]:
    rows = simulated_rows(600, seed=0)
    sizes = VOCABULARY.sizes
    return {
        "dnn": train_dnn(rows, sizes, DnnConfig(max_epochs=3, learning_rate=1e-2), lambda report: None),
        "xgboost": train_xgboost(rows, sizes, XGBoostConfig(num_boost_round=20)),
        "logistic": train_logistic(rows, sizes, LogisticConfig()),
    }


def write(directory: Path, model: TrainedModel, code_version: str = "abc1234") -> BundleManifest:
    return write_bundle(
        directory,
        model,
        VOCABULARY,
        training_days=["2024-03-01", "2024-03-08"],
        code_version=code_version,
        metrics={"validation": {"auc": 0.75}},
    )


def rewrite_manifest(directory: Path, **changes: object) -> None:
    path = directory / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rows_between(rows: EncodedRows, start: int, stop: int) -> EncodedRows:
    return {name: bag.slice(start, stop) for name, bag in rows.items()}


@pytest.fixture
def dnn_bundle(tmp_path: Path, models: dict[str, TrainedModel]) -> Path:
    write(tmp_path / "dnn", models["dnn"])
    return tmp_path / "dnn"


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_comes_back_as_it_was_written(
    name: str, tmp_path: Path, models: dict[str, TrainedModel]
) -> None:
    manifest = write(tmp_path / name, models[name])
    scorer = load_bundle(tmp_path / name, expected_vocabulary_hash=VOCABULARY.hash)
    assert scorer.manifest == manifest == read_manifest(tmp_path / name)
    assert scorer.vocabulary == VOCABULARY
    assert [(f.name, f.vocabulary_size, f.max_length) for f in manifest.fields] == [
        ("apps", 42, 50),
        ("model", 4, 1),
    ]
    assert manifest.training_days == ("2024-03-01", "2024-03-08")


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_probabilities_that_rank(
    name: str, tmp_path: Path, models: dict[str, TrainedModel]
) -> None:
    write(tmp_path / name, models[name])
    rows = simulated_rows(300, seed=1)
    scores = load_bundle(tmp_path / name).score(rows.bags)
    assert scores.dtype == np.float32
    assert scores.shape == (300,)
    assert np.isfinite(scores).all()
    assert 0 <= scores.min() < scores.max() <= 1
    assert scores[rows.labels == 1].mean() > scores[rows.labels == 0].mean()


def test_a_torch_bundle_scores_as_the_trained_network(
    tmp_path: Path, models: dict[str, TrainedModel]
) -> None:
    """The plain network, all rows in one pass, without the bundle's fixed batches."""
    from pipelines.steps.models.dnn_batches import to_tensors
    from pipelines.steps.models.dnn_model import AudienceNet

    model = models["dnn"]
    assert isinstance(model, TrainedDnn)
    parameters: dict[str, Any] = {n: value for n, value in model.architecture.items() if n != "name"}
    net = AudienceNet([42, 4], **parameters).eval()
    net.load_state_dict(dict(model.state))
    write(tmp_path / "dnn", model)
    rows = simulated_rows(1_500, seed=1).bags
    with torch.inference_mode():
        expected = torch.sigmoid(net(to_tensors(rows, {"apps": 42, "model": 4}))).numpy()
    np.testing.assert_allclose(load_bundle(tmp_path / "dnn").score(rows), expected, rtol=0, atol=1e-6)


def test_an_xgboost_bundle_scores_as_the_trained_trees(
    tmp_path: Path, models: dict[str, TrainedModel]
) -> None:
    import xgboost

    write(tmp_path / "xgboost", models["xgboost"])
    rows = simulated_rows(300, seed=1).bags
    booster = xgboost.Booster(model_file=tmp_path / "xgboost" / "model.ubj")
    expected = booster.predict(xgboost.DMatrix(count_matrix(rows, VOCABULARY.sizes)))
    np.testing.assert_array_equal(load_bundle(tmp_path / "xgboost").score(rows), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk_rows", [1, 37, 500, SCORE_BATCH_ROWS, 1_700])
def test_a_score_does_not_depend_on_the_rows_around_it(
    name: str, chunk_rows: int, tmp_path: Path, models: dict[str, TrainedModel]
) -> None:
    """Bit for bit, so that a partitioning of the input never shows in the output."""
    write(tmp_path / name, models[name])
    scorer = load_bundle(tmp_path / name)
    rows = simulated_rows(2_500, seed=2).bags
    starts = range(0, 2_500, chunk_rows) if chunk_rows > 1 else range(2_450, 2_500)
    whole = scorer.score(rows)
    for start in starts:
        stop = min(start + chunk_rows, 2_500)
        np.testing.assert_array_equal(scorer.score(rows_between(rows, start, stop)), whole[start:stop])


@pytest.mark.parametrize("name", MODELS)
def test_no_rows_give_no_scores(name: str, tmp_path: Path, models: dict[str, TrainedModel]) -> None:
    write(tmp_path / name, models[name])
    nothing = {"apps": Ragged.from_lists([]), "model": Ragged.from_lists([])}
    assert load_bundle(tmp_path / name).score(nothing).shape == (0,)


def test_scoring_leaves_the_threads_of_the_process_alone(dnn_bundle: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load_bundle(dnn_bundle).score(simulated_rows(10, seed=1).bags)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
def test_the_version_names_the_content(name: str, tmp_path: Path, models: dict[str, TrainedModel]) -> None:
    write(tmp_path / "first", models[name])
    write(tmp_path / "second", models[name])
    write(tmp_path / "third", models[name], code_version="def5678")
    version = bundle_version(tmp_path / "first")
    assert len(version) == 16
    assert bundle_version(tmp_path / "second") == version
    assert bundle_version(tmp_path / "third") != version


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_never_a_pickle(name: str, tmp_path: Path, models: dict[str, TrainedModel]) -> None:
    manifest = write(tmp_path / name, models[name])
    with pytest.raises(ValueError, match=r"opcode|pickle|expected"):
        list(pickletools.genops((tmp_path / name / manifest.weights_file).read_bytes()))


def test_writing_the_same_again_does_nothing(dnn_bundle: Path, models: dict[str, TrainedModel]) -> None:
    version = bundle_version(dnn_bundle)
    write(dnn_bundle, models["dnn"])
    assert bundle_version(dnn_bundle) == version
    assert [path.name for path in dnn_bundle.parent.iterdir()] == ["dnn"]


def test_a_bundle_is_never_replaced(dnn_bundle: Path, models: dict[str, TrainedModel]) -> None:
    version = bundle_version(dnn_bundle)
    with pytest.raises(BundleError, match="exists with other content"):
        write(dnn_bundle, models["logistic"])
    assert bundle_version(dnn_bundle) == version
    assert [path.name for path in dnn_bundle.parent.iterdir()] == ["dnn"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, models: dict[str, TrainedModel]) -> None:
    """NaN is no JSON: it is found when the other files are written already."""
    with pytest.raises(ValueError, match="JSON compliant"):
        write_bundle(
            tmp_path / "dnn",
            models["dnn"],
            VOCABULARY,
            training_days=[],
            code_version="abc1234",
            metrics={"validation": {"auc": float("nan")}},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"(?s)no bundle at .*nowhere.*no file bundle\.json"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="no bundle at"):
        bundle_version(tmp_path / "nowhere")


def test_a_bundle_of_the_version_expected_is_loaded(dnn_bundle: Path) -> None:
    loaded = load_bundle(dnn_bundle, expected_version=bundle_version(dnn_bundle))
    assert loaded.manifest == read_manifest(dnn_bundle)


@pytest.mark.parametrize("file", ["bundle.json", "weights.safetensors", "vocabulary.json"])
def test_a_bundle_of_another_version_than_expected_is_refused(dnn_bundle: Path, file: str) -> None:
    version = bundle_version(dnn_bundle)
    content = (dnn_bundle / file).read_bytes()
    (dnn_bundle / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError) as raised:
        load_bundle(dnn_bundle, expected_version=version)
    assert str(raised.value) == (
        f"bundle {dnn_bundle} was changed since it was recorded: its content has another hash\n"
        f"  found:    version {bundle_version(dnn_bundle)}\n"
        f"  expected: version {version}\n"
        "  remedy:   restore the directory, name another version, or train again"
    )


def test_a_blend_one_of_whose_members_was_changed_is_refused(
    tmp_path: Path, models: dict[str, TrainedModel]
) -> None:
    members = {name: tmp_path / name for name in ["dnn", "logistic"]}
    for name, directory in members.items():
        write(directory, models[name])
    write(tmp_path / "blend", BlendedModel(members))
    version = bundle_version(tmp_path / "blend")
    load_bundle(tmp_path / "blend", expected_version=version)
    manifest = tmp_path / "blend" / "members" / "dnn" / "bundle.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(BundleError, match="its content has another hash"):
        load_bundle(tmp_path / "blend", expected_version=version)


def test_a_bundle_whose_file_cannot_be_read_is_refused(
    dnn_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = bundle_version(dnn_bundle)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", fail)
    with pytest.raises(BundleError, match=f"(?s)bundle {dnn_bundle} cannot be read.*Input/output error"):
        load_bundle(dnn_bundle, expected_version=version)


@pytest.mark.parametrize("file", ["weights.safetensors", "vocabulary.json"])
def test_a_missing_file_is_refused(dnn_bundle: Path, file: str) -> None:
    (dnn_bundle / file).unlink()
    with pytest.raises(BundleError, match=f"lacks the file {file}"):
        load_bundle(dnn_bundle)


def test_weights_of_another_hash_are_refused(dnn_bundle: Path) -> None:
    weights = dnn_bundle / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights of bundle .* do not match their hash"):
        load_bundle(dnn_bundle)


def test_a_damaged_vocabulary_is_refused(dnn_bundle: Path) -> None:
    OTHER_VOCABULARY.save(dnn_bundle / "vocabulary.json")
    with pytest.raises(BundleError, match=r"vocabulary .* does not match its hash"):
        load_bundle(dnn_bundle)


def test_rows_encoded_with_another_vocabulary_are_refused(dnn_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"(?s)trained with another vocabulary.*the bundle's own"):
        load_bundle(dnn_bundle, expected_vocabulary_hash=OTHER_VOCABULARY.hash)


def test_fields_that_are_not_the_vocabularys_are_refused(dnn_bundle: Path) -> None:
    rewrite_manifest(dnn_bundle, fields=[{"name": "apps", "vocabulary_size": 42, "max_length": 50}])
    with pytest.raises(BundleError, match="names other fields than its vocabulary"):
        load_bundle(dnn_bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "mxnet"}, r"(?s)unknown engine.*mxnet.*'torch', 'xgboost'"),
        ({"architecture": {"name": "transformer"}}, r"(?s)unknown architecture.*transformer.*'audience_net'"),
        ({"format_version": 2}, r"(?s)unknown format version.*found: +2.*expected: +3.*remedy: +train once"),
        ({"calibration": {"method": "platt"}}, "a calibration is no strictly increasing map"),
        ({"surprise": 1}, "manifest of bundle .* cannot be read"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(
    dnn_bundle: Path, changes: dict[str, object], message: str
) -> None:
    rewrite_manifest(dnn_bundle, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(dnn_bundle)


def test_a_torn_manifest_is_refused(dnn_bundle: Path) -> None:
    (dnn_bundle / "bundle.json").write_text('{"format_version": ')
    with pytest.raises(BundleError, match=r"manifest of bundle .* cannot be read"):
        load_bundle(dnn_bundle)


@pytest.mark.parametrize(
    "architecture",
    [
        {"name": "audience_net", "embedding_dim": 8, "hidden": [128, 64]},
        {"name": "audience_net", "width": 8},
        {"name": "logistic"},
    ],
)
def test_weights_of_another_architecture_are_refused(
    dnn_bundle: Path, architecture: dict[str, object]
) -> None:
    rewrite_manifest(dnn_bundle, architecture=architecture)
    with pytest.raises(BundleError, match="do not fit its architecture and vocabulary"):
        load_bundle(dnn_bundle)


def without_a_field(rows: EncodedRows) -> EncodedRows:
    return {"apps": rows["apps"]}


def of_unequal_length(rows: EncodedRows) -> EncodedRows:
    return {"apps": rows["apps"], "model": rows["model"].slice(0, 3)}


def beyond_the_vocabulary(rows: EncodedRows) -> EncodedRows:
    return {"apps": Ragged.from_lists([[42]]), "model": rows["model"].slice(0, 1)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_field, r"(?s)lack fields of the model.*\['model'\]"),
        (of_unequal_length, "differ in length"),
        (beyond_the_vocabulary, r"(?s)field 'apps'.*outside the model's vocabulary.*42 to 42.*0 to 41"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_refused(
    name: str,
    spoil: Callable[[EncodedRows], EncodedRows],
    message: str,
    tmp_path: Path,
    models: dict[str, TrainedModel],
) -> None:
    write(tmp_path / name, models[name])
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path / name).score(spoil(simulated_rows(6, seed=1).bags))


@pytest.mark.parametrize(("name", "modules"), [("xgboost", ["torch"]), ("dnn", ["torch._dynamo", "sympy"])])
def test_loading_a_bundle_loads_nothing_that_it_does_not_need(
    name: str, modules: list[str], tmp_path: Path, models: dict[str, TrainedModel]
) -> None:
    write(tmp_path / name, models[name])
    program = (
        "import sys\nfrom pathlib import Path\nfrom pipelines.steps.models.bundle_loader import load_bundle\n"
        "load_bundle(Path(sys.argv[1]))\nprint([name for name in sys.argv[2:] if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / name), *modules],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"

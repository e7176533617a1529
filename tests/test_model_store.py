"""The model store: versions are kept for good, and what serves is said explicitly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.steps.errors import BundleError, DataError
from pipelines.steps.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.logistic_model import LogisticConfig, TrainedLogistic
from pipelines.steps.model_bundle import load_bundle, write_bundle
from resources.model_store import ModelRecord, ModelStore

VOCABULARY = Vocabulary((FieldVocabulary("apps", 3, ("a", "b")),))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(root=str(tmp_path / "models"))


def bundle(bias: float) -> Callable[[Path], None]:
    """Writes the bundle of a model that gives every device the same probability."""
    state = {"weights.0": torch.zeros(VOCABULARY.sizes["apps"], 1), "bias": torch.tensor([bias])}
    model = TrainedLogistic(state, LogisticConfig(), chosen_c=1.0, validation_auc={1.0: 0.5})

    def write(directory: Path) -> None:
        write_bundle(directory, model, VOCABULARY, training_days=["2025-01-31"], code_version="1", metrics={})

    return write


# --- bundles and records --------------------------------------------------------------------------


def test_a_model_added_is_current_and_its_bundle_scores(store: ModelStore) -> None:
    record = store.add("buyers", "dnn", bundle(0.0), {"auc": 0.7})
    assert store.current("buyers", "dnn") == record
    assert (record.audience, record.model, record.properties) == ("buyers", "dnn", {"auc": 0.7})
    scorer = load_bundle(store.bundle(record))
    rows = VOCABULARY.encode(pa.table({"apps": [["a"], []]}))
    assert np.array_equal(scorer.score(rows), [0.5, 0.5])


def test_an_equal_bundle_is_kept_once(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0), {})
    written = {path: path.stat().st_mtime_ns for path in store.bundle(first).iterdir()}
    again = store.add("buyers", "dnn", bundle(0.0), {})
    assert again == first
    assert store.versions("buyers") == [first.version]
    assert {path: path.stat().st_mtime_ns for path in store.bundle(first).iterdir()} == written


def test_a_better_model_takes_over_and_the_former_one_stays(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0), {"auc": 0.7})
    second = store.add("buyers", "dnn", bundle(1.0), {"auc": 0.8})
    assert store.current("buyers", "dnn") == second
    assert store.former(ModelRecord("buyers", "dnn", first.version)) == first
    assert store.versions("buyers") == sorted([first.version, second.version])
    assert store.bundle(first).is_dir()


def test_a_version_may_serve_again(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0), {"auc": 0.7})
    store.add("buyers", "dnn", bundle(1.0), {"auc": 0.8})
    store.record(first)
    assert store.current("buyers", "dnn") == first


def test_recording_again_changes_what_is_known_of_a_version(store: ModelStore) -> None:
    added = store.add("buyers", "dnn", bundle(0.0), {})
    measured = store.record(ModelRecord("buyers", "dnn", added.version, {"auc": 0.7}))
    assert store.current("buyers", "dnn") == store.former(added) == measured


def test_audiences_and_models_are_kept_apart(store: ModelStore) -> None:
    dnn = store.add("buyers", "dnn", bundle(0.0), {})
    logistic = store.add("buyers", "logistic", bundle(1.0), {})
    readers = store.add("readers", "dnn", bundle(2.0), {})
    assert store.models("buyers") == ["dnn", "logistic"]
    assert store.models("readers") == ["dnn"]
    assert store.current("buyers", "dnn") == dnn
    assert store.current("buyers", "logistic") == logistic
    assert store.current("readers", "dnn") == readers


def test_a_bundle_that_fails_to_be_written_leaves_no_trace(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0), {})

    def write_half(directory: Path) -> None:
        directory.mkdir()
        (directory / "weights.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.add("buyers", "dnn", write_half, {})
    assert store.current("buyers", "dnn") == first
    assert store.versions("buyers") == [first.version]
    assert list((Path(store.root) / "drafts").iterdir()) == []


def test_an_audience_without_the_model_is_an_error(store: ModelStore) -> None:
    store.add("buyers", "dnn", bundle(0.0), {})
    with pytest.raises(BundleError) as raised:
        store.current("buyers", "champion")
    assert str(raised.value) == (
        "audience buyers has no champion model\n"
        "  found:    ['dnn']\n"
        "  expected: champion\n"
        "  remedy:   run the training job first"
    )
    with pytest.raises(BundleError, match="found:    no model at all"):
        store.current("readers", "dnn")


def test_a_version_never_recorded_is_an_error(store: ModelStore) -> None:
    added = store.add("buyers", "dnn", bundle(0.0), {})
    with pytest.raises(BundleError) as raised:
        store.former(ModelRecord("buyers", "champion", added.version))
    assert str(raised.value) == (
        f"nothing is recorded of champion {added.version} of buyers\n"
        f"  found:    ['{added.version}']\n"
        f"  expected: {added.version}\n"
        "  remedy:   score the day again with the current champion"
    )


def test_a_bundle_that_is_gone_is_an_error(store: ModelStore) -> None:
    gone = ModelRecord("buyers", "dnn", "0123456789abcdef")
    with pytest.raises(BundleError) as raised:
        store.bundle(gone)
    assert str(raised.value) == (
        "bundle 0123456789abcdef of buyers is missing\n"
        "  found:    no bundle at all\n"
        f"  expected: {store.root}/bundles/buyers/0123456789abcdef\n"
        "  remedy:   restore the directory, or train again"
    )


# --- vocabularies ---------------------------------------------------------------------------------


def test_the_vocabulary_saved_last_is_the_current_one(store: ModelStore) -> None:
    longer = Vocabulary((FieldVocabulary("apps", 3, ("a", "b", "c")),))
    store.save_vocabulary(VOCABULARY)
    assert store.vocabulary() == store.find_vocabulary() == VOCABULARY
    store.save_vocabulary(longer)
    assert store.vocabulary() == longer
    kept = {path.name for path in (Path(store.root) / "vocabularies").iterdir()}
    assert kept == {f"{VOCABULARY.hash}.json", f"{longer.hash}.json", "current"}


def test_before_the_first_fit_there_is_no_vocabulary(store: ModelStore) -> None:
    assert store.find_vocabulary() is None
    with pytest.raises(DataError) as raised:
        store.vocabulary()
    assert str(raised.value) == (
        "there is no vocabulary\n"
        "  found:    nothing\n"
        "  expected: one fitted on the training as-of days\n"
        "  remedy:   materialize feature_vocabulary first"
    )


def test_a_vocabulary_that_was_altered_is_refused(store: ModelStore) -> None:
    store.save_vocabulary(VOCABULARY)
    path = Path(store.root) / "vocabularies" / f"{VOCABULARY.hash}.json"
    path.write_text(path.read_text().replace('"b"', '"x"'))
    with pytest.raises(BundleError, match="does not match its hash"):
        store.vocabulary()

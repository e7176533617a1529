"""The model store: versions are kept for good, and what serves is said explicitly."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.steps.errors import BundleError, DataError
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.models.bundle import BundleRef, write_bundle
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.logistic_model import LogisticConfig, TrainedLogistic
from resources.model_log import ModelRecord
from resources.model_store import ModelStore

VOCABULARY = Vocabulary((FieldVocabulary("apps", 3, ("a", "b")),))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(root=str(tmp_path / "models"))


def bundle(bias: float, **properties: Any) -> Callable[[Path], Mapping[str, Any]]:
    """Writes the bundle of a model that gives every device the same probability."""
    state = {"weights": torch.zeros(VOCABULARY.sizes["apps"], 1), "bias": torch.tensor([bias])}
    model = TrainedLogistic(state, LogisticConfig(), 1.0, 1.0, validation_metric={(1.0, 1.0): 0.5})

    def write(directory: Path) -> Mapping[str, Any]:
        write_bundle(directory, model, VOCABULARY, training_days=["2025-01-31"], code_version="1", metrics={})
        return properties

    return write


def champion(store: ModelStore, bias: float, **thresholds: float | None) -> ModelRecord:
    """Trains a network and makes it serve, as the training job does."""
    dnn = store.add("buyers", "dnn", bundle(bias))
    return store.record(replace(dnn, model="champion", properties={"model": "dnn", "thresholds": thresholds}))


def log(store: ModelStore) -> list[tuple[str, str]]:
    """Version and reason of every entry of the champion's log, oldest first."""
    return [(entry.record.version, entry.reason) for entry in reversed(store.history("buyers"))]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def age(path: Path, hours: float) -> None:
    written = time.time() - hours * 3600
    os.utime(path, (written, written))


# --- bundles and records --------------------------------------------------------------------------


def test_a_model_added_is_current_and_its_bundle_scores(store: ModelStore) -> None:
    record = store.add("buyers", "dnn", bundle(0.0, auc=0.7))
    assert store.current("buyers", "dnn") == record
    assert (record.audience, record.model, record.properties) == ("buyers", "dnn", {"auc": 0.7})
    scorer = load_bundle(store.bundle(record))
    rows = VOCABULARY.encode(pa.table({"apps": [["a"], []]}))
    assert np.array_equal(scorer.score(rows), [0.5, 0.5])


def test_an_equal_bundle_is_kept_once(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0))
    written = {path: path.stat().st_mtime_ns for path in store.bundle(first).iterdir()}
    again = store.add("buyers", "dnn", bundle(0.0))
    assert again == first
    assert store.versions("buyers") == [first.version]
    assert {path: path.stat().st_mtime_ns for path in store.bundle(first).iterdir()} == written


def test_a_better_model_takes_over_and_the_former_one_stays(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0, auc=0.7))
    second = store.add("buyers", "dnn", bundle(1.0, auc=0.8))
    assert store.current("buyers", "dnn") == second
    assert store.find("buyers", "dnn", first.version) == first
    assert store.versions("buyers") == sorted([first.version, second.version])
    assert store.bundle(first).is_dir()


def test_a_version_may_serve_again(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0, auc=0.7))
    store.add("buyers", "dnn", bundle(1.0, auc=0.8))
    store.record(first)
    assert store.current("buyers", "dnn") == first


def test_recording_again_changes_what_is_known_of_a_version(store: ModelStore) -> None:
    added = store.add("buyers", "dnn", bundle(0.0))
    measured = store.record(ModelRecord("buyers", "dnn", added.version, {"auc": 0.7}))
    assert store.current("buyers", "dnn") == store.find("buyers", "dnn", added.version) == measured


def test_audiences_and_models_are_kept_apart(store: ModelStore) -> None:
    dnn = store.add("buyers", "dnn", bundle(0.0))
    logistic = store.add("buyers", "logistic", bundle(1.0))
    readers = store.add("readers", "dnn", bundle(2.0))
    assert store.models("buyers") == ["dnn", "logistic"]
    assert store.models("readers") == ["dnn"]
    assert store.current("buyers", "dnn") == dnn
    assert store.current("buyers", "logistic") == logistic
    assert store.current("readers", "dnn") == readers


def test_a_bundle_that_fails_to_be_written_leaves_no_trace(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0))

    def write_half(directory: Path) -> Mapping[str, Any]:
        directory.mkdir()
        (directory / "weights.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.add("buyers", "dnn", write_half)
    assert store.current("buyers", "dnn") == first
    assert store.versions("buyers") == [first.version]
    assert list((Path(store.root) / "drafts").iterdir()) == []


def test_drafts_that_nobody_finished_go_with_a_later_write(store: ModelStore) -> None:
    """They are what kills leave: of bundles, log entries, vocabularies and checkpoints."""
    root = Path(store.root)
    bundle_draft, young = root / "drafts" / "0" / "weights.safetensors", root / "drafts" / "1.json"
    abandoned = [
        root / "drafts" / "2.json",
        root / "vocabularies" / "3.tmp",
        root / "vocabularies" / "current.4.tmp",
        root / "checkpoints" / "buyers" / "dnn.pt.tmp",
        root / "cards" / "buyers" / "0123" / "card.md.5.tmp",
    ]
    for path in [bundle_draft, young, *abandoned]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    for path in [bundle_draft, bundle_draft.parent, *abandoned]:
        age(path, hours=25)
    store.add("buyers", "dnn", bundle(0.0))
    store.save_vocabulary(VOCABULARY)
    store.checkpoint("buyers", "dnn")
    store.save_card(ModelRecord("buyers", "dnn", "0123"), {"card.md": b"card"})
    assert [path for path in [bundle_draft, *abandoned] if path.exists()] == []
    assert list((root / "drafts").iterdir()) == [young]


def test_the_checkpoints_of_a_model_go_together(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    own, others = ("dnn", "dnn_rehearsal-2", "dnn_refit"), ("xgboost",)
    paths = {name: store.checkpoint("buyers", name) for name in (*own, *others)}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("state")
    (paths["dnn"].parent / "dnn_folder.pt").mkdir()

    store.remove_checkpoints("buyers", "dnn")
    assert [name for name, path in paths.items() if path.exists()] == list(others)
    assert "dnn_folder.pt cannot be removed" in caplog.text


def test_a_bundle_is_on_disk_before_it_is_recorded(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").resolve().name))
    version = store.add("buyers", "dnn", bundle(0.0)).version
    kept, recorded = synced.index("buyers", synced.index("bundle.json")), len(synced) - 1
    assert {"bundle.json", "vocabulary.json", "weights.safetensors"} <= set(synced[:kept])
    assert synced[recorded] == "dnn"  # the log's directory
    assert kept < recorded
    assert store.versions("buyers") == [version]


def test_equal_bundles_added_at_once_are_kept_once(store: ModelStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda _: store.add("buyers", "dnn", bundle(0.0)), range(16)))
    assert len({record.version for record in records}) == 1
    assert store.describe(records[0]).content_hash == records[0].version
    assert list((Path(store.root) / "drafts").iterdir()) == []


def test_a_damaged_bundle_is_mended_by_many_at_once(store: ModelStore) -> None:
    record = store.add("buyers", "dnn", bundle(0.0))
    damage(store.bundle(record) / "weights.safetensors")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.add("buyers", "dnn", bundle(0.0)), range(16)))
    assert store.describe(record).content_hash == record.version
    assert list((Path(store.root) / "drafts").iterdir()) == []


def test_an_audience_whose_models_were_not_good_enough_says_why_it_has_no_champion(store: ModelStore) -> None:
    promotion = {"accepted": False, "reason": "it may be no better than chance"}
    candidate = store.add("buyers", "dnn", bundle(0.0, promotion=promotion))
    store.record(replace(candidate, model="challenger"))
    with pytest.raises(BundleError) as raised:
        store.current("buyers", "champion")
    assert str(raised.value) == (
        "audience buyers has no champion: no model trained so far was good enough to serve\n"
        "  found:    it may be no better than chance\n"
        "  expected: a model that is better than chance on the devices kept for promotion\n"
        "  remedy:   mend that and run the training job again; or promote a version with "
        "`./run python -m pipelines.models promote buyers VERSION`"
    )


def test_an_audience_without_the_model_is_an_error(store: ModelStore) -> None:
    store.add("buyers", "dnn", bundle(0.0))
    with pytest.raises(BundleError) as raised:
        store.current("buyers", "champion")
    assert str(raised.value) == (
        "audience buyers has no champion model\n"
        "  found:    ['dnn']\n"
        "  expected: champion\n"
        "  remedy:   run the training job first, or name one that there is"
    )
    with pytest.raises(BundleError, match=r"no model at all in .*, which has audiences \['buyers'\]"):
        store.current("readers", "dnn")


def test_a_version_never_recorded_is_an_error(store: ModelStore) -> None:
    added = store.add("buyers", "dnn", bundle(0.0))
    with pytest.raises(BundleError) as raised:
        store.find("buyers", "dnn", "0" * 16)
    assert str(raised.value) == (
        f"nothing is recorded of dnn {'0' * 16} of buyers\n"
        f"  found:    dnn: {added.version}\n"
        f"  expected: {'0' * 16}\n"
        "  remedy:   name one of these in full, with its model; a day that another one scored, score again"
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


# --- loading ----------------------------------------------------------------------------------------


def test_a_bundle_is_loaded_in_a_line(store: ModelStore) -> None:
    rows = VOCABULARY.encode(pa.table({"apps": [["a"], []]}))
    first = champion(store, 0.0)
    champion(store, 100.0)
    store.add("buyers", "dnn", bundle(-100.0))
    assert store.load("buyers").score(rows).tolist() == [1.0, 1.0]
    assert store.load("buyers", version=first.version).score(rows).tolist() == [0.5, 0.5]
    assert store.load("buyers", "dnn", threads=2).score(rows).tolist() == pytest.approx([0.0, 0.0])


def test_a_version_is_named_in_full_and_of_its_model(store: ModelStore) -> None:
    served = champion(store, 0.0)
    other = store.add("buyers", "logistic", bundle(1.0))
    for version in [served.version[:8], other.version]:
        with pytest.raises(BundleError) as raised:
            store.load("buyers", version=version)
        assert raised.value.found == (
            f"champion: {served.version}; dnn: {served.version}; logistic: {other.version}"
        )


def test_an_error_names_the_newest_of_many_versions(store: ModelStore) -> None:
    versions = [champion(store, float(bias)).version for bias in range(8)]
    with pytest.raises(BundleError) as raised:
        store.find("buyers", version="x")
    assert f"champion: {', '.join(versions[:2:-1])}, … {versions[0]} (8 in all); dnn: " in str(raised.value)


@pytest.mark.parametrize("file", ["bundle.json", "vocabulary.json", "weights.safetensors"])
def test_a_damaged_bundle_is_not_loaded(store: ModelStore, file: str) -> None:
    record = champion(store, 0.0)
    damage(store.bundle(record) / file)
    with pytest.raises(BundleError, match="its content has another hash"):
        store.load("buyers")


@pytest.mark.parametrize("file", ["bundle.json", "vocabulary.json", "weights.safetensors"])
def test_a_damaged_bundle_is_not_handed_out(store: ModelStore, file: str) -> None:
    record = champion(store, 0.0)
    path = store.bundle(record)
    damage(path / file)
    with pytest.raises(BundleError) as raised:
        store.bundle(record)
    assert (
        raised.value.what == f"bundle {path} was changed since it was recorded: its content has another hash"
    )


def test_a_bundle_is_named_with_the_version_that_is_recorded(store: ModelStore) -> None:
    record = champion(store, 0.0)
    ref = store.bundle_ref(record)
    assert ref == BundleRef(store.bundle(record), record.version)
    damage(ref.path / "weights.safetensors")
    assert store.bundle_ref(record) == ref


def test_a_bundle_under_another_ones_name_is_not_loaded(store: ModelStore) -> None:
    """Each file of it is right, so only the hash of them all can tell."""
    first, second = champion(store, 0.0), champion(store, 1.0)
    place = store.bundle(second)
    shutil.rmtree(place)
    shutil.copytree(store.bundle(first), place)
    with pytest.raises(BundleError) as raised:
        store.load("buyers")
    assert str(raised.value) == (
        f"bundle {place} was changed since it was recorded: its content has another hash\n"
        f"  found:    version {first.version}\n"
        f"  expected: version {second.version}\n"
        "  remedy:   restore the directory, name another version, or train again"
    )


def test_training_again_mends_a_damaged_bundle(store: ModelStore) -> None:
    record = champion(store, 0.0)
    damage(store.bundle(record) / "weights.safetensors")
    store.add("buyers", "dnn", bundle(0.0))
    assert store.describe(record).content_hash == record.version


def test_rows_encoded_with_another_vocabulary_are_no_business_of_this_model(store: ModelStore) -> None:
    store.add("buyers", "dnn", bundle(0.0, vocabulary_hash="0" * 64))
    with pytest.raises(BundleError, match="trained with another vocabulary"):
        store.load("buyers", "dnn")


# --- what is known ------------------------------------------------------------------------------------


def test_the_log_says_what_became_current_when_and_why(store: ModelStore) -> None:
    start = datetime.now(UTC)
    first, second = champion(store, 0.0), champion(store, 1.0)
    store.rollback("buyers", by_precision=[])
    history = store.history("buyers")
    assert [(e.number, e.record, e.reason, e.restores) for e in history] == [
        (3, first, "rolled back", 1),
        (2, second, "trained", None),
        (1, first, "trained", None),
    ]
    last, middle, first_time = [entry.recorded_at for entry in history]
    assert start <= first_time <= middle <= last <= datetime.now(UTC)
    assert last.utcoffset() == timedelta(0)
    assert store.history("readers") == []


def test_the_versions_of_a_model_are_listed_once_the_current_one_first(store: ModelStore) -> None:
    first, second = champion(store, 0.0), champion(store, 1.0)
    store.rollback("buyers", by_precision=[])
    assert [(e.record, e.number) for e in store.versions_of("buyers")] == [(first, 3), (second, 2)]


def test_a_bundle_is_described_from_its_files(store: ModelStore) -> None:
    record = champion(store, 0.0)
    described, directory = store.describe(record), store.bundle(record)
    assert (described.path, described.content_hash) == (directory, record.version)
    assert described.manifest.engine == "torch"
    assert (described.files, described.bytes) == (3, sum(p.stat().st_size for p in directory.iterdir()))
    damage(directory / "weights.safetensors")
    assert store.describe(record).content_hash != record.version


def test_audiences_are_listed(store: ModelStore) -> None:
    assert store.audiences() == []
    store.add("readers", "dnn", bundle(0.0))
    champion(store, 0.0)
    assert store.audiences() == ["buyers", "readers"]


def test_recording_what_is_current_writes_nothing(store: ModelStore) -> None:
    champion(store, 0.0, precise=0.5)
    champion(store, 0.0, precise=0.5)
    assert len(store.history("buyers")) == len(store.history("buyers", "dnn")) == 1
    champion(store, 0.0, precise=0.6)
    assert len(store.history("buyers")) == 2


def test_no_entry_is_lost_or_replaced_when_many_are_written_at_once(store: ModelStore) -> None:
    records = [ModelRecord("buyers", "dnn", f"{number:016x}") for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.record, records))
    history = store.history("buyers", "dnn")
    assert [entry.number for entry in history] == list(range(24, 0, -1))
    assert sorted(entry.record.version for entry in history) == [record.version for record in records]
    assert list((Path(store.root) / "drafts").iterdir()) == []


def test_a_log_entry_that_cannot_be_read_is_named(store: ModelStore) -> None:
    champion(store, 0.0)
    path = Path(store.root) / "log/buyers/champion/000001.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(BundleError, match=f"(?s)entry 1 in the log of champion of buyers.*{path}"):
        store.load("buyers")


# --- promotion ----------------------------------------------------------------------------------------


def test_a_former_champion_serves_again_with_its_thresholds(store: ModelStore) -> None:
    first = champion(store, 0.0, precise=0.3)
    second = champion(store, 1.0, precise=0.8)
    assert store.promote("buyers", first.version, by_precision=["precise"]) == first
    assert store.current("buyers", "champion") == first
    assert log(store) == [
        (first.version, "trained"),
        (second.version, "trained"),
        (first.version, "promoted"),
    ]


def test_a_candidate_that_never_served_becomes_champion_with_its_own_thresholds(store: ModelStore) -> None:
    champion(store, 0.0, precise=0.3)
    candidate = store.add("buyers", "logistic", bundle(1.0, thresholds={"precise": 0.7}, training_set="t"))
    promoted = store.promote("buyers", candidate.version, by_precision=["precise"])
    assert promoted == store.current("buyers", "champion")
    assert promoted.version == candidate.version
    assert promoted.properties == {"model": "logistic", "thresholds": {"precise": 0.7}, "training_set": "t"}
    assert store.current("buyers", "logistic") == candidate


def test_a_candidate_is_promoted_where_no_champion_was(store: ModelStore) -> None:
    candidate = store.add("buyers", "dnn", bundle(0.0))
    store.promote("buyers", candidate.version, by_precision=[])
    assert log(store) == [(candidate.version, "promoted")]


def test_what_was_recorded_last_of_a_version_is_promoted(store: ModelStore) -> None:
    """Training again may give an equal model, but thresholds for the segments asked for since."""
    first = champion(store, 0.0, precise=0.3)
    champion(store, 1.0)
    store.add("buyers", "dnn", bundle(0.0, thresholds={"precise": 0.3, "sure": 0.9}))
    promoted = store.promote("buyers", first.version, by_precision=["precise", "sure"])
    assert promoted.properties == {"model": "dnn", "thresholds": {"precise": 0.3, "sure": 0.9}}


def test_promoting_what_is_current_changes_nothing(store: ModelStore) -> None:
    current = champion(store, 0.0)
    assert store.promote("buyers", current.version, by_precision=[]) == current
    assert log(store) == [(current.version, "trained")]


def test_a_candidate_model_takes_only_its_own_versions(store: ModelStore) -> None:
    first = store.add("buyers", "dnn", bundle(0.0))
    store.add("buyers", "dnn", bundle(1.0))
    other = store.add("buyers", "logistic", bundle(2.0))
    assert store.promote("buyers", first.version, model="dnn", by_precision=["precise"]) == first
    assert store.current("buyers", "dnn") == first
    with pytest.raises(BundleError, match=f"never had a version {other.version} that could become its dnn"):
        store.promote("buyers", other.version, model="dnn", by_precision=[])


def test_a_version_without_a_threshold_that_is_needed_is_refused(store: ModelStore) -> None:
    current = champion(store, 0.0, precise=0.3, sure=0.9, certain=0.99)
    candidate = store.add("buyers", "logistic", bundle(1.0, thresholds={"precise": 0.7, "sure": None}))
    with pytest.raises(BundleError) as raised:
        store.promote("buyers", candidate.version, by_precision=["precise", "sure", "certain"])
    assert str(raised.value) == (
        f"version {candidate.version} of buyers has no threshold for segment sure\n"
        "  found:    sure: its precision was not reached, certain: never computed\n"
        "  expected: a threshold for each of precise, sure, certain\n"
        "  remedy:   promote a version that has them; or run the training job, which finds them for the "
        "segments asked for now; or ask for these by top_fraction or size"
    )
    assert store.current("buyers", "champion") == current


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json", "bundle.json"])
def test_a_damaged_version_is_not_promoted(store: ModelStore, name: str) -> None:
    first, second = champion(store, 0.0), champion(store, 1.0)
    damage(store.bundle(first) / name)
    with pytest.raises(BundleError):
        store.promote("buyers", first.version, by_precision=[])
    assert store.current("buyers", "champion") == second


def test_what_cannot_be_promoted_is_named_with_what_can(store: ModelStore) -> None:
    current = champion(store, 0.0)
    with pytest.raises(BundleError) as raised:
        store.promote("buyers", "0123456789abcdef", by_precision=[])
    assert str(raised.value) == (
        "audience buyers never had a version 0123456789abcdef that could become its champion\n"
        f"  found:    champion: {current.version}; dnn: {current.version}\n"
        "  expected: 0123456789abcdef\n"
        "  remedy:   name one of these in full"
    )
    with pytest.raises(BundleError, match="audience readers has no champion model"):
        store.promote("readers", current.version, by_precision=[])
    with pytest.raises(BundleError, match="audience buyers has no forest model"):
        store.promote("buyers", current.version, model="forest", by_precision=[])


# --- rollback -----------------------------------------------------------------------------------------


def test_rollbacks_go_further_and_further_back_until_none_is_left(store: ModelStore) -> None:
    first, second, third = [champion(store, bias, precise=0.1 + bias) for bias in (0.0, 0.1, 0.2)]
    assert store.rollback("buyers", by_precision=["precise"]) == second
    assert store.rollback("buyers", by_precision=["precise"]) == first
    with pytest.raises(BundleError, match=f"audience buyers had no champion before {first.version}"):
        store.rollback("buyers", by_precision=["precise"])
    assert store.current("buyers", "champion") == first
    assert log(store) == [
        (first.version, "trained"),
        (second.version, "trained"),
        (third.version, "trained"),
        (second.version, "rolled back"),
        (first.version, "rolled back"),
    ]


def test_a_rollback_never_returns_to_what_was_rolled_back_from(store: ModelStore) -> None:
    first, bad = champion(store, 0.0), champion(store, 1.0)
    store.rollback("buyers", by_precision=[])
    newer = champion(store, 2.0)
    assert bad.version not in {first.version, newer.version}
    assert store.rollback("buyers", by_precision=[]) == first
    with pytest.raises(BundleError, match=r"nothing earlier than .* UTC that was not rolled back"):
        store.rollback("buyers", by_precision=[])


def test_a_promotion_is_rolled_back_like_a_training(store: ModelStore) -> None:
    first, second = champion(store, 0.0), champion(store, 1.0)
    store.promote("buyers", first.version, by_precision=[])
    assert store.rollback("buyers", by_precision=[]) == second
    assert store.rollback("buyers", by_precision=[]) == first


def test_a_rollback_skips_earlier_records_of_the_same_version(store: ModelStore) -> None:
    first = champion(store, 0.0)
    champion(store, 1.0, precise=0.3)
    champion(store, 1.0, precise=0.4)
    assert store.rollback("buyers", by_precision=[]) == first


def test_a_rollback_to_a_damaged_version_is_refused(store: ModelStore) -> None:
    first, second = champion(store, 0.0), champion(store, 1.0)
    damage(store.bundle(first) / "weights.safetensors")
    with pytest.raises(BundleError, match=f"bundle .*/buyers/{first.version} was changed"):
        store.rollback("buyers", by_precision=[])
    assert store.current("buyers", "champion") == second


def test_a_rollback_to_a_version_without_thresholds_is_refused(store: ModelStore) -> None:
    champion(store, 0.0)
    second = champion(store, 1.0, precise=0.5)
    with pytest.raises(BundleError, match="no threshold for segment precise"):
        store.rollback("buyers", by_precision=["precise"])
    assert store.current("buyers", "champion") == second


def test_a_training_that_ends_during_a_rollback_is_not_undone(store: ModelStore) -> None:
    _, bad = champion(store, 0.0), champion(store, 1.0)

    class Overtaken(ModelStore):
        def bundle_ref(self, record: ModelRecord) -> BundleRef:
            newer.append(champion(store, 2.0))
            return super().bundle_ref(record)

    newer: list[ModelRecord] = []
    with pytest.raises(BundleError) as raised:
        Overtaken(root=store.root).rollback("buyers", by_precision=[])
    assert raised.value.what == "the champion of buyers changed while it was rolled back"
    assert (raised.value.found, raised.value.expected) == (newer[0].version, bad.version)
    assert store.current("buyers", "champion") == newer[0]


# --- vocabularies ---------------------------------------------------------------------------------


def test_the_vocabulary_saved_last_is_the_current_one(store: ModelStore) -> None:
    longer = Vocabulary((FieldVocabulary("apps", 3, ("a", "b", "c")),))
    store.save_vocabulary(VOCABULARY)
    assert store.vocabulary() == store.find_vocabulary() == VOCABULARY
    store.save_vocabulary(longer)
    assert store.vocabulary() == longer
    kept = {path.name for path in (Path(store.root) / "vocabularies").iterdir()}
    assert kept == {f"{VOCABULARY.hash}.json", f"{longer.hash}.json", "current"}


def test_vocabularies_saved_at_once_leave_one_of_them_current(store: ModelStore) -> None:
    vocabularies = [Vocabulary((FieldVocabulary("apps", 3, (str(token),)),)) for token in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.save_vocabulary, vocabularies))
    assert store.vocabulary() in vocabularies
    assert len(list((Path(store.root) / "vocabularies").iterdir())) == 9


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

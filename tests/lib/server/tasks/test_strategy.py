from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.acquisition.names import strategy_names
from medseg.acquisition.score_store import StoredScore
from medseg.cases import Case
from medseg.errors import NotFoundError
from medseg.methods.supervised.method import Supervised
from medseg.server.routes import state
from medseg.server.status_page import render_status


def sample(app: Any, strategy: str, client: str = "ann") -> dict[str, Any]:
    reply: dict[str, Any] = app.next_sample({"strategy": strategy, "client_id": client})
    return reply


def store(app: Any, **values: float) -> None:
    app.study.scores("supervised").update(
        StoredScore(i, 1, app.study.stamps([i])[i], v, f"entropy {v:.2f}") for i, v in values.items()
    )


def test_highest_score_first_with_its_reason(trained_app: Any) -> None:
    store(trained_app, organ_003=0.2, organ_004=0.6)

    found = sample(trained_app, "supervised")

    assert (found["id"], found["why"], found["score"]) == ("organ_004", "entropy 0.60", 0.6)
    assert found["path"].endswith("organ_004.nii.gz")
    assert found["lease_minutes"] == 60


def test_scores_of_an_older_model_do_not_count(trained_app: Any) -> None:
    trained_app.study.scores("supervised").update([StoredScore("organ_003", 0, "", 0.9, "old")])

    assert {s.value for s in trained_app._strategies["supervised"].ranking()} == {None}


def test_all_strategies_share_the_leases(make_app: Any) -> None:
    app = make_app()

    first = sample(app, "first", "ann")
    second = sample(app, "random", "bob")

    assert {first["id"], second["id"]} == {"organ_003", "organ_004"}
    assert sample(app, "supervised", "eve") == {}


def test_without_a_model_the_order_is_random_and_says_so(make_app: Any) -> None:
    app = make_app()

    assert sample(app, "supervised")["why"] == "no model yet, random order"
    ranking = [s.id for s in app._strategies["supervised"].ranking()]
    assert ranking == [s.id for s in make_app()._strategies["random"].ranking()]


def test_saving_a_label_ends_the_lease(make_app: Any, tmp_path: Any) -> None:
    app = make_app()
    image = sample(app, "first")["id"]
    values = np.zeros((24, 24, 16), dtype=np.uint8)
    values[8:16, 8:16, 4:12] = 1
    mask = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(values, nib.load(tmp_path / "study" / f"{image}.nii.gz").affine), mask)

    app.datastore().save_label(image, str(mask), "final", {"label_info": [{"name": "atrium", "idx": 1}]})
    reply = app.on_save_label(image, image)

    assert app.study.leases.of(image) is None
    assert (reply["labelled"], reply["unlabelled"]) == (4, 1)
    assert isinstance(reply["remarks"], list)
    assert sample(app, "first")["id"] != image


def test_images_that_weak_labels_tell_all_of_go_last_and_are_given_back(
    make_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_labelled(case: Case) -> bool:
        return case.label is not None or bool(case.weak and case.weak.angles)

    monkeypatch.setattr(Supervised, "is_labelled", staticmethod(is_labelled))
    app = make_app()
    assert sample(app, "first")["id"] == "organ_003"

    app.datastore().update_image_info("organ_003", {"weak": {"domain": "x"}})
    app.on_image_info("organ_003")
    held = app.study.leases.of("organ_003")
    app.datastore().update_image_info("organ_003", {"weak": {"angles": {"max": 12}}})
    app.on_image_info("organ_003")

    assert held is not None
    assert app.study.leases.of("organ_003") is None
    assert [sample(app, name, client)["id"] for name, client in (("first", "a"), ("random", "b"))] == [
        "organ_004",
        "organ_003",
    ]


def test_diverse_strategy_keeps_away_from_what_is_labelled(trained_app: Any, make_app: Any) -> None:
    scores = [
        StoredScore("organ_003", 1, "", 0.5, "w", features=(0.0, 0.0)),
        StoredScore("organ_004", 1, "", 0.4, "w", features=(9.0, 9.0)),
        StoredScore("organ_000", 1, "", 0.4, "w", features=(0.0, 0.1)),
    ]
    trained_app.study.scores("supervised").update(scores)

    assert trained_app._strategies["supervised"].ranking()[0].id == "organ_003"
    diverse = make_app(diversity=2)._strategies["supervised_diverse"].ranking()
    assert diverse[0].id == "organ_004"
    assert "unlike the images already chosen" in diverse[0].why


@pytest.mark.parametrize("models", ["supervised", "caml,local_discrimination", "multidomain"])
def test_names_of_strategies_are_known_before_a_server_runs(make_app: Any, models: str) -> None:
    app = make_app(models=models)
    assert list(strategy_names(models.split(","))) == list(app._strategies)


def test_unknown_strategies_are_named(make_app: Any) -> None:
    with pytest.raises(NotFoundError, match="known: supervised, supervised_diverse, random, stratified, first"):
        sample(make_app(), "nope")


def test_stratified_spreads_over_domains_else_over_patients(make_app: Any) -> None:
    app = make_app(patient_pattern=r"organ_00(\d)")
    for number, domain in enumerate(("x", "x", "x", "x", "y")):
        app.datastore().update_image_info(f"organ_00{number}", {"weak": {"domain": domain}})

    assert sample(app, "stratified")["id"] == "organ_004"  # 3 of 4 in domain x are labelled, none in y
    app.datastore().update_image_info("organ_004", {"weak": {"domain": "x"}})
    assert app.study.strata() == {f"organ_00{number}": str(number) for number in range(5)}


def test_first_labels_by_embeddings_need_no_segmentation_model(make_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(models="supervised,local_discrimination")
    monkeypatch.setattr(app.study.registry, "champion", lambda method: SimpleNamespace(number=1))
    features = {"organ_003": (0.0, 0.0), "organ_004": (5.0, 0.0), "organ_000": (0.1, 0.0)}
    app.study.scores("local_discrimination").update(
        StoredScore(i, 1, app.study.stamps([i])[i], 0.1, "", features=f) for i, f in features.items()
    )

    ranked = {name: app._strategies[name].ranking() for name in ("typicality", "k_centre")}

    assert ranked["k_centre"][0].id == "organ_004"  # organ_000 is labelled, and organ_003 is much like it
    assert "unlike the images already chosen" in ranked["k_centre"][0].why
    assert "typical of" in ranked["typicality"][0].why
    assert "typicality" not in make_app()._strategies


def test_images_that_could_not_be_scored_come_last_with_the_reason(trained_app: Any, tmp_path: Any) -> None:
    (tmp_path / "study" / "organ_003.nii.gz").write_text("no image")  # `first` would hand it out first
    trained_app.scoring({"method": "supervised"})

    for name in ("first", "random", "stratified", "supervised", "supervised_diverse"):
        best, last = trained_app._strategies[name].ranking()
        assert (best.id, last.id, last.value) == ("organ_004", "organ_003", None), name
        assert last.why.startswith("organ_003.nii.gz cannot be read, it seems damaged"), name
    trained_app.datastore().refresh()
    shown = state(trained_app)
    assert (shown["loop"]["methods"]["supervised"]["scored"], shown["loop"]["methods"]["supervised"]["failed"]) == (
        1,
        1,
    )
    assert shown["problems"][-1].startswith("image organ_003 could not be scored: organ_003.nii.gz cannot be read")
    assert "1 of 2 unlabelled images scored, 1 failed." in render_status(shown)

    (tmp_path / "study" / "organ_003.nii.gz").write_bytes((tmp_path / "study" / "organ_004.nii.gz").read_bytes())
    assert trained_app.study.failures() == {}  # it was replaced, and nothing is known of it


def test_what_one_method_could_score_is_last_for_the_other_one_only(make_app: Any, monkeypatch: Any) -> None:
    app = make_app(models="supervised,caml", set="")
    monkeypatch.setattr(app.study.registry, "champion", lambda method: SimpleNamespace(number=1, metrics={}))
    stamps = app.study.stamps(["organ_003"])
    app.study.scores("supervised").update([StoredScore("organ_003", 1, stamps["organ_003"], None, error="no regions")])
    app.study.scores("caml").update([StoredScore("organ_003", 1, stamps["organ_003"], 0.5, "entropy 0.50")])

    assert app._strategies["supervised"].ranking()[-1].why == "no regions"
    assert app._strategies["caml"].ranking()[0].why == "entropy 0.50"
    assert app._strategies["first"].ranking()[0].id == "organ_003"


def test_images_labelled_since_are_not_counted_as_scored(trained_app: Any) -> None:
    store(trained_app, organ_000=0.5, organ_003=0.2)

    assert trained_app.loop_state()["methods"]["supervised"]["scored"] == 1

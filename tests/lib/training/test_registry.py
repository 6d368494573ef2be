from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from medseg.errors import ConflictError, MedsegError, NotFoundError
from medseg.files import write_json
from medseg.training import version_store
from medseg.training.registry import ModelRegistry


def make_run(folder: Path, content: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(content)
    write_json(folder / "config.json", {"method": "caml", "labels": {"atrium": 1}, "config": {"width": 16}})
    write_json(folder / "metrics.json", {"seconds": 12.5})
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to create its tables; once is enough."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    """A registry's folder with a path that holds a space, and an MLflow database without entries."""
    folder = tmp_path / "my models"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    return folder


def mlflow_of(root: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")


def alias_of(root: Path, name: str) -> str | None:
    """Our number of the version that MLflow's alias points to."""
    client = mlflow_of(root)
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases["champion"]).tags["medseg_version"] if aliases else None


def test_published_version_holds_the_run_and_is_not_yet_champion(root: Path, tmp_path: Path) -> None:
    registry = ModelRegistry(root, "heart")

    number = registry.publish("caml", make_run(tmp_path / "run", "weights"), {"quality": 0.5}, "a note")

    (version,) = registry.versions("caml")
    assert (number, version.number, version.note, version.champion) == (1, 1, "a note", False)
    assert version.folder == root / "heart" / "caml" / "versions" / "1"
    assert (version.folder / "model.safetensors").read_text() == "weights"
    assert version.metrics == {"quality": 0.5, "training": {"seconds": 12.5}}
    assert registry.champion("caml") is None


def test_mlflow_holds_parameters_metrics_versions_and_alias(root: Path, tmp_path: Path) -> None:
    registry = ModelRegistry(root, "heart")
    metrics = {"quality": 0.5, "validation": {"mean": {"dice": 0.5}, "cases": {"la_1": {"dice": 0.5}}}}
    registry.promote("caml", registry.publish("caml", make_run(tmp_path / "run"), metrics))

    client = mlflow_of(root)
    (entry,) = client.search_model_versions("name = 'heart.caml'")
    run = client.get_run(entry.run_id)
    assert run.data.params["config.width"] == "16"
    assert run.data.metrics == {"quality": 0.5, "validation.mean.dice": 0.5, "training.seconds": 12.5}
    assert run.info.status == "FINISHED"
    assert alias_of(root, "heart.caml") == "1"


def test_rollback_moves_pointer_and_alias_back(root: Path, tmp_path: Path) -> None:
    registry = ModelRegistry(root)
    for content in "ab":
        registry.promote("caml", registry.publish("caml", make_run(tmp_path / content, content), {}))
    assert alias_of(root, "caml") == "2"

    version = registry.rollback("caml", 1)

    assert version.number == 1
    assert version.champion
    assert [v.champion for v in registry.versions()] == [True, False]
    assert json.loads((root / "caml" / "champion.json").read_text())["version"] == 1
    assert alias_of(root, "caml") == "1"


def test_unknown_version_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models", tracking_uri="off")
    registry.publish("caml", make_run(tmp_path / "run"), {})

    with pytest.raises(NotFoundError, match="caml has no version 7; versions kept: 1"):
        registry.rollback("caml", 7)


def test_pruning_keeps_the_newest_and_the_champion_and_numbers_are_not_reused(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models", tracking_uri="off", keep=2)
    for content in "abcde":
        number = registry.publish("caml", make_run(tmp_path / content, content), {})
        if number == 2:
            registry.promote("caml", 2)

    assert [v.number for v in registry.versions("caml")] == [2, 4, 5]
    store = registry._store("caml")
    for number in (4, 5):
        store.path(number).rename(tmp_path / f"gone{number}")
    assert registry.publish("caml", make_run(tmp_path / "f", "f"), {}) == 6


def test_the_same_model_is_published_once(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models", tracking_uri="off")
    run = make_run(tmp_path / "run")

    numbers = [registry.publish("caml", run, {"quality": quality}) for quality in (0.1, 0.2)]

    assert numbers == [1, 1]
    assert registry.version("caml", 1).metrics["quality"] == 0.2


def test_promoting_over_an_unexpected_champion_conflicts(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models", tracking_uri="off")
    for content in "ab":
        registry.publish("caml", make_run(tmp_path / content, content), {})
    registry.promote("caml", 1, expected=None)

    with pytest.raises(ConflictError, match="the champion of caml is version 1, not None"):
        registry.promote("caml", 2, expected=None)
    assert registry.champion("caml").number == 1


def test_run_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no model\.safetensors"):
        ModelRegistry(tmp_path / "models", tracking_uri="off").publish("caml", tmp_path, {})


@pytest.mark.parametrize("name", ["a/b", "a:b", "../x", "", ".hidden"])
def test_names_that_cannot_name_models_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MedsegError, match="cannot name a model"):
        ModelRegistry(tmp_path, tracking_uri="off").versions(name)


def test_values_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models", tracking_uri="off")
    registry.reject("caml", make_run(tmp_path / "run"), {"quality": float("nan"), "list": [float("inf"), 1.0]}, "NaN")

    (rejection,) = registry.rejections("caml")
    assert rejection["metrics"] == {"quality": None, "list": [None, 1.0]}
    assert registry.versions("caml") == []


def test_rejected_candidate_is_a_tagged_run_and_no_version(root: Path, tmp_path: Path) -> None:
    ModelRegistry(root, "heart").reject("caml", make_run(tmp_path / "run"), {"quality": 0.25}, "not better")

    client = mlflow_of(root)
    assert client.search_model_versions("name = 'heart.caml'") == []
    experiment = client.get_experiment_by_name("heart.caml").experiment_id
    (run,) = client.search_runs([experiment], "tags.rejected LIKE '%'")
    assert run.data.metrics["quality"] == 0.25
    assert run.data.tags["note"] == "not better"


def test_unreachable_mlflow_warns_and_the_next_write_catches_up(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    offline = ModelRegistry(root, tracking_uri="http://127.0.0.1:9")  # the discard port: nothing listens
    offline.promote("caml", offline.publish("caml", make_run(tmp_path / "a", "a"), {}))
    assert offline.champion("caml").number == 1
    assert "MLflow at http://127.0.0.1:9 is behind for caml" in caplog.text

    online = ModelRegistry(root)
    online.publish("caml", make_run(tmp_path / "b", "b"), {})

    found = mlflow_of(root).search_model_versions("name = 'caml'")
    assert sorted(entry.tags["medseg_version"] for entry in found) == ["1", "2"]
    assert alias_of(root, "caml") == "1"


def test_damaged_mlflow_database_does_not_stop_a_publish(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "mlflow.db").write_bytes(b"no database" * 1000)
    registry = ModelRegistry(root)
    registry.promote("caml", registry.publish("caml", make_run(tmp_path / "run"), {}))

    assert registry.champion("caml").number == 1
    assert "is behind for caml" in caplog.text


def test_mlflow_run_that_was_cut_short_is_completed(root: Path, tmp_path: Path) -> None:
    client = mlflow_of(root)
    experiment = client.create_experiment("caml")
    unfinished = client.create_run(experiment, tags={"medseg_version": "1"})

    ModelRegistry(root).publish("caml", make_run(tmp_path / "run"), {"quality": 0.5})

    (entry,) = client.search_model_versions("name = 'caml'")
    assert entry.run_id == unfinished.info.run_id
    assert client.get_run(entry.run_id).data.metrics["quality"] == 0.5
    assert len(client.search_runs([experiment])) == 1


KILL_AT = """
import os, sys
from pathlib import Path
from medseg.training import version_store
from medseg.training.registry import ModelRegistry

step, root, run = sys.argv[1:]
die = lambda *args, **kwargs: os._exit(7)
if step == "before_copy":
    version_store._copy = die
elif step == "between_files":
    copy = version_store._copy
    version_store._copy = lambda source, target: copy(source, target) if source.name.endswith("tensors") else die()
elif step == "before_rename":
    Path.rename = die
elif step == "after_rename":
    version_store._sync_folder = die
elif step == "before_mlflow":
    ModelRegistry.reconcile = die
elif step == "before_pointer":
    version_store.VersionStore.point_to = die
registry = ModelRegistry(Path(root), tracking_uri="off")
registry.promote("caml", registry.publish("caml", Path(run), {"quality": 0.9}))
"""


@pytest.mark.parametrize(
    "step", ["before_copy", "between_files", "before_rename", "after_rename", "before_mlflow", "before_pointer"]
)
def test_writer_that_dies_leaves_the_champion_and_the_next_publish_works(tmp_path: Path, step: str) -> None:
    root = tmp_path / "models"
    registry = ModelRegistry(root, tracking_uri="off")
    registry.promote("caml", registry.publish("caml", make_run(tmp_path / "old", "old"), {}))

    killed = subprocess.run([sys.executable, "-c", KILL_AT, step, root, make_run(tmp_path / "new", "new")], check=False)

    assert killed.returncode == 7
    assert registry.champion("caml").number == 1
    assert (registry.champion("caml").folder / "model.safetensors").read_text() == "old"
    for version in registry.versions("caml"):
        assert sorted(path.name for path in version.folder.iterdir()) == [
            "config.json",
            "metrics.json",
            "model.safetensors",
            "version.json",
        ]

    number = registry.publish("caml", tmp_path / "new", {"quality": 0.9})
    registry.promote("caml", number)
    assert (registry.champion("caml").folder / "model.safetensors").read_text() == "new"
    assert len(registry.versions("caml")) == 2
    assert list(registry._store("caml").versions.glob(".*")) == []


def _publish_many(root: Path, runs: list[Path]) -> None:
    registry = ModelRegistry(root, tracking_uri="off")
    for run in runs:
        registry.promote("caml", registry.publish("caml", run, {}))


def test_concurrent_publishers_get_different_numbers(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{i}", f"content {i}") for i in range(8)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_publish_many, args=(tmp_path / "models", runs[i::2])) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    versions = ModelRegistry(tmp_path / "models", tracking_uri="off").versions("caml")
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [version.number for version in versions] == list(range(1, 9))
    contents = {(version.folder / "model.safetensors").read_text() for version in versions}
    assert contents == {f"content {i}" for i in range(8)}
    assert sum(version.champion for version in versions) == 1


def test_reading_does_not_import_mlflow(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "models", tracking_uri="off")
    registry.promote("caml", registry.publish("caml", make_run(tmp_path / "run"), {}))
    script = (
        "import sys; from pathlib import Path; from medseg.training.registry import ModelRegistry\n"
        f"r = ModelRegistry(Path({str(tmp_path / 'models')!r})); print(r.champion('caml').number, len(r.versions()))\n"
        "print('mlflow' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["1", "1", "False"]


@pytest.mark.parametrize("first", ["", "import mlflow\n"])
def test_mlflow_sends_no_usage_data(root: Path, tmp_path: Path, first: str) -> None:
    script = (
        f"{first}import sys; from pathlib import Path; from medseg.training.registry import ModelRegistry\n"
        "ModelRegistry(Path(sys.argv[1])).publish('caml', Path(sys.argv[2]), {})\n"
        "from mlflow.telemetry.client import get_telemetry_client; print(get_telemetry_client())"
    )
    testing = ("CI", "PYTEST", "GITHUB", "TRACKING")  # MLflow is also silent where it sees that it is tested
    environment = {key: value for key, value in os.environ.items() if not any(word in key for word in testing)}

    arguments = [sys.executable, "-c", script, root, make_run(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)

    assert done.stdout.strip() == "None"
    assert "INFO" not in done.stderr


def test_champion_without_files_is_none_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = ModelRegistry(tmp_path / "models", tracking_uri="off")
    registry.promote("caml", registry.publish("caml", make_run(tmp_path / "run"), {}))
    (registry.champion("caml").folder / version_store.WEIGHTS).unlink()

    assert registry.champion("caml") is None
    assert "champion 1 of caml has lost its files; roll back" in caplog.text

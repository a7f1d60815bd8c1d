"""The base of all trainers: a state that comes back, the best score, and when a checkpoint is due."""

from __future__ import annotations

import math

import pytest
import torch

from train.common.options import CommonOptions
from train.common.run_directory import RunDirectory
from train.common.trainer import BaseTrainer, cosine_schedule, val_notes


class Trainer(BaseTrainer):
    """Adds random numbers, one a step."""

    PROGRESS = ("step",)
    STEP = "step {}"

    def __init__(self, minutes: float = 0.0, metric: str = "bleu") -> None:
        super().__init__(minutes, metric=metric)
        self.step, self.sum, self.generator = 0, torch.nn.Linear(1, 1), torch.Generator().manual_seed(0)
        self.stateful = {"sum": self.sum, "generator": self.generator}

    def run(self, directory: RunDirectory) -> None:
        with self.timed(), torch.no_grad():
            self.step += 1
            self.sum.bias += torch.rand(1, generator=self.generator)
        self.improved(0.25, self.step)
        self.save(directory)


def test_a_resumed_run_goes_on_where_the_checkpoint_was(tmp_path, capsys):
    straight = Trainer()
    directory = RunDirectory(tmp_path / "run", CommonOptions(), resume=False)
    straight.run(directory)
    directory.close()
    resumed = Trainer()
    resumed.complete(RunDirectory(tmp_path / "run", CommonOptions(), resume=True), resume=True)
    straight.run(RunDirectory(tmp_path / "straight", CommonOptions(), resume=False))
    assert resumed.step == 2
    assert torch.equal(resumed.sum.bias, straight.sum.bias)
    assert 0 < resumed.seconds < 60
    assert capsys.readouterr().out == f"best val BLEU-4 0.2500 after step 1; weights in {tmp_path / 'run'}\n"


def test_only_a_higher_score_is_better():
    trainer = Trainer()
    better = [trainer.improved(score, step) for step, score in enumerate([0.0, 0.0, 0.5, math.nan, 0.4])]
    assert better == [True, False, True, False, False]
    assert (trainer.best, trainer.best_step) == (0.5, 2)


def test_a_lower_error_rate_is_better(tmp_path, capsys):
    trainer = Trainer(metric="wer")
    better = [trainer.improved(score, step) for step, score in enumerate([1.5, 1.5, 0.5, math.nan, 0.75])]
    assert better == [True, False, True, False, False]
    assert (trainer.best, trainer.best_step) == (0.5, 2)
    resumed = Trainer(metric="wer")
    resumed.load(trainer.state())
    assert not resumed.improved(0.6, 3)
    resumed.complete(RunDirectory(tmp_path / "run", CommonOptions(), resume=False))
    assert capsys.readouterr().out.startswith("best val wer 0.2500 after step 1; weights in")


@pytest.mark.parametrize(("minutes", "due"), [(-1.0, True), (60.0, False)])
def test_a_checkpoint_is_due_after_some_minutes(minutes, due):
    assert Trainer(minutes).checkpoint_due() is due


def test_the_schedule_and_the_notes():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine_schedule(optimiser, 2)
    rates = []
    for _ in range(4):
        rates += schedule.get_last_lr()
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx([2.0, 1.0, 0.0, 0.0])
    assert val_notes({"val/bleu4": 0.12345, "charts/reward": 1.0}) == {"val/bleu4": 0.1235}

"""Several processes: the gradient of one, the loss curve of one, and one that dies ends them all."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, multiprocessing

from tests import small_shapes
from tests.conftest import ROOT
from train.captioner import trainer as captioner
from train.captioner.batches import BatchShare, CaptionBatch
from train.captioner.options import Options as CaptionerOptions
from train.captioner.options import resolve_defaults as resolve_captioner
from train.common.distributed import Processes, join_processes
from train.reinforce import trainer as reinforce
from train.reinforce.options import Options as ReinforceOptions
from train.reinforce.options import resolve_defaults as resolve_reinforce
from train.reinforce.trajectories import Trajectories

CAPTIONER = f"train.captioner --dataset {small_shapes.NAME} --no-dropout --feature-dropout 0 --batch-images 8"
CAPTIONER += " --tile-steps 5 --threads 1 --precision float32 --limit 48 --epochs 2"
WORDS_TOO = {"start": "hard", "train_decoder": True, "precision": "float32"}
REINFORCE = "train.reinforce --images 5 --rollouts 3 --updates 6 --validate-every 3 --limit 24 --threads 1"


def torchrun(count, command, *more):
    """Start processes that train together, in a session of their own, so that all can be killed."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
    words += [*command.split(), *map(str, more)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=ROOT, env=env, start_new_session=True, **pipes)


def children(process):
    return [int(child) for child in subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()]


def kill_once_saved(run, process):
    """SIGKILL to torchrun and to all that it started, each of which leads a session, once there is a checkpoint."""
    wait_for(run / "checkpoint.pt", process)
    for group in (process.pid, *children(process)):
        os.killpg(group, signal.SIGKILL)
    process.communicate(timeout=60)


def trained(count, command, *more):
    process = torchrun(count, command, *more)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Half(Processes):
    """One of two processes that run one after the other: the sums over both are known before."""

    def __init__(self, rank, sums):
        self.rank, self.world_size, self._sums = rank, 2, iter(sums)

    def sum(self, value):
        return next(self._sums)

    def gather(self, value):
        return next(self._sums)

    def sum_gradients(self, parameters):
        pass


class Recorded(Half):
    """A first run of one of them, which records its terms of the sums."""

    def __init__(self, rank):
        super().__init__(rank, [])
        self.terms = []

    def sum(self, value):
        self.terms.append(value.detach().clone())
        return value.detach()

    gather = sum


def halves_gradient(gradient_of):
    """The sum of two processes' gradients: run once to record the terms of their sums, and once with the sums."""
    processes = [Recorded(rank) for rank in (0, 1)]
    for process in processes:
        gradient_of(process)
    pairs = zip(*(process.terms for process in processes), strict=True)
    sums = [torch.cat(pair) if pair[0].dim() else pair[0] + pair[1] for pair in pairs]
    return gradient_of(Half(0, sums)) + gradient_of(Half(1, sums))


def flat(parameters):
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


def captioner_trainer(size, **options):
    shared = {"dataset": small_shapes.NAME, "batch_images": size, "limit": 2 * size, "tile_steps": 1, "dropout": False}
    trainer = captioner.Trainer(resolve_captioner(CaptionerOptions(**shared, epochs=1, feature_dropout=0.0, **options)))
    trainer.open()
    return trainer


def reinforce_batch(**options):
    """A trainer, the rows of a batch, and captions of them."""
    resolved = resolve_reinforce(
        ReinforceOptions(images=6, rollouts=3, limit=24, updates=10, feature_dropout=0.0, **options)
    )
    trainer = reinforce.Trainer(resolved)
    rows = trainer.rows[[3, 1, 4, 15, 9, 2]]
    return trainer, rows, trainer._sample(rows, np.random.default_rng(0))


def learned(trainer, rows, sample, together):
    """The gradient that is left when a process has learned from its share of the captions."""
    trainer.processes, trainer.update = together, 0
    images = together.batch_slice(len(rows))
    share = Trajectories(*(values[:, images] for values in sample))
    trainer._learn(None, rows[images], share, np.random.default_rng(0))
    return flat([parameter for group in trainer.optimiser.param_groups for parameter in group["params"]])


@pytest.mark.parametrize("size", [8, 6, 1])  # evenly, so that halves are read otherwise than the whole, and too few
@pytest.mark.parametrize(
    "options",
    [
        {"attention": "soft"},
        {"attention": "soft", "guidance": 0.0, "doubly_stochastic": 0.5},
        {"attention": "soft", "doubly_stochastic": 0.5},
        {"attention": "none"},
    ],
    ids=["guided", "soft", "guided-doubly-stochastic", "none"],
)
def test_the_gradient_of_two_halves_is_that_of_the_whole(options, size):
    trainer = captioner_trainer(size, **options)
    trainer.model.train()
    trainer.model.captioner.eval()
    batch = next(trainer._rest_of_epoch())

    def gradient(together):
        trainer.model.zero_grad()
        trainer.objective.loss(batch, together, 1.0).backward()
        return flat(trainer.model.parameters())

    expected = gradient(Processes())
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(halves_gradient(gradient), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"baseline": "value", "reward_to_go": True},
        {
            "start": "hard",
            "train_decoder": True,
            "baseline": "self-critical",
            "precision": "float32",
            "normalise": False,
        },
        {"start": "hard", "train_decoder": True, "precision": "float32", "reward": "corpus-bleu"},
    ],
    ids=["plain", "value", "self-critical", "corpus-bleu"],
)
def test_reinforce_learns_from_two_halves_what_it_learns_from_the_whole(options, monkeypatch):
    trainer, rows, sample = reinforce_batch(**options)
    monkeypatch.setattr(trainer.optimiser, "step", lambda: None)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, most: None)

    def gradient(together):
        return learned(trainer, rows, sample, together)

    expected = gradient(Processes())
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(halves_gradient(gradient), expected, rtol=1e-3, atol=1e-6)


def take_steps(rank, port, folder):
    """One of two real processes: the gradient of a step on its own, and of one that it takes with the other."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is the parent's, as under torchrun
    torch.nn.utils.clip_grad_norm_ = lambda parameters, most: torch.zeros(())  # would hide a gradient that is too large
    torch.optim.Adam.step = lambda self: None  # both gradients are those of the first weights
    torch.manual_seed(0)
    words = captioner_trainer(6, attention="soft", start="shapes", doubly_stochastic=0.5, precision="float32")
    batch = next(words._rest_of_epoch())
    glimpses, rows, sample = reinforce_batch(baseline="value", reward_to_go=True)

    def gradients(together):
        words.processes = together
        words.update(batch)
        return {"captioner": flat(words.model.parameters()), "reinforce": learned(glimpses, rows, sample, together)}

    alone = gradients(Processes())
    words.schedule.last_epoch = 0  # so that it is guided as much as before
    with join_processes(words.options) as (together, _):
        torch.save((alone, gradients(together)), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_add_their_gradients(tmp_path):
    store = distributed.TCPStore("localhost", 0, is_master=True)
    multiprocessing.spawn(take_steps, (store.port, tmp_path), nprocs=2)
    for rank in range(2):
        alone, together = torch.load(tmp_path / f"{rank}.pt")
        assert all(gradient.abs().max() > 1e-2 for gradient in alone.values())
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The run of one process."""
    run = tmp_path_factory.mktemp("parallel") / "single"
    trained(1, CAPTIONER, "--run-dir", run)
    return run


@pytest.mark.slow
def test_two_processes_train_a_captioner_as_one_does(tmp_path, single):
    two = tmp_path / "two"
    output = trained(2, CAPTIONER, "--run-dir", two)
    assert len(re.findall("best val BLEU-4", output)) == 1
    expected, actual = ([float(row["losses/train"]) for row in rows(run)] for run in (single, two))
    np.testing.assert_allclose(actual, expected, rtol=1e-3)
    for name in ("attention.safetensors", "captioner.safetensors"):
        expected, actual = (load_file(run / name) for run in (single, two))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    expected, actual = (left_by(run)["model"] for run in (single, two))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    names = ["attention.safetensors", "captioner.safetensors", "checkpoint.pt", "config.json", "metrics.csv"]
    assert sorted(path.name for path in two.iterdir() if not path.name.startswith((".", "events"))) == names


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, single, before, after):
    run = tmp_path / "run"
    kill_once_saved(run, torchrun(before, CAPTIONER, "--run-dir", run, "--checkpoint-minutes", 0))
    assert not (run / "metrics.csv").exists() or len(rows(run)) < 2  # there is something left to do
    trained(after, CAPTIONER, "--run-dir", run, "--resume")
    expected, actual = ([float(row["losses/train"]) for row in rows(folder)] for folder in (single, run))
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def left_by(run):
    """What a run ended with, but for the clock."""
    state = torch.load(run / "checkpoint.pt")
    del state["randomness"], state["progress"]["seconds"]
    return state


DROPPING = CAPTIONER.replace("--no-dropout --feature-dropout 0", "--feature-dropout 0.2")
LONG_REINFORCE = REINFORCE.replace("--updates 6 --validate-every 3", "--updates 60 --validate-every 30")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        DROPPING,
        LONG_REINFORCE + " --feature-dropout 0.2",
        LONG_REINFORCE + " --from hard --train-decoder --baseline self-critical --anchor 0.1 --reward corpus-bleu",
    ],
    ids=["captioner", "reinforce", "reinforce-words"],
)
def test_two_processes_that_are_resumed_end_as_if_left_alone(tmp_path, command):
    """To the bit, draws of dropout included."""
    alone, run = tmp_path / "alone", tmp_path / "run"
    trained(2, command, "--run-dir", alone)
    kill_once_saved(run, torchrun(2, command, "--run-dir", run, "--checkpoint-minutes", 0))
    last = rows(alone)[-1]["step"]
    assert not (run / "metrics.csv").exists() or rows(run)[-1]["step"] != last  # there is something left to do
    trained(2, command, "--run-dir", run, "--resume")
    torch.testing.assert_close(left_by(run), left_by(alone), rtol=0, atol=0)
    for weights in alone.glob("*.safetensors"):
        assert (run / weights.name).read_bytes() == weights.read_bytes()


def wait_for(path, process, seconds=120):
    start = time.monotonic()
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() - start < seconds
        time.sleep(0.05)


@pytest.mark.slow
def test_reinforce_runs_with_two_processes_of_unequal_shares(tmp_path):
    output = trained(2, REINFORCE, "--run-dir", tmp_path / "run")
    assert len(re.findall("best val BLEU-4", output)) == 1
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [0, 3, 6]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_reinforce_goes_on_with_another_number_of_processes(tmp_path, before, after):
    run = tmp_path / "run"
    kill_once_saved(run, torchrun(before, LONG_REINFORCE, "--run-dir", run, "--checkpoint-minutes", 0))
    assert [int(row["step"]) for row in rows(run)] in ([0], [0, 30])
    trained(after, LONG_REINFORCE, "--run-dir", run, "--resume")
    assert [int(row["step"]) for row in rows(run)] == [0, 30, 60]
    assert all(np.isfinite(float(row["val/bleu4"])) for row in rows(run))


@pytest.mark.slow
def test_one_that_dies_ends_all(tmp_path):
    run = tmp_path / "run"
    process = torchrun(2, CAPTIONER.replace("--epochs 2", "--epochs 500"), "--run-dir", run, "--patience", 500)
    wait_for(run / "metrics.csv", process)
    os.kill(children(process)[-1], signal.SIGKILL)
    process.communicate(timeout=90)
    assert process.returncode != 0


class Three(Processes):
    """The last of three processes."""

    def __init__(self):
        self.rank, self.world_size = 2, 3


def test_a_batch_is_shared_evenly_and_one_that_is_too_small_for_reinforce_is_refused():
    assert Three().batch_slice(8) == slice(5, 8)
    assert Three().batch_slice(2) == slice(1, 2)
    assert Processes().batch_slice(5) == slice(0, 5)
    with pytest.raises(ValueError, match="a batch of 2 images cannot be shared by 3 processes"):
        reinforce.Trainer(resolve_reinforce(ReinforceOptions(images=2, limit=8)), Three())


def test_a_share_of_a_batch_knows_its_fraction_and_an_empty_one_counts_nothing():
    lengths = torch.tensor([[3, 2], [4, 1], [2, 2]])
    batch = CaptionBatch(torch.tensor([7, 8, 9]), torch.zeros(3, 2, 5, dtype=torch.int64), lengths)
    full = BatchShare(batch, torch.arange(3), Processes())
    assert full.captions is batch
    assert float(full.words) == float(full.images) == 1.0
    second = Recorded(1)  # of two: the third image
    share = BatchShare(batch, torch.tensor([0, 1]), second)
    assert share.captions.rows.tolist() == [9]
    assert [float(term) for term in second.terms] == [0.0, 0.0]
    second = Recorded(1)
    share = BatchShare(batch, torch.tensor([0, 2]), second)
    assert share.captions.rows.tolist() == [9]
    assert [float(term) for term in second.terms] == [4.0, 1.0]
    assert share.positions_in(BatchShare(batch, torch.arange(3), Recorded(1))).tolist() == [0]

"""Train a captioner by cross-entropy: with soft attention, semi-sampled hard attention, fixed locations, or none.

For a captioner that reads the glimpses of any agent, train soft attention first, then semi-sampling from there
(SAT §4.1). A decoder trained hard from scratch learns to ignore the glimpse.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from agents.attention import save_attention
from agents.attention_agents import HardAttentionAgent, SoftAttentionAgent
from agents.base import Agent
from agents.scripted import OracleAgent, RandomAgent, UniformAgent
from glimpse_env.datasets import GroundedDataset, LabelledDataset, MaskedDataset, find_world, make_dataset
from glimpse_env.features.build import finish_features, open_features
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import save_captioner
from glimpse_env.models.encoders.backbones import TileCNN
from glimpse_env.rollout.decode import decode
from train.captioner.batches import CaptionBatch, CaptionBatches
from train.captioner.encoder_pretraining import pretrain_tiles
from train.captioner.inputs import TrainingInputs
from train.captioner.model import CaptioningModel, ema_update, load_model, new_model
from train.captioner.objectives import make_objective
from train.captioner.options import Options, resolve_defaults
from train.common.distributed import Processes, join_processes
from train.common.options import autocast, prepare
from train.common.run_directory import RunDirectory
from train.common.trainer import BaseTrainer, cosine_schedule, val_notes
from train.evaluate.scoring import Scores, score, world_metrics


class Trainer(BaseTrainer):
    """One run of cross-entropy training, resumable at any batch.

    Args:
        options: resolved options.
        resumed: whether ``load`` will bring the weights, so that no CNN need be pretrained.
        processes: those that train together; by default this one alone.
    """

    PROGRESS = ("epoch", "batch", "tokens", "loss")
    STEP = "epoch {}"

    def __init__(self, options: Options, resumed: bool = False, processes: Processes | None = None) -> None:
        world = find_world(options.dataset)
        super().__init__(options.checkpoint_minutes, processes, world.metrics[0])
        self.options = options
        self.train_set = make_dataset(options.dataset, "train", options.data_root)
        self.val_set = make_dataset(options.dataset, "val", options.data_root)
        if options.mirror and isinstance(self.train_set, MaskedDataset):
            raise ValueError(f"images of {world.name} differ in their locations; leave out --mirror")
        self.model = self._make_model(pretrain=not (options.start or resumed))
        references = self.train_set.references
        if options.in_order and isinstance(self.train_set, GroundedDataset):
            references = self.train_set.ordered_references
        rows = range(len(self.train_set))[: options.limit]
        vocabulary, images = self.model.captioner.vocabulary, options.batch_images or 1
        self.batches = CaptionBatches(vocabulary, rows, references, images, max_length=world.longest)
        self.optimiser = self._make_optimiser()
        self.total = (options.epochs or 1) * len(self.batches)
        self.schedule = cosine_schedule(self.optimiser, self.total)
        self.averaged = AveragedModel(self.model, avg_fn=ema_update(options.average))
        self.stateful = {"model": self.model, "averaged": self.averaged}
        self.stateful |= {"optimiser": self.optimiser, "schedule": self.schedule}
        self.epoch = self.batch = self.tokens = 0
        self.loss = 0.0

    def _make_model(self, pretrain: bool) -> CaptioningModel:
        """The model in its starting weights; ``requires_grad`` says what is trained."""
        options, attends = self.options, self.options.attention != "none"
        if options.start is not None:
            model = load_model(options.start, attends, self.train_set)
        else:
            model = new_model(self.train_set, options.encoder or "tile", options.min_count or 1, attends)
        if options.tune_cnn and model.captioner.encoder.config.weights != "tuned":
            model.captioner.encoder = model.captioner.encoder.tunable()
        model.to(options.device)
        network = model.captioner.encoder.backbone
        if pretrain and isinstance(network, TileCNN) and isinstance(self.train_set, LabelledDataset):
            pretrain_tiles(network, self.train_set, options.tile_steps, np.random.default_rng(options.seed))
        if network is not None and not options.tune_cnn:
            network.requires_grad_(False)
        if options.freeze_captioner:
            model.captioner.requires_grad_(False)
        return model

    def _make_optimiser(self) -> torch.optim.Adam:
        """Adam over what is trained; the CNN's part learns at ``tune_cnn`` times the rate."""
        cnn = {id(parameter) for parameter in (self.model.captioner.encoder.backbone or nn.Identity()).parameters()}
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                groups[id(parameter) in cnn].append(parameter)
        rate = self.options.learning_rate or 0.0
        rates = (rate, rate * self.options.tune_cnn)
        return torch.optim.Adam([{"params": group, "lr": rate} for group, rate in zip(groups, rates, strict=True)])

    def open(self) -> None:
        """Open the tables of features, once the CNN has its final weights."""
        self.inputs = TrainingInputs(self.options, self.train_set, self.model)
        open_features(self.val_set, self.model.captioner.encoder.frozen_part())  # by all processes; one of them scores
        self.objective = make_objective(self.options, self.model, self.inputs)

    def run(self, directory: RunDirectory) -> None:
        """Train to the last epoch, or until val stops improving."""
        options = self.options
        self.processes.broadcast_weights(self.model)
        self.open()
        last = min(options.epochs or 0, options.stop_after or options.epochs or 0)
        while self.epoch < last and self.epoch - self.best_step < max(options.patience, 1):
            self._run_epoch(directory)
            self._finish_epoch(directory)
            self.save(directory)

    def _run_epoch(self, directory: RunDirectory) -> None:
        title, quiet = f"epoch {self.epoch + 1}", not self.processes.is_main
        with tqdm(total=len(self.batches), initial=self.batch, desc=title, unit="batch", disable=quiet) as bar:
            for batch in self._rest_of_epoch():
                with self.timed():
                    self.loss += self.update(batch)
                    self.tokens += int(batch.lengths.sum())
                self.batch += 1
                bar.update()
                bar.set_postfix(loss=f"{self.loss / self.batch:.3f}", tokens_s=f"{self.tokens / self.seconds:.0f}")
                if self.checkpoint_due():
                    self.save(directory)

    def _rest_of_epoch(self) -> Iterator[CaptionBatch]:
        rng = np.random.default_rng([self.options.seed, self.epoch])  # the order is a function of seed and epoch
        return islice(self.batches.epoch(rng), self.batch, None)

    def update(self, batch: CaptionBatch) -> float:
        """One step of the optimiser, for which every process computes its share of the batch; returns the loss.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are unchanged.
        """
        self.processes.seed_rank(self.options.seed, self.epoch, self.batch)
        self.model.train()
        self.model.captioner.train(self.options.dropout)
        device = self.options.device
        with autocast(self.options.precision, device):
            remaining = max(0.0, 1 - self.schedule.last_epoch / self.total)
            moved = CaptionBatch(*(tensor.to(device) for tensor in batch))
            loss = self.objective.loss(moved, self.processes, remaining)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.sum_gradients(self.model.parameters())
        length = nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        if not torch.isfinite(length):
            raise FloatingPointError(
                f"the gradient of batch {self.batch + 1} of epoch {self.epoch + 1} has length {float(length)}; the "
                "last good checkpoint stays as it is; start anew with a lower --learning-rate"
            )
        self.optimiser.step()
        self.schedule.step()
        self.averaged.update_parameters(self.model)
        return float(self.processes.sum(loss))

    def _finish_epoch(self, directory: RunDirectory) -> None:
        """Score the averaged weights on val, log the epoch, and save the weights if they are the best."""
        is_main = self.processes.is_main
        scores = self.validate() if is_main else {}
        values = ({"bleu": agent.bleu[3], **others}[self.metric] for agent, others in scores.values())
        best = self.processes.broadcast(next(values, 0.0))
        self.epoch += 1
        metrics = {"losses/train": self.loss / max(self.batch, 1)}
        metrics["charts/tokens_per_second"] = self.tokens / max(self.seconds, 1e-9)
        for name, (agent, others) in scores.items():
            metrics |= {f"val/{name}/bleu{order}": value for order, value in enumerate(agent.bleu, 1)}
            metrics[f"val/{name}/length_ratio"] = agent.length_ratio
            metrics |= {f"val/{name}/{metric}": value for metric, value in others.items()}
        directory.log(self.epoch, metrics)
        if is_main:
            agents = [
                " ".join([name, *(f"{100 * b:.1f}" for b in agent.bleu), *(f"{m} {v:.4f}" for m, v in others.items())])
                for name, (agent, others) in scores.items()
            ]
            tqdm.write(f"epoch {self.epoch}: loss {metrics['losses/train']:.3f}; val BLEU-1..4: {', '.join(agents)}")
        if self.improved(best, self.epoch) and is_main:
            self.export(directory.path, metrics)
        self.batch = self.tokens = 0
        self.seconds = self.loss = 0.0

    def export(self, folder: Path, metrics: dict[str, float]) -> None:
        """Write the averaged weights as a captioner and, where there is one, an attention file."""
        model, options = self.averaged_model, self.options
        trained_with = {"attention": options.attention, "seed": options.seed, "epoch": self.epoch}
        notes = {"trained_with": trained_with, "val": val_notes(metrics)}
        save_captioner(model.captioner, folder / "captioner.safetensors", notes)
        if model.attention is not None:
            save_attention(model.attention, folder / "attention.safetensors", notes)

    def validate(self) -> dict[str, tuple[Scores, dict[str, float]]]:
        """Scores of the averaged weights on val, and the world's other metrics, by agent; first the one in training."""
        model, options = self.averaged_model, self.options
        encoder = model.captioner.encoder
        rows = range(len(self.val_set))[: options.limit]
        features = finish_features(open_features(self.val_set, encoder.frozen_part()), encoder, rows)
        references = [self.val_set.references(row) for row in rows]
        longest = find_world(options.dataset).longest
        scores = {}
        for name, agent in self._agents(model, features).items():
            decoded = decode(model.captioner, features, agent, rows, max_caption_length=longest, device=options.device)
            scores[name] = score(decoded, references), world_metrics(options.dataset, decoded, references)
        return scores

    @property
    def averaged_model(self) -> CaptioningModel:
        """The model with the moving average of the weights."""
        return cast(CaptioningModel, self.averaged.module)

    def _agents(self, model: CaptioningModel, features: FeatureTable) -> dict[str, Agent]:
        if model.attention is None:
            return {"no-attention": UniformAgent(features.shape[1])}
        random = RandomAgent(features.shape[1], self.options.seed)
        if self.options.attention == "told":
            return {"oracle": OracleAgent(self.val_set, model.captioner.vocabulary), "random": random}
        soft = SoftAttentionAgent(model.attention, features, self.options.device)
        hard = HardAttentionAgent(model.attention, features, self.options.device)
        if self.options.attention == "soft":
            return {"soft": soft, "hard": hard}
        return {"hard": hard, "soft": soft, "random": random}


def main(options: Options) -> None:
    """Train, from the start or from the last checkpoint."""
    options = resolve_defaults(options)
    with join_processes(options) as (processes, local_options):
        prepare(local_options)
        directory = processes.open_directory(options.run_dir or Path("runs"), options, options.resume)
        trainer = Trainer(local_options, options.resume, processes)
        trainer.complete(directory, options.resume)

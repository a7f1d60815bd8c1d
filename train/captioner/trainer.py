"""Train a captioner by cross-entropy: with soft attention, semi-sampled hard attention, told glimpses, or none.

The way to a captioner that listens to where an agent looks: soft attention first, then semi-sampling from there
(SAT §4.1). A decoder trained hard from scratch learns to ignore the glimpse.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from agents.attention import save_attention
from agents.attention_agents import HardAttentionAgent, SoftAttentionAgent
from agents.base import Agent
from agents.scripted import OracleAgent, RandomAgent, UniformAgent
from glimpse_env.datasets import Shapes, longest_caption, make_dataset
from glimpse_env.features.build import finish_features, open_features
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner, save_captioner
from glimpse_env.models.encoders.backbones import TileCNN
from glimpse_env.rollout.decode import decode
from train.captioner.augmentation import Mirrored, has_sides
from train.captioner.batches import CaptionBatch, CaptionBatches, Part
from train.captioner.encoder_pretraining import pretrain_tiles
from train.captioner.losses import (
    anywhere_at_last,
    doubly_stochastic,
    guidance,
    location_gradient,
    running_mean,
    shares,
    unroll,
)
from train.captioner.model import Student, new_student, trained_student
from train.captioner.options import Options, settle
from train.common.distributed import Processes, processes
from train.common.options import native_bfloat16, prepare
from train.common.run_directory import RunDirectory
from train.evaluate.scoring import Scores, score


class Trainer:
    """One run of cross-entropy training, resumable at any batch.

    Features of the CNN's frozen part are read from a table; the rest of it, the vectors of the locations and with
    ``tune_cnn`` the last stage, is trained with the captions.

    Args:
        options: settled options.
        resumed: whether ``load`` will bring the weights, so that no CNN need be pretrained.
        processes: those that train together; by default this one alone.
    """

    def __init__(self, options: Options, resumed: bool = False, processes: Processes | None = None) -> None:
        self.options = options
        self.processes = processes or Processes()
        self.train_set = make_dataset(options.dataset, "train", options.data_root)
        self.val_set = make_dataset(options.dataset, "val", options.data_root)
        attends = options.attention != "none"
        if options.start is not None:
            self.student = trained_student(options.start, attends, self.train_set)
        else:
            self.student = new_student(self.train_set, options.encoder or "tile", options.min_count or 1, attends)
        encoder = self.student.captioner.encoder
        if options.tune_cnn and encoder.config.weights != "tuned":
            self.student.captioner.encoder = encoder.tunable()
        self.student.to(options.device)
        network = self.student.captioner.encoder.backbone
        if isinstance(network, TileCNN) and isinstance(self.train_set, Shapes) and not (options.start or resumed):
            pretrain_tiles(network, self.train_set, options.tile_steps, np.random.default_rng(options.seed))
        if network is not None and not options.tune_cnn:
            network.requires_grad_(False)
        if options.freeze_captioner:
            self.student.captioner.requires_grad_(False)
        rows = range(len(self.train_set))[: options.limit]
        vocabulary = self.student.captioner.vocabulary
        references = self.train_set.references
        if options.in_order and isinstance(self.train_set, Shapes):
            references = self.train_set.ordered_references
        self.batches = CaptionBatches(
            self.train_set,
            vocabulary,
            rows,
            options.batch_images or 1,
            max_length=longest_caption(options.dataset),
            references=references,
        )
        rate = options.learning_rate or 0.0
        self.optimiser = torch.optim.Adam(
            [
                {"params": list(part), "lr": rate * share}
                for part, share in zip(self._parameters(), (1.0, options.tune_cnn), strict=True)
            ]
        )
        self.total = total = (options.epochs or 1) * len(self.batches)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))
        )
        self.averaged = AveragedModel(self.student, avg_fn=running_mean(options.average))
        auto = options.precision == "auto" and native_bfloat16(options.device)
        self.bfloat16 = auto or options.precision == "bfloat16"
        self.epoch = self.batch = self.tokens = 0
        self.best, self.best_epoch, self.seconds, self.loss = -1.0, 0, 0.0, 0.0

    def _parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What is trained: all but the CNN, and of the CNN what is fine-tuned."""
        cnn = {id(parameter) for parameter in (self.student.captioner.encoder.backbone or nn.Identity()).parameters()}
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return [one for one in trained if id(one) not in cnn], [one for one in trained if id(one) in cnn]

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "student": self.student.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": {name: getattr(self, name) for name in self._PROGRESS},
        }

    _PROGRESS = ("epoch", "batch", "tokens", "best", "best_epoch", "seconds", "loss")

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a ``state()``."""
        self.student.load_state_dict(state["student"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        for name, value in state["progress"].items():
            setattr(self, name, value)

    def open(self) -> None:
        """Open the table of training features, once the CNN has its final weights."""
        frozen = self.student.captioner.encoder.frozen_part()
        self.features = open_features(self.train_set, frozen)
        open_features(self.val_set, frozen)  # now, when all processes can help, rather than when one scores
        if self.options.mirror:
            self.mirrored = open_features(Mirrored(self.train_set), frozen)
            self.may_mirror = np.array([not has_sides(self.train_set, row) for row in range(len(self.train_set))])

    def run(self, directory: RunDirectory) -> None:
        """Train to the last epoch, or until val stops improving."""
        options, first = self.options, self.processes.first
        self.processes.agree(self.student)
        self.open()
        saved = time.monotonic()
        last = min(options.epochs or 0, options.stop_after or options.epochs or 0)
        while self.epoch < last and self.epoch - self.best_epoch < max(options.patience, 1):
            with tqdm(
                total=len(self.batches),
                initial=self.batch,
                desc=f"epoch {self.epoch + 1}",
                unit="batch",
                disable=not first,
            ) as bar:
                for batch in self._rest_of_epoch():
                    began = time.monotonic()
                    self.loss += self.update(batch)
                    self.tokens += int(batch.lengths.sum())
                    self.seconds += time.monotonic() - began
                    self.batch += 1
                    bar.update()
                    bar.set_postfix(loss=f"{self.loss / self.batch:.3f}", tokens_s=f"{self.tokens / self.seconds:.0f}")
                    if time.monotonic() - saved > 60 * options.checkpoint_minutes:
                        directory.save(self.state())
                        saved = time.monotonic()
            self._finish_epoch(directory)
            directory.save(self.state())
            saved = time.monotonic()

    def _rest_of_epoch(self) -> Iterator[CaptionBatch]:
        rng = np.random.default_rng([self.options.seed, self.epoch])  # the order is a function of seed and epoch
        for number, batch in enumerate(self.batches.epoch(rng)):
            if number >= self.batch:
                yield batch

    def update(self, batch: CaptionBatch) -> float:
        """One step of the optimiser, for which every process looks at its share of the batch; returns the loss.

        Raises:
            FloatingPointError: the gradient is not finite; nothing was learned from it.
        """
        self.processes.draw_apart(self.options.seed, self.epoch, self.batch)
        self.student.train()
        self.student.captioner.train(self.options.dropout)
        device = self.options.device
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.bfloat16):
            loss = self._loss(CaptionBatch(*(part.to(device) for part in batch)))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.add_gradients(self.student.parameters())
        length = nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        if not torch.isfinite(length):
            raise FloatingPointError(
                f"the gradient of batch {self.batch + 1} of epoch {self.epoch + 1} has length {float(length)}; the "
                "last good checkpoint stays as it is; start anew with a lower --learning-rate"
            )
        self.optimiser.step()
        self.schedule.step()
        self.averaged.update_parameters(self.student)
        return float(self.processes.sum(loss))

    def _annotations(self, rows: Tensor) -> Tensor:
        wanted = rows.cpu().numpy()
        features = self.features[wanted]
        if self.options.mirror:
            flipped = (torch.rand(len(rows)) < 0.5).numpy() & self.may_mirror[wanted]
            features[flipped] = self.mirrored[wanted[flipped]]
        annotations = self.student.captioner.encoder.finish(torch.from_numpy(features).to(self.options.device).float())
        return nn.functional.dropout(annotations, self.options.feature_dropout or 0.0)

    def _looks(self, batch: CaptionBatch) -> Tensor:
        """Where each word of a batch should be read from, (N, K, T), −1 for nowhere in particular."""
        looks = torch.full_like(batch.tokens[..., 1:], -1)
        vocabulary = self.student.captioner.vocabulary
        if isinstance(self.train_set, Shapes):
            for n, row in enumerate(batch.rows.tolist()):
                for k, length in enumerate(batch.lengths[n].tolist()):
                    words = vocabulary.decode(batch.tokens[n, k, 1 : length + 1].tolist())
                    looks[n, k, :length] = torch.tensor(self.train_set.looks(row, words[:-1]))
        return looks

    def _loss(self, whole: CaptionBatch) -> Tensor:
        """The loss of a batch; of several processes, this one's part of the sum that it is."""
        options, together = self.options, self.processes
        share = options.soft_share if options.attention == "semi" else 0.5
        guided = (options.guidance or 0.0) * max(0.0, 1 - self.schedule.last_epoch / self.total)
        batch = Part(whole, torch.arange(len(whole.rows)), together)
        first, second = (Part(whole, places, together) for places in shares(len(whole.rows), share))
        decoder, attention = self.student.captioner.decoder, self.student.attention
        smoothing, spread = options.label_smoothing or 0.0, options.doubly_stochastic or 0.0
        annotations = self._annotations(batch.captions.rows)
        if options.attention == "none":
            return unroll(decoder, None, annotations, batch.captions, "mean", smoothing).loss * batch.words
        if options.attention == "told":
            looks = anywhere_at_last(self._looks(batch.captions), batch.captions.lengths, annotations.shape[1])
            return unroll(decoder, None, annotations, batch.captions, "told", smoothing, looks).loss * batch.words
        if options.attention == "soft" and not guided:
            soft = unroll(decoder, attention, annotations, batch.captions, "soft", smoothing)
            return soft.loss * batch.words + spread * doubly_stochastic(soft) * batch.images  # SAT eq. 14
        of_second, captions = annotations[second.within(batch)], second.captions
        if options.attention == "soft":
            of_first, looks = annotations[first.within(batch)], self._looks(first.captions)
            soft = unroll(decoder, attention, of_first, first.captions, "soft", smoothing, looks)
            hard = unroll(decoder, attention, of_second, captions, "told", smoothing, self._looks(captions))
            where = 0.5 * guided * (guidance(soft) * first.words + guidance(hard) * second.words)
            regular = spread * doubly_stochastic(soft) * first.images
            return 0.5 * (soft.loss * first.words + hard.loss * second.words + regular) + where
        if options.estimator == "straight-through":
            hard = unroll(decoder, attention, of_second, captions, "straight-through", smoothing)
            loss = (1 - share) * hard.loss * second.words
        else:
            hard = unroll(decoder, attention, of_second, captions.repeat(2), "hard", smoothing)
            # What words learn of SAT eq. 12; what locations learn is the line after.
            loss = (1 - share) * hard.loss * second.words
            loss = loss + location_gradient(hard, options.entropy_bonus) * second.words
        if share:
            soft = unroll(decoder, attention, annotations[first.within(batch)], first.captions, "soft", smoothing)
            loss = loss + share * (soft.loss * first.words + spread * doubly_stochastic(soft) * first.images)
        return loss

    def _finish_epoch(self, directory: RunDirectory) -> None:
        scores = self.validate() if self.processes.first else {}
        first = self.processes.tell(max((one.bleu[3] for one in [*scores.values()][:1]), default=0.0))
        self.epoch += 1
        metrics = {
            "losses/train": self.loss / max(self.batch, 1),
            "charts/tokens_per_second": self.tokens / max(self.seconds, 1e-9),
        }
        for name, one in scores.items():
            metrics |= {f"val/{name}/bleu{order}": value for order, value in enumerate(one.bleu, 1)}
            metrics[f"val/{name}/length_ratio"] = one.length_ratio
        directory.log(self.epoch, metrics)
        shown = ", ".join(f"{name} {' '.join(f'{100 * b:.1f}' for b in one.bleu)}" for name, one in scores.items())
        if self.processes.first:
            tqdm.write(f"epoch {self.epoch}: loss {metrics['losses/train']:.3f}; val BLEU-1..4: {shown}")
        if first > self.best:
            self.best, self.best_epoch = first, self.epoch
            if self.processes.first:
                self.export(directory.path, metrics)
        self.batch = self.tokens = 0
        self.seconds = self.loss = 0.0

    def export(self, folder: Path, metrics: dict[str, float]) -> None:
        """Write the averaged weights as a captioner and, unless there is none, an attention file."""
        student = self.mean_student
        notes = {
            "trained_with": {"attention": self.options.attention, "seed": self.options.seed, "epoch": self.epoch},
            "val": {name: round(value, 4) for name, value in metrics.items() if name.startswith("val/")},
        }
        save_captioner(student.captioner, folder / "captioner.safetensors", notes)
        if student.attention is not None:
            save_attention(student.attention, folder / "attention.safetensors", notes)

    def validate(self) -> dict[str, Scores]:
        """Corpus scores on val of the averaged weights: of the agent that is trained first, then of others."""
        student = self.mean_student
        encoder = student.captioner.encoder
        rows = range(len(self.val_set))[: self.options.limit]
        features = finish_features(open_features(self.val_set, encoder.frozen_part()), encoder, rows)
        return {
            name: self._score(student.captioner, features, agent, rows)
            for name, agent in self._agents(student, features).items()
        }

    @property
    def mean_student(self) -> Student:
        """The student with the running mean of the weights."""
        return cast(Student, self.averaged.module)

    def _agents(self, student: Student, features: FeatureTable) -> dict[str, Agent]:
        if student.attention is None:
            return {"no-attention": UniformAgent(features.shape[1])}
        random = RandomAgent(features.shape[1], self.options.seed)
        if self.options.attention == "told":
            return {"oracle": OracleAgent(self.val_set, student.captioner.vocabulary), "random": random}
        device = self.options.device
        soft = SoftAttentionAgent(student.attention, features, device)
        hard = HardAttentionAgent(student.attention, features, device)
        if self.options.attention == "soft":
            return {"soft": soft, "hard": hard}
        return {"hard": hard, "soft": soft, "random": random}

    def _score(self, captioner: Captioner, features: FeatureTable, agent: Agent, rows: range) -> Scores:
        longest = longest_caption(self.options.dataset)
        made = decode(captioner, features, agent, rows, max_caption_length=longest, device=self.options.device)
        return score(made, [self.val_set.references(row) for row in rows])


def main(options: Options) -> None:
    """Train, from the start or from where a run stopped."""
    options = settle(options)
    with processes(options) as (together, own):
        prepare(own)
        directory = together.directory(options.run_dir or Path("runs"), options, options.resume)
        trainer = Trainer(own, options.resume, together)
        if options.resume:
            trainer.load(directory.restore())
        trainer.run(directory)
        directory.close()
    if together.first:
        print(f"best val BLEU-4 {trainer.best:.4f} after epoch {trainer.best_epoch}; weights in {directory.path}")

"""One network for several joints, organs, scanners and label sets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import BasicUNet
from torch import nn

from medseg.cases import Case
from medseg.domains import Domain, DomainRegistry, assign_domains
from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.losses.segmentation import SegmentationLoss
from medseg.methods.base import (
    Batch,
    MethodConfig,
    Prediction,
    Sample,
    Score,
    StepOutput,
    Stream,
    Supervision,
    TrainingSet,
)
from medseg.methods.multidomain import conclude, scores
from medseg.methods.multidomain.adopt import adopt_domains, inherit_weights, prepare_config
from medseg.methods.multidomain.classifier import Guess
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.crops import (
    SIZE,
    TURN,
    change_intensity,
    crop,
    draw_centre,
    draw_place,
    fitted_centre,
    foreground_spots,
)
from medseg.methods.multidomain.images import fitted_patch, pad_slices, prepare, with_names
from medseg.methods.multidomain.network import POOLED, MultiDomainNet, SliceTrunk, build_backbone
from medseg.methods.multidomain.presets import ARM_GROUPS, PRESETS
from medseg.methods.multidomain.pretrained import load_pretrained
from medseg.methods.multidomain.recognise import doubts, find_domain
from medseg.methods.multidomain.registry import build_registry, slice_axis
from medseg.methods.multidomain.terms import Regularisers
from medseg.methods.multidomain.views import draw_view, whole_views
from medseg.methods.patches import PatchMethod, first_readable, normalised_entropy
from medseg.networks.trunk import SlicewiseTrunk, Trunk
from medseg.transforms.grid import axis_last, resize, to_canonical
from medseg.transforms.io import read_image
from medseg.transforms.labels import read_label

log = logging.getLogger(__name__)


class MultiDomain(PatchMethod):
    """Shared filters, norms and head of each domain, contrast between domains, shape prior.

    L = mean over domains of L_seg + l1 L_con + l2 L_shape (+ l3 L_adv); every step sees one batch of each domain.

    Source: Boutillon, Conze, Pons, Burdin, Borotikar: Generalizable multi-task, multi-domain deep segmentation of
    sparse pediatric imaging datasets via multi-scale contrastive regularization and multi-joint anatomical priors,
    Medical Image Analysis 2022, arXiv 2207.13502. Inspired by it: no code and no hyper-parameters of it are public.
    Deviation: stated where each part is, and in docs/multidomain.md.
    """

    name = "multidomain"
    title = "Multi-domain: several joints, scanners and label sets in one network"
    supervision = frozenset({Supervision.MASKS, Supervision.DOMAIN})
    config_class = MultiDomainConfig
    config: MultiDomainConfig
    network: MultiDomainNet
    presets: ClassVar = PRESETS
    arm_groups: ClassVar = ARM_GROUPS
    merges_instances: ClassVar = True
    app_settings: ClassVar = {"prior_score": True}  # a part of the acquisition score; benchmarks do without

    @classmethod
    def group_cases(cls, cases: Sequence[Case], config: MethodConfig | None = None) -> dict[str, str]:
        """Splits are made within each domain."""
        settings = config or cls.config_class()
        assert isinstance(settings, MultiDomainConfig)
        return assign_domains(cases, settings.domain_pattern)

    @classmethod
    def fit_config(cls, config: MethodConfig, cases: Sequence[Case]) -> MethodConfig:
        """Find the domains of the cases, after those of a model that the run starts from."""
        assert isinstance(config, MultiDomainConfig)
        readable = first_readable(cases)
        fitted = config.with_overrides(
            {"dimension": config.dimension or readable.ndim - 1, "channels": config.channels or readable.shape[0]}
        )
        if fitted.domains:
            return fitted
        fitted = fitted.with_overrides({"patch": fitted_patch(fitted)})
        return prepare_config(fitted, build_registry(fitted, cases), cases)

    # -- build -----------------------------------------------------------------------------------------------------

    @classmethod
    def trunk(cls, channels: int, dimension: int, width: int, norm: str) -> Trunk:
        """The U-Net of slices, without norms of domains: every slot starts from the one that was learnt."""
        backbone, *_ = build_backbone(MultiDomainConfig(width=width, channels=channels, dimension=2))
        assert isinstance(backbone, BasicUNet)
        flat = SliceTrunk(backbone, width)
        return SlicewiseTrunk(flat) if dimension == 3 else flat

    @classmethod
    def trunk_axis(cls, spacing: Sequence[float]) -> int:
        """That of the slices, by the rule that cuts domains."""
        return slice_axis(spacing) if len(spacing) == 3 else super().trunk_axis(spacing)

    @classmethod
    def adopt(cls, source: Mapping[str, Any]) -> dict[str, Any]:
        """Network and width of a U-Net that was pretrained."""
        return {"network": "unet", "width": source["width"]} if source.get("trunk") == cls.name else {}

    def build_network(self) -> nn.Module:
        """The backbone with its taps and the norms of each domain; heads, prior, classifier."""
        config = self.config
        numbers = {number: name for name, number in self.labels.items()}
        self.registry = DomainRegistry(
            {name: with_names(Domain.from_dict(name, value), numbers) for name, value in config.domains.items()},
            config.domain_pattern,
        )
        missing = {label for d in self.registry.domains.values() for label in d.labels} - self.labels.keys()
        if missing:
            raise MedsegError(
                f"the domains have labels {', '.join(sorted(missing))}, which this run does not have; give the data of "
                "all domains, the old ones too"
            )
        self.segmentation = SegmentationLoss(config.loss)
        backbone, features, taps = build_backbone(config)
        classes = {head: 1 + len(labels) for head, labels in self.labels_by_head().items()}
        network = MultiDomainNet(backbone, features, classes, taps, config)
        self.regularisers = Regularisers(config)
        self.alone = False  # whether only new domains are shown
        self.fixed = False  # whether what new domains share with old ones is fixed
        return network

    def initialise(self) -> None:
        """Start the backbone from the weights of `pretrained`."""
        if self.config.pretrained:
            load_pretrained(self.network.backbone, self.config.pretrained)

    def inherit(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Weights of the model in `init` by domain and label name."""
        return inherit_weights(self, tensors)

    def labels_by_head(self) -> dict[str, tuple[str, ...]]:
        """Labels of every head in the order of its classes; without domain-specific layers the one head of all."""
        if not self.config.domain_layers:
            return {POOLED: tuple(sorted(self.labels, key=lambda name: self.labels[name]))}
        return {name: domain.labels for name, domain in self.registry.domains.items()}

    def global_numbers(self, domain: str) -> list[int]:
        """Number of the run's label for each class of a domain's head, background first."""
        if not self.config.domain_layers:
            return list(range(self.classes))
        return [0, *(self.labels[name] for name in self.registry[domain].labels)]

    # -- data ------------------------------------------------------------------------------------------------------

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        """One stream per domain with labelled cases, so that every domain is seen equally often, pooled or not."""
        labelled = [case for case in cases if case.label is not None]
        domains = {case.id: self._known_domain(case) for case in labelled}
        wanted = self.config.added if self.alone else self.registry.names
        groups = {name: tuple(case for case in labelled if domains[case.id] == name) for name in wanted}
        groups = {name: group for name, group in groups.items() if group}
        if not groups:
            raise MedsegError(
                f"{self.name} needs a labelled case of one of its domains ({', '.join(self.registry.names)}), got "
                f"{len(labelled)} labelled cases of others; save a label, then train again"
            )
        return [Stream(name, group, self.config.domain_batch) for name, group in groups.items()]

    def load(self, case: Case) -> Sample:
        """Read a case as its domain is prepared: slices last, the domain's spacing and normalisation.

        Returns:
            `image` (C, *grid), three times the channels for 2.5D; `views`, by which its domain is recognised; where
            there is a mask `label` (1, *grid) in the run's numbers and its `spots`; `domain`, `source`, `confidence`
            and `distance` of the choice.

        Raises:
            NotFoundError: a domain is stated that the model does not know.
            UnusableInputError: the image does not fit, its mask holds labels of another domain, or its domain is
                unknown and `unknown` is "refuse".
        """
        original = read_image(case.image)
        self._check_image(case, original)
        found, guess = find_domain(self, case, original)
        domain = self.registry[found.domain]
        loaded: Sample = {
            "image": prepare(original, domain, self.config),
            "views": whole_views(original),
            "domain": found.domain,
            "source": found.source,
            "confidence": found.confidence,
            "distance": guess.distance if guess else 0.0,
        }
        if case.label is not None:
            mask = axis_last(to_canonical(self._read_label(case, original)), domain.slice_axis)
            small = resize(mask, loaded["image"].shape[1:], mode="label")
            self._check_labels(case, domain, small)
            loaded["label"] = MetaTensor(small.as_tensor().to(torch.uint8), affine=small.affine)
            loaded["spots"] = foreground_spots(loaded["label"].as_tensor())
        return loaded

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """A slice or patch around a drawn voxel, turned, sized and changed in contrast."""
        strong = self.config.augmentation == "strong"
        domain = stream if self.config.domain_layers else None
        drawn = self.draw(loaded, domain, generator, strong, self.config.foreground_crops)
        drawn["view"] = draw_view(loaded["views"], generator)
        drawn["domain"] = torch.tensor(self.registry.names.index(loaded["domain"]))
        return drawn

    def draw(
        self, loaded: Sample, domain: str | None, generator: torch.Generator, strong: bool, foreground: float
    ) -> dict[str, torch.Tensor]:
        """`sample` with the size of a domain's patch, or of all; `strong`: with turns and other contrasts."""
        turn, size, *flips = (2 * torch.rand(4, generator=generator) - 1).tolist()
        chosen = [axis for axis in self.config.flip_axes if flips[axis] > 0]
        place = draw_centre(loaded["image"].shape[1:], loaded.get("spots"), foreground, generator)
        tensors: dict[str, torch.Tensor] = {k: loaded[k].as_tensor() for k in ("image", "label") if k in loaded}
        if self.config.net_axes == 2 and self.dimension == 3:
            tensors = {key: value[..., place[2]] for key, value in tensors.items()}
        patch = self.patch_of(domain)
        centre = fitted_centre(draw_place(place[: len(patch)], patch, generator), patch, tensors["image"].shape[1:])
        drawn = crop(tensors, centre, patch, turn * TURN * strong, 1 + size * SIZE * strong, chosen)
        if strong:
            drawn["image"] = change_intensity(drawn["image"], generator)
        return drawn

    def patch_of(self, domain: str | None) -> tuple[int, ...]:
        """Training patch of a domain; None: one that covers those of all domains."""
        axes = self.config.net_axes
        if domain is not None:
            return (self.registry[domain].patch or self.config.patch)[:axes]
        patches = [d.patch or self.config.patch for d in self.registry.domains.values()]
        return tuple(max(lengths) for lengths in zip(*patches, strict=True))[:axes]

    @torch.no_grad()
    def guess_domain(self, image: MetaTensor, domain: str | None = None) -> Guess:
        """The classifier's opinion of an image (C, *grid): of the most probable domain, or of the one that is named."""
        device = next(self.network.classifier.parameters()).device
        return self.network.classifier.guess(whole_views(image).to(device), domain)

    def read_truth(self, case: Case, image: MetaTensor) -> MetaTensor:
        """The case's mask; without names of its own, its values mean what they mean in its domain."""
        return read_label(self._with_names(case, image), image, self.labels, strict=False)

    def judged_labels(self, prediction: Prediction, case: Case) -> dict[str, int]:
        """The labels of the case's domain; what is taken for another domain's label counts as missed."""
        found = self.registry.resolve(case)
        names = self.registry[found.domain].labels if found else tuple(prediction.labels or self.labels)
        return {name: self.labels[name] for name in names}

    # -- training --------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[int, ...]:
        """First the prior learns, and a new domain's slot alone; then everything works together."""
        starts = {0, self.regularisers.prior_iterations, self._frozen_iterations()}
        return tuple(sorted(start for start in starts if start < self.config.iterations))

    def begin_stage(self, start: int, training: TrainingSet) -> None:
        """Give new domains the slot of their nearest; freeze the prior once it has learnt."""
        frozen = start < self._frozen_iterations()
        adopt_domains(self, training)
        prior = self.network.prior
        if prior is not None and start >= self.regularisers.prior_iterations:
            prior.freeze()
        elif prior is not None and self.config.added and bool(prior.learnt):
            prior.freeze(but=self.config.added if self.config.domain_layers else (POOLED,))
        self.alone = frozen and (prior is None or bool(prior.learnt))  # a prior that is new needs all domains
        missing = self.missing_domains(training.cases)
        if missing:
            log.warning("no case of %s is there to rehearse: what is shared stays as it is", ", ".join(missing))
        if self.config.added:
            self.fixed = frozen or bool(missing)
            self.network.fix_shared(self.fixed)

    @property
    def old_domains(self) -> tuple[str, ...]:
        """Domains of the model that the run adds domains to; none where it adds none."""
        added = self.config.added
        return tuple(name for name in self.registry.names if name not in added) if added else ()

    def missing_domains(self, cases: Sequence[Case]) -> tuple[str, ...]:
        """Old domains of which no labelled case is there to rehearse."""
        present = {self._known_domain(case) for case in cases if case.label is not None}
        return tuple(name for name in self.old_domains if name not in present)

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        """One batch of each domain, one loss; the pooled network takes them as one batch."""
        batches = {name: (part["image"], self.local_label(part["label"], name)) for name, part in batch.items()}
        if not self.config.domain_layers:
            images, labels = zip(*batches.values(), strict=True)
            batches = {POOLED: (torch.cat(images), torch.cat(labels))}
        logits, features, terms = {}, {}, {}
        for name, (image, label) in batches.items():
            logits[name], features[name] = self.network.with_features(image, name)
            terms[f"segmentation_{name}"] = self.segmentation(logits[name], label)
        loss = torch.stack(list(terms.values())).mean()
        parts = {name: (logits[name], batches[name][1], features[name]) for name in batches}
        more = self.regularisers(self.network, parts, iteration)
        loss, terms = loss + more.loss, {**terms, **more.terms}
        if not self.fixed:
            views, domains = (torch.cat([part[key] for part in batch.values()]) for key in ("view", "domain"))
            guessed = nn.functional.cross_entropy(self.network.classifier(views).float(), domains)
            loss = loss + guessed  # the classifier shares no weight with the rest
            terms["classifier"] = guessed
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def local_label(self, label: torch.Tensor, domain: str) -> torch.Tensor:
        """A mask in the run's numbers as the classes of a domain's head."""
        table = torch.zeros(self.classes, dtype=torch.long, device=label.device)
        for index, number in enumerate(self.global_numbers(domain)):
            table[number] = index
        return table[label.long()]

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; no weight decay on norms and biases; rates of the encoder and of runs that add domains."""
        config = self.config
        learning_rate = config.learning_rate * (config.added_rate if config.added else 1)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]
        encoder = {id(p) for p in conclude.encoder_parameters(self.network)} if config.encoder_rate != 1 else set()
        groups = [
            {"params": [p for p in part if (id(p) in encoder) is inside], "weight_decay": decay, "lr": rate}
            for part, decay in ((decayed, config.weight_decay), (plain, 0.0))
            for inside, rate in ((False, learning_rate), (True, learning_rate * config.encoder_rate))
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate)

    def conclude(self, training: TrainingSet) -> None:
        """Statistics of the norms, domain by domain; where each domain lies; what is usual in it."""
        conclude.renew_statistics(self, training)
        conclude.fit_classifier(self, training)
        scores.fit_reference(self, training)

    # -- use -------------------------------------------------------------------------------------------------------

    def predict(self, loaded: Sample) -> Prediction:
        """Class probabilities over all labels, those of other domains 0, and which domain that was."""
        domain, affine = loaded["domain"], loaded["image"].affine
        own = self.probabilities(loaded)
        numbers = self.global_numbers(domain)
        full = torch.zeros((self.classes, *own.shape[1:]))
        full[numbers] = own
        names = {name: number for name, number in self.labels.items() if number in numbers}
        return Prediction(
            probabilities=MetaTensor(full, affine=affine),
            uncertainty=MetaTensor(normalised_entropy(own), affine=affine),
            labels=names,
            facts={
                "domain": domain,
                "domain_from": loaded["source"],
                "domain_confidence": round(loaded["confidence"], 3),
            },
            warnings=doubts(self, loaded),
        )

    def probabilities(self, loaded: Sample) -> torch.Tensor:
        """Probabilities (classes of the domain's head, *grid) of a loaded case, on the CPU."""
        domain = loaded["domain"]

        def forward(windows: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.network(windows, domain).float(), dim=1)

        image = loaded["image"].as_tensor()
        device = next(self.network.parameters()).device
        if self.config.net_axes == 3:
            inferer = SlidingWindowInferer(
                self.patch_of(domain), self.config.window_batch, self.config.overlap, mode="gaussian", device=device
            )
            return inferer(image[None].to(device), forward)[0].float().cpu()
        slices = image.movedim(-1, 0) if self.dimension == 3 else image[None]
        padded = pad_slices(slices)
        whole = torch.cat([forward(part.to(device)).cpu() for part in padded.split(2 * self.config.window_batch)])
        whole = whole[..., : slices.shape[-2], : slices.shape[-1]]
        return whole.movedim(0, -1).contiguous() if self.dimension == 3 else whole[0]

    def score(self, loaded: Sample) -> Score:
        """Doubt about an image beside what is usual in its domain."""
        return scores.score(self, loaded)

    # -- details ---------------------------------------------------------------------------------------------------

    def _read_label(self, case: Case, image: MetaTensor) -> MetaTensor:
        return read_label(self._with_names(case, image), image, self.labels)

    def _with_names(self, case: Case, image: MetaTensor) -> Case:
        """The case with the label names of its domain, where it has none."""
        if case.names:
            return case
        domain = self.registry[find_domain(self, case, image)[0].domain]
        names = domain.names_of(range(1, 256))
        plain = all(self.labels.get(name) == value for value, name in names.items())
        return case if plain else replace(case, names=names)

    def _check_labels(self, case: Case, domain: Domain, mask: MetaTensor) -> None:
        if not self.config.domain_layers:
            return
        own = self.global_numbers(domain.name)
        strays = [int(value) for value in torch.unique(mask.as_tensor()) if int(value) not in own]
        if strays:
            name = next(name for name, number in self.labels.items() if number == strays[0])
            raise UnusableInputError(
                f"mask of {case.id} holds label {name!r}, but domain {domain.name} has {', '.join(domain.labels)}; "
                "correct the mask or the domain"
            )

    def _known_domain(self, case: Case) -> str | None:
        """What is known of a training case; None: a domain that nothing can be learnt of."""
        try:
            found = self.registry.resolve(case)
        except NotFoundError:
            return None
        return found.domain if found else None

    def _frozen_iterations(self) -> int:
        """Iterations in which only a new domain's slot and head learn; 0 where it has none of its own."""
        wanted = self.config.added and self.config.domain_layers
        return round(self.config.freeze_share * self.config.iterations) if wanted else 0

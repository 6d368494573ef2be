"""Settings of local discrimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from medseg.errors import MedsegError
from medseg.losses.patch_discrimination import FORMS
from medseg.methods import METHODS, method_class
from medseg.methods.base import V_NET
from medseg.methods.local_discrimination.views import ViewSettings
from medseg.methods.patches import PatchConfig
from medseg.networks.vnet import NORMS

POLARITIES = ("dark", "bright", "any")
MATCHINGS = ("window", "pooled")


@dataclass(frozen=True)
class LocalDiscriminationConfig(PatchConfig):
    """Pretraining on every image, with the parts of it as switches."""

    learning_rate: float = 1e-3  # card sec. 6: Adam
    lr_schedule: str = "cosine"  # ours: the card halves every 10 of 100 epochs; this ends at 0 at any budget
    image_batch: int = 4  # card sec. 5: B
    trunk: str = V_NET  # method whose network is pretrained; `supervised` with network=vnet has that of caml
    norm: str = "instance"  # card sec. 4: cameras and sequences differ within a batch
    width: int = 16  # as `supervised`, which starts from this trunk
    embedding: int = 32  # card sec. 4: D
    regions: int = 16  # card sec. 4: K

    # switches: the ablation of the card, sec. 2
    patch_weight: float = 1.0  # card sec. 5
    mixup_weight: float = 1.0  # card sec. 5
    region_weight: float = 10.0  # card sec. 5, stage 2
    entropy_weight: float = 0.1  # card sec. 5, stage 2
    usage_weight: float = 1.0  # ours: keeps regions alive; the released code does not check for dead ones
    warmup: float = 0.2  # card sec. 6: 20 of 100 epochs are stage 1, without regions

    # patch and region discrimination
    form: str = "nt_xent"  # ours: see `PatchDiscriminationLoss`
    temperature: float = 0.1  # card sec. 5
    region_temperature: float = 0.2  # card sec. 5
    points: int = 160  # ours: pairs per image; the card compares 8 x 8 cells
    near: float = 8.0  # ours: distance of hard negatives, voxels
    ignore: float = 2.0  # ours: nearer places of one image are no negatives of each other, image voxels
    prototype_memory: float = 0.9  # card sec. 5, improvements: running average of the prototypes

    # views
    zoom: tuple[float, float] = (0.7, 1.4)  # ours: image voxels per voxel of a view
    rotation: float = 20.0  # ours: the released code leaves +-2 degrees untracked; here any angle is legal
    scaling: float = 0.15  # ours
    mirror: float = 0.5  # card sec. 6
    elastic: float = 0.12  # ours: share of the distance of control points
    appearance: float = 1.0  # ours: strength of intensity changes

    # shape prior (card sec. 7)
    files: ClassVar[frozenset[str]] = frozenset({"init", "shapes"})
    shapes: str | None = None  # folder of binary masks; their first label is then segmented without any label
    shape_weight: float = 1.0  # ours
    shape_share: float = 0.6  # ours: share of the iterations, at the end, that learns shapes alone
    targets: tuple[int, ...] = (1, 2)  # labels that are the shape, where masks tell how well it is found: both lungs
    bound_shares: bool = True  # ours: `shares` bound the answer; off where images are framed otherwise than the shapes
    shares: tuple[float, ...] = ()  # least and most of a picture that is shape; filled from the shapes
    polarity: str = "dark"  # how the shape differs from its surroundings: vessels and lungs are darker

    # landmarks (card sec. 8)
    landmarks: tuple[str, ...] = ()  # names; filled from the templates
    templates: int = 0  # images with landmarks that are kept; filled from the data
    pyramid: tuple[int, ...] = (4, 2, 1)  # ours: coarse to fine, factors of the working grid
    window: float = 0.0  # ours: sigma of a landmark's Gaussian window, voxels of each level; 0: 5 in 2D, 2.5 in 3D
    matching: str = "window"  # ours: compares neighbourhoods in place; "pooled" averages them first (card sec. 8)
    consensus: bool = True  # ours: what confident matches on the unmarked images share is one more template
    heat_iterations: int = 500  # ours: heat maps learn from the matches on unmarked images; 0: matches alone
    search: float = 0.15  # ours: first search around the template's own position, share of the longest axis; 0: all
    confident: float = 0.35  # ours: below, a warning asks the reader to look
    pixel_mm: float = 0.0  # size of a picture's pixel; 0: column mm_per_px of the tables beside the images, else 1

    # benchmark: what `supervised` gets that starts from this
    finetune_iterations: int = 300  # ours
    landmark_iterations: int = 0  # pretraining of the arms of landmarks, which serves all templates; 0: `iterations`
    shape_iterations: int = 0  # training of the arms that learn shapes; 0: `iterations`
    finetune_learning_rate: float = 0.02  # ours: SGD of `supervised`

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"norm": NORMS, "form": FORMS, "polarity": POLARITIES, "matching": MATCHINGS}
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise MedsegError(f"{key} = {getattr(self, key)!r} is unknown; choose one of {', '.join(known)}")
        for key in ("image_batch", "width", "embedding", "points", "finetune_iterations"):
            if getattr(self, key) < 1:
                raise MedsegError(f"{key} = {getattr(self, key)} must be at least 1")
        for key in ("heat_iterations", "landmark_iterations", "shape_iterations"):
            if getattr(self, key) < 0:
                raise MedsegError(f"{key} = {getattr(self, key)} must be at least 0")
        for key in ("warmup", "shape_share", "prototype_memory", "mirror", "search", "confident"):
            if not 0 <= getattr(self, key) <= 1:
                raise MedsegError(f"{key} = {getattr(self, key)} is outside [0, 1]")
        self._check_trunk()
        if self.trunk != V_NET and (self.shapes or self.templates or self.landmarks):
            raise MedsegError(
                f"trunk = {self.trunk} is pretrained for others; shapes and landmarks need trunk = {V_NET}, the V-Net"
            )
        if self.one_piece:
            raise MedsegError("one_piece is not for local_discrimination: no mask tells it how many pieces a shape has")
        if self.regions < 2:
            raise MedsegError(f"regions = {self.regions} must be at least 2")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise MedsegError(f"zoom = {self.zoom} must hold two positive numbers, the smaller one first")
        if not 0 <= self.elastic <= 0.25:
            raise MedsegError(f"elastic = {self.elastic} is outside [0, 0.25]; beyond, a view folds over itself")
        if not self.pyramid or min(self.pyramid) < 1 or list(self.pyramid) != sorted(self.pyramid, reverse=True):
            raise MedsegError(f"pyramid = {self.pyramid} must hold factors from 1, the coarsest first")
        if self.window < 0 or self.temperature <= 0 or self.region_temperature <= 0:
            raise MedsegError("window must be at least 0, temperature and region_temperature must be positive")

    @property
    def shapes_only(self) -> bool:
        """Whether no iteration learns places."""
        return self.shapes is not None and self.shape_share == 1

    def _check_trunk(self) -> None:
        """Its method has a trunk, and takes the settings that it would adopt from this model."""
        if self.trunk not in METHODS or not method_class(self.trunk).has_trunk():
            known = ", ".join(name for name in METHODS if method_class(name).has_trunk())
            raise MedsegError(f"trunk = {self.trunk!r} has no network that can be pretrained; choose one of {known}")
        kind = method_class(self.trunk)
        kind.config_class.from_dict(kind.adopt(self.to_dict()))

    @property
    def sigma(self) -> float:
        """Sigma of a landmark's window; in 3D a smaller one, as a bank grows with its third power."""
        return self.window or (5.0 if self.dimension == 2 else 2.5)

    @property
    def views(self) -> ViewSettings:
        """How strongly the two views of an image differ."""
        return ViewSettings(
            patch=self.patch,
            zoom=self.zoom,
            scaling=self.scaling,
            rotation=self.rotation,
            mirror=self.mirror,
            elastic=self.elastic,
        )

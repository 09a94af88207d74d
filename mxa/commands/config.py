"""What commands are told; nothing that takes long is imported, so that their help comes at once."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ..data.config import DataConfig
from ..training.config import TrainConfig
from ..utils.processor import reader_count
from .predict.config import PredictConfig

__all__ = [
    "AblateConfig",
    "AppConfig",
    "CompletionConfig",
    "ConvertConfig",
    "ExplainConfig",
    "LocalizeConfig",
    "Method",
    "PrepareConfig",
    "PublishConfig",
    "SummaryConfig",
    "TeachConfig",
]

#: What a model points with.
Method = Literal["finding", "finding-map", "roi", "roi-map", "gate", "attention", "grad-cam", "integrated-gradients"]


@dataclass
class PrepareConfig(DataConfig):
    """Which images are written as shards, and how."""

    unused = ("merge", "uncertain", "blank", "boxes")

    output: Path
    """Folder for the shards, rows.csv.gz and manifest.json; the same command resumes after an interruption, and
    rewrites what was lost or damaged."""
    size: int = 256
    """Shorter side of the images written, in pixels; smaller images stay as they are."""
    format: Literal["jpg", "png"] = "jpg"
    """jpg (quality 95) or png (no loss, three times as large); 8 bit."""
    shard_size: int = 1000
    """Images in a shard."""
    workers: int | None = None
    """Processes; one for each core by default."""
    ray: str | None = None
    """Write on Ray: auto for the cluster of this machine, or else this machine alone; or an address."""


@dataclass
class SummaryConfig(DataConfig):
    """Which images are counted."""

    unused = ("merge", "uncertain", "blank")

    split: Literal["all", "train", "val", "valid", "test"] = "all"
    """Split of the collection; "all" of CheXpert is its train.csv."""
    views: str = "all"
    """frontal, lateral, all, AP or PA."""
    output: Path | None = None
    """Folder for summary.json and summary.png; with --boxes also boxes.png, the boxes on some of the images."""


@dataclass
class TeachConfig(DataConfig):
    """Which teachers score which images."""

    unused = ("uncertain", "blank", "boxes", "labels_from")

    teacher: tuple[str, ...]
    """xrv:NAME or xrv:FILE (TorchXRayVision), a timm name with weights, or a run folder; the logits of several are
    averaged."""
    output: Path
    """Parquet file to write, for mxa train --teacher."""
    split: Literal["all", "train", "val", "valid", "test"] | None = None
    """Split of the collection; train by default, and all of images without labels."""
    teacher_sha256: str | None = None
    """SHA-256 that the file of a single teacher must have."""
    batch_size: int = 64
    """Images at a time."""
    workers: int = field(default_factory=reader_count)
    """Worker processes that read images; by default one for each core, at most 8."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""
    amp: bool = False
    """bfloat16 autocast."""


@dataclass
class AblateConfig(TrainConfig):
    """What is compared, on the same patients: a training recipe with and without MXA and a teacher, and other arms."""

    output: Path
    """Folder for table.md, report.html, learning.png, boxes.png, scores.parquet of all runs, and their run folders."""
    _: KW_ONLY
    model: str = "efficientvit_ml_m0_mxa"
    """The model with MXA; the baseline is that without."""
    augment: Literal["crop", "paper", "better"] = "better"
    """As for mxa train; better is the paper's for this table."""
    arms: tuple[str | dict, ...] = ("baseline", "mxa", "mxa+kd")
    """What to train now: baseline, mxa, kd, mxa+kd, or one of your own as "NAME: {field: value}", the fields of the
    recipe that it changes; rows of other arms stay as they are."""
    split: Literal["test", "val"] = "test"
    """What is scored; val to choose on the validation patients without a look at the test split."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A run of every arm for each."""
    folds: int | None = None
    """Cross-validation by patient instead of the collection's own test split."""
    replicates: int = 1000
    """Bootstrap replicates (of patients and seeds) for the intervals."""
    note: str | None = None
    """What must be said beside the scores; it stands at the top of the table."""


@dataclass
class ExplainConfig:
    """What is explained, and where the pictures go."""

    files: tuple[Path, ...]
    """Images, or folders of images."""
    output: Path
    """Folder for NAME.png and NAME.json of each image, and for gallery.png of several (the first 40)."""
    model: str = PredictConfig.model
    """Run folder, or a timm name with weights; the small model that comes with mxa by default."""
    against: str | None = None
    """A second model, say without MXA: its attention is shown beside the first one's, and the difference."""
    labels: str | None = None
    """Labels to explain, separated by commas; the three most probable findings by default."""
    skip_bad: bool = False
    """Leave out images that do not read, instead of stopping."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""


@dataclass
class LocalizeConfig(DataConfig):
    """Which models look for which boxes."""

    unused = ("columns", "labels", "merge", "views", "uncertain", "blank")

    models: tuple[str, ...]
    """Run folders, or timm names with weights; A,B,C are the seeds of one model."""
    output: Path
    """Folder for localization.json, localization.csv and localization.md."""
    split: Literal["all", "train", "val", "test"] | None = None
    """The collection's test list where it has one, else every image, by default."""
    reduce: int | None = None
    """Reduce images to this side in pixels first, to what the model was trained on; never enlarges."""
    methods: tuple[Method, ...] = get_args(Method)
    """What is scored; what a model does not have is left out, and said."""
    layers: tuple[str, ...] = ()
    """Layers that Grad-CAM is taken at, by module name; the last stage by default, whose map may be 3 x 3 cells."""
    steps: int = 32
    """Steps of the integrated gradients."""
    threshold: float = 0.5
    """A map's box is drawn around its largest part above this share of its maximum."""
    shuffled: bool = True
    """Score a copy of each model with shuffled weights too: what a method finds without what was learnt."""
    seed: int = 0
    """Seed of the shuffling, of the first of a model's seeds; the next has the next."""
    replicates: int = 1000
    """Bootstrap replicates (of patients, and of seeds where there are several) for the intervals."""
    batch_size: int = 32
    """Images at a time."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""


@dataclass
class ConvertConfig:
    """Which checkpoint is converted, and where the result goes."""

    checkpoint: Path
    """A .pth, .pt or .safetensors file: an EfficientViT of the paper's published code, Microsoft, timm or mxa, or an
    EfficientNet-Lite in EfficientNet-PyTorch's names."""
    output: Path
    """Folder for model.safetensors and config.json."""
    labels: str | None = None
    """Names of the outputs: "chexpert", "nih", ... or names separated by commas. By default those in the file or in the
    config.json beside it, else CheXpert's for 14 outputs of the published code or Microsoft's."""
    img_size: int | None = None
    """Side of the input that an EfficientViT was trained at, in pixels; 224 by default. An EfficientNet-Lite takes any
    and needs none."""


@dataclass
class PublishConfig(DataConfig):
    """What is published where."""

    unused = ("labels", "uncertain", "boxes")

    run: str | None = None
    """Run folder."""
    repo: str | None = None
    """Repository of the Hub, organisation/architecture.tag."""
    dry_run: bool = False
    """Write RUN/publish and upload nothing."""
    check: str | None = None
    """Instead: a folder or organisation/name whose weights are compared with the stored hash and output."""
    split: str | None = None
    """Split that is scored; the test split by default."""
    note: str | None = None
    """What must be said beside the scores."""
    terms: str | None = None
    """What may be done with the data that the model was trained on; known of the public collections."""
    license: str | None = None
    """Licence of the weights, by its name on the Hub; known of some public collections."""
    private: bool = False
    """Make a new repository private."""
    replicates: int = 1000
    """Bootstrap replicates (of patients) for the intervals."""
    workers: int = field(default_factory=reader_count)
    """Worker processes that read images; by default one for each core, at most 8."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""


@dataclass
class CompletionConfig:
    """Which shell completes."""

    shell: Literal["bash", "zsh", "fish"]
    """The shell that reads what is printed."""


@dataclass
class AppConfig:
    """Which models the page offers, and where it is served."""

    models: tuple[str, ...] = ("efficientvit_ml_m0_mxa.r160_nih8k",)
    """Run folders, exported folders, or timm names with weights."""
    host: str = "127.0.0.1"
    """Address to serve at. The default is seen on this machine alone; 0.0.0.0 is seen by every other one too."""
    port: int = 7860
    """Port to serve at."""
    examples: Path | None = None
    """Folder of X-rays that the page offers; by default those in examples/images of the repository, where it is."""
    max_mb: int = 64
    """Largest file that is taken, in megabytes."""
    device: str | None = None
    """cuda where there is one, else cpu, by default."""

"""What the program reads of a run folder's config.json and result.json, field by field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Required, TypedDict

from msgspec import Meta

from halfmeg.data.dataset import MAX_CLASSES, DataSplits
from halfmeg.data.shape import ImageShape, image_shape
from halfmeg.evaluation.familiarity import Familiarity

Count = Annotated[int, Meta(ge=0, le=2**53)]
Share = Annotated[float, Meta(ge=0, le=1)]
Channels = Annotated[tuple[float, ...], Meta(min_length=1, max_length=3)]
Side = Annotated[int, Meta(ge=1, le=4096)]
StoredSize = Side | Annotated[tuple[Side, ...], Meta(min_length=2, max_length=2)]
"""A side, or height and width."""


class Result(TypedDict, total=False):
    """What the program reads of result.json; more stands there."""

    model: Required[str]
    recipe: Required[str]
    seed: Required[Count]
    params: Required[Count]
    macs: Required[Count]
    total_macs: Count
    epochs: Required[Count]
    precision: str
    val_accuracy: Required[Share | None]
    val_n: Required[Count]
    familiarity: Familiarity | None
    test_accuracy: Required[Share]
    test_loss: Required[float]
    test_n: Required[Count]
    data: Required[str]
    fingerprint: Required[str]
    images_per_second: Required[float]
    seconds: Required[float]
    runs_at_once: Annotated[int, Meta(ge=1)]
    sha256: dict[str, str]


@dataclass(frozen=True)
class DataFacts:
    """What a run folder keeps of its data: enough to find it again and to prepare images."""

    name: str
    source: str
    fingerprint: str
    classes: Annotated[tuple[str, ...], Meta(min_length=2, max_length=MAX_CLASSES)]
    image_size: StoredSize
    mean: Channels
    std: Channels
    num_train: Count
    num_test: Count
    num_validation: Count = 0  # in the user's own validation part
    options: dict[str, str | int] = field(default_factory=dict)  # how the source was read
    folds_of: str = ""  # fingerprint of the source that it is a fold of

    @property
    def image_shape(self) -> ImageShape:
        """Channels, height and width of the images."""
        return image_shape(self.image_size)._replace(channels=len(self.mean))

    @classmethod
    def of(cls, data: DataSplits) -> DataFacts:
        """Take the facts from loaded data."""
        return cls(
            name=data.name,
            source=data.source,
            fingerprint=data.fingerprint,
            classes=data.classes,
            image_size=data.image_size,
            mean=data.mean,
            std=data.std,
            num_train=len(data.train),
            num_test=len(data.test),
            num_validation=len(data.validation) if data.validation is not None else 0,
            options=data.options,
            folds_of=data.folds_of,
        )


@dataclass(frozen=True)
class StoredConfig:
    """config.json."""

    config: dict[str, Any]
    data: DataFacts

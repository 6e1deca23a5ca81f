"""The embedded data: 1,797 handwritten digits that scikit-learn ships."""

from __future__ import annotations

import numpy as np
import torch

from halfmeg.data.dataset import Dataset, DataSplits, build_splits
from halfmeg.data.decode import EncodedImage, FitName, decode_images
from halfmeg.data.shape import ImageShape
from halfmeg.data.split import stratified_split

TEST_FRACTION = 0.2
SPLIT_SEED = 0


def load_digits(shape: ImageShape, fit: FitName) -> DataSplits:
    """Load the digits as images of a shape, 80% for training and 20% for testing.

    They are 8×8 pixels with 17 levels (Alpaydin and Kaynak, "Optical Recognition of Handwritten
    Digits", UCI repository 1998), enlarged with bicubic interpolation.
    """
    from sklearn.datasets import load_digits as load_bunch

    bunch = load_bunch()
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    encoded = [
        EncodedImage(f"digit {index}", (image * (255 / 16)).round().astype(np.uint8), label)
        for index, (image, label) in enumerate(zip(bunch.images, labels.tolist(), strict=True))
    ]
    images = torch.from_numpy(decode_images(encoded, shape, fit=fit).pixels)
    everything = Dataset(images, labels, tuple(str(digit) for digit in range(10)))
    train, test = stratified_split(labels, TEST_FRACTION, SPLIT_SEED)
    return build_splits("digits", everything.subset(train), everything.subset(test))

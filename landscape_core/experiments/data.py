"""Image classification data: loaded once, kept as one file, given as tensors."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from platformdirs import user_cache_dir
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from landscape_core.experiments.context import note_data
from landscape_core.experiments.vision import torchvision_datasets

Arrays = dict[str, np.ndarray]
Subset = int | Sequence[int | None] | None
KEYS = ("train_images", "train_labels", "test_images", "test_labels")
DOWNLOADS = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


class Split(NamedTuple):
    """Images and labels, as tensors; being a pair, it is accepted wherever a batch is.

    Attributes
    ----------
    inputs : Tensor, shape (N, C, H, W), float32
        Normalized images.
    targets : Tensor, shape (N,), int64
        Class labels from 0.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Cut into batches of `size` examples in order, the last one perhaps smaller."""
        if size < 1:
            raise ValueError(f"the batch size must be at least 1, got {size}")
        pairs = zip(self.inputs.split(size), self.targets.split(size), strict=True)
        return list(pairs)


@dataclass(frozen=True)
class Images:
    """An image classification data set in memory.

    Attributes
    ----------
    name : str
    train, test : Split
        Normalized by the channel means and standard deviations of the whole training set.
    classes : int
        Number of classes.
    mean, std : tuple of float
        Per channel, of the pixel values as stored: what was subtracted and divided by.
    sha256 : str
        Of the whole data set's images and labels, before any subset: for provenance.
    """

    name: str
    train: Split = field(repr=False)
    test: Split = field(repr=False)
    classes: int
    mean: tuple[float, ...] = field(repr=False)
    std: tuple[float, ...] = field(repr=False)
    sha256: str = field(repr=False)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.inputs.shape[1:]
        return channels, height, width

    def __str__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        return (
            f"{self.name}: {self.train.examples} training and {self.test.examples} test images "
            f"of {shape}, {self.classes} classes, sha256 {self.sha256[:12]}"
        )


def load(
    name: str, root: str | Path | None = None, subset: Subset = None, seed: int = 0
) -> Images:
    """Load a data set by name, downloading it on first use.

    Parameters
    ----------
    name : str
        ``"digits"`` (scikit-learn's 1,797 handwritten digits of 8x8, inside its wheel: no
        download), ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"`` or ``"cifar100"``
        (through torchvision); or any other name for which ``<root>/<name>.npz`` is there.
    root : path or None
        Folder that keeps ``<name>.npz``: four arrays ``train_images, train_labels,
        test_images, test_labels``, images uint8 (N, H, W, C), labels int64 (N,). Putting such
        a file there by hand serves a machine without a network. None: the environment
        variable ``LANDSCAPE_DATA``, else the user's cache folder.
    subset : int, (int, int) or None
        Keep so many training examples, or (training, test) examples, each class in
        proportion; chosen by `seed`.
    seed : int
        Chooses the subset, and nothing else.

    Returns
    -------
    Images

    Raises
    ------
    ValueError
        Unknown name, a damaged file, or a subset that does not fit.
    ConnectionError
        The data are not there and cannot be downloaded.

    Examples
    --------
    >>> print(load("digits", subset=(500, 100)))  # doctest: +ELLIPSIS
    digits: 500 training and 100 test images of 1x8x8, 10 classes, sha256 ...
    """
    arrays = _digits() if name == "digits" else _cached(name, _folder(root))
    return _from_arrays(name, arrays, subset, seed)


def images(
    train: Any,
    test: Any,
    *,
    name: str = "images",
    subset: Subset = None,
    seed: int = 0,
) -> Images:
    """Bring your own images: arrays, tensors or torch data sets.

    Parameters
    ----------
    train, test : (images, labels) or torch.utils.data.Dataset
        Arrays (NumPy) are (N, H, W) or (N, H, W, C), tensors (torch) (N, H, W) or
        (N, C, H, W); any real type. A data set gives (image tensor (C, H, W), label) pairs
        and is read once. Labels are integers from 0.
    name : str
        For titles and records.
    subset, seed
        As in :func:`load`.

    Returns
    -------
    Images

    Raises
    ------
    ValueError
        If the arrays do not fit together.

    Examples
    --------
    >>> x, y = np.random.rand(20, 8, 8), np.arange(20) % 2
    >>> images((x, y), (x[:4], y[:4])).input_shape
    (1, 8, 8)
    """
    arrays: Arrays = {}
    for part, source in (("train", train), ("test", test)):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = _as_arrays(source, part)
    _check_arrays(arrays, name)
    return _from_arrays(name, arrays, subset, seed)


# --- where the arrays come from --------------------------------------------------------------


def _folder(root: str | Path | None) -> Path:
    chosen = root or os.environ.get("LANDSCAPE_DATA") or user_cache_dir("landscape_core")
    folder = Path(chosen).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the data folder must be a folder, got the file {folder}")
    return folder


def _digits() -> Arrays:
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]  # (1797, 8, 8, 1), values 0 to 16
    labels = bunch.target.astype(np.int64)
    rows = np.arange(len(labels))
    # The set has no official split: this one, a fifth for testing, is fixed once and for all.
    train, test = train_test_split(rows, test_size=360, stratify=labels, random_state=0)
    return dict(
        zip(KEYS, (images[train], labels[train], images[test], labels[test]), strict=True)
    )


def _cached(name: str, folder: Path) -> Arrays:
    path = folder / f"{name}.npz"
    if not path.exists():
        if name not in DOWNLOADS:
            known = ", ".join(["digits", *DOWNLOADS])
            raise ValueError(f"there is no data set {name!r}: there are {known}, and no {path}")
        _keep(path, _download(name, path))
    return _read(path)


def _read(path: Path) -> Arrays:
    remedy = "delete it to download it again, or put a good copy in its place"
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in KEYS if key in file}
    except (BadZipFile, EOFError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise ValueError(f"{path} lacks the arrays {missing}: {remedy}")
    for part in ("train", "test"):
        pixels, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
            raise ValueError(
                f"{path} must hold {part}_images as uint8 (N, H, W, C) with 1 or 3 channels, "
                f"got {pixels.dtype} {pixels.shape}: {remedy}"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{path} must hold {part}_labels as int64, got {labels.dtype}")
        arrays[f"{part}_labels"] = labels.astype(np.int64)
    _check_arrays(arrays, str(path))
    return arrays


def _keep(path: Path, arrays: Arrays) -> None:
    """Write all of the file or nothing: under another name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _download(name: str, path: Path) -> Arrays:
    kind: Callable[..., Any] = getattr(torchvision_datasets(), DOWNLOADS[name])
    with tempfile.TemporaryDirectory(prefix=f"{name}-download-") as temporary:
        try:
            parts = [kind(temporary, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            reason = str(error).strip().splitlines()[0]
            raise ConnectionError(
                f"{path} is not there and {name} could not be downloaded ({reason}): connect "
                f"to the network, or put that file there, with the arrays {', '.join(KEYS)}"
            ) from error
    arrays: Arrays = {}
    for part, dataset in zip(("train", "test"), parts, strict=True):
        pixels = np.asarray(dataset.data, dtype=np.uint8)
        arrays[f"{part}_images"] = pixels if pixels.ndim == 4 else pixels[..., None]
        arrays[f"{part}_labels"] = np.asarray(dataset.targets, dtype=np.int64)
    return arrays


def _as_arrays(source: Any, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Bring a user's images to (N, H, W, C) and labels to int64 (N,)."""
    if isinstance(source, Dataset):
        pairs = [source[i] for i in range(len(source))]  # type: ignore[arg-type]
        source = (
            torch.stack([torch.as_tensor(image) for image, _ in pairs]),
            [torch.as_tensor(label).item() for _, label in pairs],
        )
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise ValueError(f"{part} must be (images, labels) or a torch Dataset")
    pixels, labels = source
    if isinstance(pixels, Tensor):
        if pixels.ndim == 4 and _ends_in_channels(*pixels.shape[1:]):
            shape = tuple(pixels.shape)
            raise ValueError(f"{part} images must be tensors (N, C, H, W), got shape {shape}")
        array = np.asarray(pixels.permute(0, 2, 3, 1) if pixels.ndim == 4 else pixels)
    else:
        array = np.asarray(pixels)
        if array.ndim == 4 and array.shape[3] > 4 and array.shape[1] in (1, 3, 4):
            raise ValueError(
                f"{part} images must be arrays (N, H, W, C), got shape {array.shape}"
            )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4:
        raise ValueError(
            f"{part} images must be (N, H, W), arrays (N, H, W, C) or tensors (N, C, H, W), "
            f"got shape {array.shape}"
        )
    given = np.asarray(labels)
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{part} labels must be integers from 0, got {given.dtype}")
    return array, given.astype(np.int64)


def _ends_in_channels(a: int, b: int, c: int) -> bool:
    """Whether these are the height, width and channels of an image, in this order."""
    return a > 4 and b > 4 and (c == 3 or (a == b and c in (1, 4)))


def _check_arrays(arrays: Mapping[str, np.ndarray], where: str) -> None:
    for part in ("train", "test"):
        pixels, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if np.iscomplexobj(pixels) or not np.isfinite(pixels).all():
            raise ValueError(f"{where}: {part} images must be real and finite")
        if len(pixels) == 0 or labels.shape != (len(pixels),):
            raise ValueError(
                f"{where}: {part} needs one label for each image and at least one image, "
                f"got {len(pixels)} images and labels of shape {labels.shape}"
            )
        if labels.min() < 0:
            raise ValueError(f"{where}: {part} labels must be 0 or more, got {labels.min()}")
    shapes = arrays["train_images"].shape[1:], arrays["test_images"].shape[1:]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{where}: training and test images differ in shape: {shapes}")


# --- from arrays to tensors ------------------------------------------------------------------


def _from_arrays(name: str, arrays: Arrays, subset: Subset, seed: int) -> Images:
    digest = hashlib.sha256()
    for key in KEYS:
        digest.update(np.ascontiguousarray(arrays[key]).data)
    note_data(name, digest.hexdigest())
    mean, std = _channel_statistics(arrays["train_images"])
    sizes = _subset_sizes(subset)
    splits = {}
    for part, size in zip(("train", "test"), sizes, strict=True):
        pixels, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        rows = _stratified(labels, size, seed, part)
        inputs = _normalize(pixels[rows], mean, std)
        splits[part] = Split(inputs, torch.from_numpy(labels[rows]))
    return Images(
        name=name,
        train=splits["train"],
        test=splits["test"],
        classes=1 + int(max(arrays["train_labels"].max(), arrays["test_labels"].max())),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        sha256=digest.hexdigest(),
    )


def _subset_sizes(subset: Subset) -> tuple[int | None, int | None]:
    sizes = tuple(subset) if isinstance(subset, list | tuple) else (subset, None)
    whole = all(size is None or isinstance(size, int | np.integer) for size in sizes)
    if len(sizes) != 2 or not whole:
        raise ValueError(f"subset must be a number, (training, test) or None, got {subset!r}")
    return sizes


def _channel_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, shape (C,), without a float copy of all."""
    count = pixels[..., 0].size
    blocks = np.array_split(pixels, max(1, len(pixels) // 4096))
    total = sum(block.sum(axis=(0, 1, 2), dtype=np.float64) for block in blocks)
    mean = np.asarray(total) / count
    squares = sum(
        np.square(block.astype(np.float64) - mean).sum(axis=(0, 1, 2)) for block in blocks
    )
    std = np.sqrt(np.asarray(squares) / count)
    return mean, np.where(std > 0, std, 1.0)


def _normalize(pixels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    scaled = (pixels.astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32)
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)


def _stratified(labels: np.ndarray, size: int | None, seed: int, part: str) -> np.ndarray:
    """Row numbers of a subset with each class in proportion, in the data's order."""
    rows = np.arange(len(labels))
    if size is None or size == len(labels):
        return rows
    classes = len(np.unique(labels))
    if not classes <= size <= len(labels) - classes:
        raise ValueError(
            f"a {part} subset must hold from {classes} (one a class) to "
            f"{len(labels) - classes} examples, or all {len(labels)}; got {size}"
        )
    kept, _ = train_test_split(rows, train_size=size, stratify=labels, random_state=seed)
    return np.sort(kept)

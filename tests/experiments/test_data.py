"""Data sets: read whole or not at all, subsets in proportion, errors that name the remedy."""

import os

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import landscape_core as lc
from landscape_core.experiments import data as module


def arrays(train=40, test=20, channels=3):
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", train), ("test", test)):
        made[f"{part}_images"] = rng.integers(0, 256, (count, 6, 5, channels), dtype=np.uint8)
        made[f"{part}_labels"] = np.arange(count) % 4
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    np.savez(tmp_path / "cifar10.npz", **arrays())
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path))
    return tmp_path


def test_digits_are_all_there_and_always_the_same():
    data = lc.load("digits")
    assert data.input_shape == (1, 8, 8)
    assert (data.train.examples, data.test.examples, data.classes) == (1437, 360, 10)
    assert data.sha256 == lc.load("digits", subset=(100, 100), seed=5).sha256
    assert torch.equal(data.train.inputs, lc.load("digits").train.inputs)


def test_offline_copies_are_read_from_the_folder_in_the_environment(folder):
    data = lc.load("cifar10")
    assert data.input_shape == (3, 6, 5)
    assert (data.train.examples, data.test.examples, data.classes) == (40, 20, 4)
    assert torch.equal(lc.load("cifar10", root=folder).test.targets, data.test.targets)
    raw = arrays()["train_images"]
    back = data.train.inputs.permute(0, 2, 3, 1) * torch.tensor(data.std) + torch.tensor(
        data.mean
    )
    np.testing.assert_allclose(back.numpy(), raw, atol=1e-3)


def test_training_images_are_normalized_per_channel():
    data = lc.images((arrays()["train_images"], arrays()["train_labels"]),
                     (arrays()["test_images"], arrays()["test_labels"]))  # fmt: skip
    torch.testing.assert_close(
        data.train.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0
    )
    std = data.train.inputs.std((0, 2, 3), correction=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-5, rtol=0)


def test_subsets_keep_classes_in_proportion_and_follow_the_seed():
    whole = lc.load("digits")
    first, again, other = (lc.load("digits", subset=(500, 100), seed=s) for s in (0, 0, 1))
    shares = torch.bincount(first.train.targets) / 500
    expected = torch.bincount(whole.train.targets) / 1437
    assert float((shares - expected).abs().max()) < 0.004
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert first.mean == whole.mean  # the normalization is that of the whole set


def test_own_data_enter_as_arrays_tensors_or_a_data_set():
    x, y = torch.rand(12, 2, 5, 4), torch.arange(12) % 3
    as_tensors = lc.images((x, y), (x, y))
    as_arrays = lc.images((x.permute(0, 2, 3, 1).numpy(), y.numpy()), (x, y))
    as_set = lc.images(TensorDataset(x, y), TensorDataset(x, y))
    for data in (as_arrays, as_set):
        torch.testing.assert_close(data.train.inputs, as_tensors.train.inputs)
        assert data.input_shape == (2, 5, 4)


def test_batches_cover_everything_in_order():
    split = lc.load("digits").test
    batches = split.batches(100)
    assert [len(y) for _, y in batches] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([y for _, y in batches]), split.targets)


@pytest.mark.parametrize("keep", [0, 10, 400, 4000])
def test_a_truncated_file_is_named_with_its_remedy(folder, keep):
    path = folder / "cifar10.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cifar10.npz is damaged .*delete it"):
        lc.load("cifar10")


def test_a_flipped_byte_is_noticed(folder):
    path = folder / "cifar10.npz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        lc.load("cifar10")


def test_files_with_other_contents_are_refused(folder):
    np.savez(folder / "cifar10.npz", train_images=np.zeros(3))
    with pytest.raises(ValueError, match="lacks the arrays"):
        lc.load("cifar10")
    np.savez(folder / "cifar10.npz", **{**arrays(), "train_labels": np.arange(3)})
    with pytest.raises(ValueError, match="one label for each image"):
        lc.load("cifar10")
    np.savez(folder / "cifar10.npz", **{**arrays(), "train_images": np.zeros((40, 6, 5, 3))})
    with pytest.raises(ValueError, match="uint8"):
        lc.load("cifar10")


def test_without_a_network_one_sentence_names_both_remedies(tmp_path, monkeypatch):
    class Offline:
        class MNIST:
            def __init__(self, *_, **__):
                raise OSError("no route to host")

    monkeypatch.setattr(module, "torchvision_datasets", lambda: Offline)
    with pytest.raises(ConnectionError, match=r"no route.*connect to the network, or put that"):
        lc.load("mnist", root=tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_download_is_kept_and_read_from_then_on(tmp_path, monkeypatch):
    calls = []

    class Online:
        class MNIST:
            def __init__(self, root, *, train, download):
                calls.append(train)
                made = arrays(channels=1)
                part = "train" if train else "test"
                self.data = torch.as_tensor(made[f"{part}_images"][..., 0])
                self.targets = torch.as_tensor(made[f"{part}_labels"])

    monkeypatch.setattr(module, "torchvision_datasets", lambda: Online)
    first = lc.load("mnist", root=tmp_path)
    second = lc.load("mnist", root=tmp_path)
    assert calls == [True, False]
    assert os.listdir(tmp_path) == ["mnist.npz"]
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert first.input_shape == (1, 6, 5)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        module._keep(tmp_path / "mnist.npz", arrays())
    assert os.listdir(tmp_path) == []


def test_torchvision_knows_every_data_set_that_is_offered():
    datasets = module.torchvision_datasets()
    for name in module.DOWNLOADS.values():
        assert hasattr(datasets, name)


def test_any_other_file_of_the_folder_is_read_by_its_name(folder):
    np.savez(folder / "mine.npz", **arrays(channels=1))
    assert lc.load("mine").input_shape == (1, 6, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lc.load("minst"), "there is no data set 'minst': there are digits, mnist"),
        (lambda: lc.load("digits", subset=3), "from 10 .one a class. to 1427 examples.*got 3"),
        (lambda: lc.load("digits", subset=5000), "or all 1437; got 5000"),
        (lambda: lc.images((np.zeros((3, 4)), [0, 1, 2]), 0), "got shape"),
        (
            lambda: lc.images((np.zeros((3, 4, 4)), [0.5, 1, 2]), 0),
            "integers from 0, got float64",
        ),
        (
            lambda: lc.images((torch.zeros(9, 32, 32, 3), range(9)), 0),
            r"must be tensors \(N, C, H, W\), got shape \(9, 32, 32, 3\)",
        ),
        (
            lambda: lc.images((torch.zeros(9, 32, 64, 3), range(9)), 0),
            r"must be tensors \(N, C, H, W\), got shape \(9, 32, 64, 3\)",
        ),
        (
            lambda: lc.images(TensorDataset(torch.zeros(3, 1, 8, 8), torch.rand(3)), 0),
            "labels must be integers from 0, got float",
        ),
        (
            lambda: lc.images((np.zeros((9, 3, 8, 8)), range(9)), 0),
            r"arrays \(N, H, W, C\), got shape \(9, 3, 8, 8\)",
        ),
        (lambda: lc.images(7, 7), "train must be .images, labels. or a torch Dataset"),
        (lambda: lc.load("digits").train.batches(0), "batch size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "shape", [(8, 1, 100), (16, 4, 4), (16, 100, 1), (3, 8, 8), (64, 3, 3)]
)
def test_tensors_of_odd_sizes_are_taken_as_they_are(shape):
    x, y = torch.randn(20, *shape), torch.arange(20) % 2
    assert lc.images((x, y), (x, y)).input_shape == shape

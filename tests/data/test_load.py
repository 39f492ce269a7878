import gzip
import hashlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from trainability.data import load
from trainability.data.augment import Augmentation, CropFlip, usual_augmentation
from trainability.data.pln import PLN, per_location_normalize
from trainability.data.sources import cifar, idx
from trainability.errors import ArgumentError, ArgumentTypeError, DataError


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """Small files in the official layout, whose checksums stand in for the official ones."""
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": random.integers(0, 256, (10_020, 4, 4), dtype=np.uint8),
        "train-labels-idx1-ubyte": random.integers(0, 10, 10_020, dtype=np.uint8),
        "t10k-images-idx3-ubyte": random.integers(0, 256, (30, 4, 4), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": random.integers(0, 10, 30, dtype=np.uint8),
    }
    sums = {name: write_idx(folder / f"{name}.gz", array) for name, array in arrays.items()}
    monkeypatch.setitem(idx._IDX, "mnist", idx._Idx("MNIST/raw", "ylecun/mnist", sums))
    return tmp_path, arrays


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = load("digits")
    images = torch.cat([part.inputs for part in (data.train, data.val, data.test)])
    labels = torch.cat([part.targets for part in (data.train, data.val, data.test)])
    bunch = load_digits()
    assert sorted(labels.tolist()) == sorted(bunch.target.tolist())
    assert images.double().mul(16 / 255).round().sum().item() == bunch.images.sum()


def test_splits_are_seeded_disjoint_and_recorded():
    a, b, c = load("digits"), load("digits"), load("digits", split_seed=1)
    assert torch.equal(a.val.inputs, b.val.inputs)
    assert not torch.equal(a.val.inputs, c.val.inputs)
    assert c.describe()["split_seed"] == 1
    assert len(a.train) + len(a.val) + len(a.test) == 1797


def test_inputs_are_normalized():
    data = load("digits")
    x = data.inputs(data.train.inputs)
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std().item() == pytest.approx(1, abs=1e-3)
    assert data.train.inputs.dtype == torch.uint8


def test_official_files_are_read(mnist):
    folder, arrays = mnist
    data = load("mnist", folder)
    assert (len(data.train), len(data.val), len(data.test)) == (20, 10_000, 30)
    assert np.array_equal(data.test.inputs.squeeze(1).numpy(), arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(data.test.targets.numpy(), arrays["t10k-labels-idx1-ubyte"])


def test_damaged_and_missing_files_are_named(mnist):
    folder, _ = mnist
    file = folder / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz") as caught:
        load("mnist", folder)
    assert caught.value.code == "file-damaged"
    file.unlink()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz") as caught:
        load("mnist", folder)
    assert caught.value.code == "file-missing"


def test_unknown_data_and_no_folder():
    with pytest.raises(DataError) as caught:
        load("cifar")
    assert caught.value.code == "unknown-choice"
    with pytest.raises(DataError) as caught:
        load("digits", hub=True)
    assert caught.value.code == "does-not-apply"
    with pytest.raises(DataError) as caught:
        load("mnist")
    assert caught.value.code == "missing-setting"


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files(name):
    data = load(name, ".data")
    assert (len(data.train), len(data.val), len(data.test)) == (50_000, 10_000, 10_000)
    assert data.shape == (1, 28, 28)
    assert torch.bincount(data.test.targets)[1] == {"mnist": 1135, "fashion-mnist": 1000}[name]


@pytest.mark.real_data
def test_the_real_cifar():
    if not Path(".data/cifar-10-batches-py").is_dir():
        pytest.skip("the official CIFAR-10 files are not under .data")
    data = load("cifar10", ".data")
    assert data.shape == (3, 32, 32)
    assert torch.bincount(data.test.targets).tolist() == [1000] * 10
    assert data.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)  # of all 50,000, widely published


def write_cifar(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=4))
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar_is_read_without_running_code(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (10_004, 3072), dtype=np.uint8)
    labels = random.integers(0, 10, 10_004).tolist()
    folder = tmp_path / "cifar-10-batches-py"
    halves = {
        "data_batch_1": {b"data": pixels[:6000], b"labels": labels[:6000]},
        "data_batch_2": {b"data": pixels[6000:], b"labels": labels[6000:]},
        "test_batch": {b"data": pixels[:5], b"labels": labels[:5]},
    }
    sums = {name: write_cifar(folder / name, content) for name, content in halves.items()}
    spec = cifar.Cifar(
        "cifar-10-batches-py",
        "uoft-cs/cifar10",
        10,
        b"labels",
        {k: v for k, v in sums.items() if k != "test_batch"},
        {"test_batch": sums["test_batch"]},
    )
    monkeypatch.setitem(cifar.CIFAR, "cifar10", spec)
    data = load("cifar10", tmp_path)
    assert torch.equal(data.test.inputs, torch.from_numpy(pixels[:5]).view(5, 3, 32, 32))
    assert data.test.targets.tolist() == labels[:5]
    assert (len(data.train), len(data.val)) == (4, 10_000)
    harmful = {b"data": Path("x"), b"labels": [1]}
    monkeypatch.setitem(spec.test, "test_batch", write_cifar(folder / "test_batch", harmful))
    with pytest.raises(DataError) as caught:
        load("cifar10", tmp_path)
    assert caught.value.code == "file-damaged"
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match=r"data_batch_2") as caught:
        load("cifar10", tmp_path)
    assert caught.value.code == "file-missing"


def test_per_location_normalization():
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    x[0, :, 1, 2] = 0
    for append, channels in (("one", 4), ("size", 4), (None, 3)):
        y = per_location_normalize(x, append)
        assert y.shape == (5, channels, 4, 4)
        size = (y.numpy() ** 2).mean(1)
        size[0, 1, 2] = 1 if append is None or append == "size" else size[0, 1, 2]
        assert size == pytest.approx(np.ones((5, 4, 4)))
    by_hand = np.concatenate([x.numpy(), np.ones((5, 1, 4, 4))], 1)
    by_hand /= np.sqrt((by_hand**2).mean(1, keepdims=True))
    assert PLN()(x).numpy() == pytest.approx(by_hand)
    assert torch.equal(per_location_normalize(x.movedim(1, -1), dim=-1).movedim(-1, 1), PLN()(x))
    with pytest.raises(ArgumentError) as caught:
        PLN("two")
    assert caught.value.code == "unknown-choice"
    with pytest.raises(ArgumentTypeError) as caught:
        per_location_normalize(torch.ones(2, 3, dtype=torch.long))
    assert caught.value.code == "input-dtype"
    with pytest.raises(ArgumentError) as caught:
        per_location_normalize(x, dim=4)
    assert caught.value.code == "input-shape"


def test_a_data_set_with_per_location_normalization():
    data = load("digits", pln=True)
    x = data.inputs(data.train.inputs[:7])
    assert data.shape == (2, 8, 8) == tuple(x.shape[1:])
    assert x.square().mean(1).numpy() == pytest.approx(np.ones((7, 8, 8)), rel=1e-5)
    assert data.describe()["pln"]


def test_hub_rows_become_splits(monkeypatch):
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (10_010, 3, 3), dtype=np.uint8)
    rows = datasets.Dataset.from_dict(
        {"image": [image.fromarray(p) for p in pixels], "label": [i % 10 for i in range(len(pixels))]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)}),
    )
    asked = []
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name: asked.append(name) or {"train": rows, "test": rows.select(range(20))},
    )
    data = load("mnist", hub=True)
    assert asked == ["ylecun/mnist"]
    assert np.array_equal(data.test.inputs.squeeze(1).numpy(), pixels[:20])
    assert data.test.targets.tolist() == [i % 10 for i in range(20)]


def test_hub_without_network_or_library(monkeypatch):
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda name: (_ for _ in ()).throw(ConnectionError("no route"))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(DataError) as caught:
        load("mnist", hub=True)
    assert caught.value.code == "hub"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as caught:
        load("mnist", hub=True)
    assert caught.value.code == "missing-extra"


STILL = Augmentation(degrees=0, translate=0, scale=(1, 1), brightness=0, contrast=0)


def test_augmentation_of_nothing_is_the_identity():
    images = torch.rand(5, 2, 9, 7)
    torch.testing.assert_close(STILL(images, torch.Generator()), images)


def test_augmentation_rotates_scales_and_shifts_within_its_bounds():
    """The centroid of a bright disc on the right tells what the affine map did."""
    size = 65
    axis = torch.arange(size) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    disc = (((x - 16) ** 2 + y**2) < 9).float().expand(300, 1, size, size).clone()

    def centroid(augmentation: Augmentation) -> tuple[torch.Tensor, torch.Tensor]:
        out = augmentation(disc, torch.Generator().manual_seed(0)).squeeze(1)
        mass = out.sum((1, 2))
        return (out * x).sum((1, 2)) / mass, (out * y).sum((1, 2)) / mass

    cx, cy = centroid(Augmentation(degrees=20, translate=0, scale=(1, 1), brightness=0, contrast=0))
    angle = torch.atan2(cy, cx).rad2deg()
    assert angle.abs().max() < 20.5
    assert angle.min() < -17
    assert angle.max() > 17
    torch.testing.assert_close(torch.hypot(cx, cy), torch.full((300,), 16.0), atol=0.2, rtol=0)
    cx, cy = centroid(Augmentation(degrees=0, translate=0, scale=(0.9, 1.1), brightness=0, contrast=0))
    assert 14.3 < cx.min() < 14.8
    assert 17.2 < cx.max() < 17.7
    cx, cy = centroid(Augmentation(degrees=0, translate=0.1, scale=(1, 1), brightness=0, contrast=0))
    assert (cx - 16).abs().max() < 6.6
    assert (cx - 16).abs().max() > 5.5


def test_augmentation_brightness_contrast_and_seed():
    images = 0.5 * torch.rand(200, 1, 8, 8)
    bright = Augmentation(degrees=0, translate=0, scale=(1, 1), brightness=0.2, contrast=0)(
        images, torch.Generator().manual_seed(0)
    )
    ratio = (bright / images).mean((1, 2, 3))
    assert 0.8 <= ratio.min() < 0.82
    assert 1.18 < ratio.max() <= 1.2001
    one, two = (Augmentation()(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    flipped = Augmentation(degrees=0, translate=0, scale=(1, 1), brightness=0, contrast=0, flip=True)(
        images, torch.Generator().manual_seed(0)
    )
    mirrored = (flipped - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    kept = (flipped - images).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored ^ kept).all()
    assert 60 < mirrored.sum() < 140


def test_nothing_need_be_held_out():
    whole = load("digits", held_out=0)
    assert (len(whole.train), len(whole.val), len(whole.test)) == (1437, 0, 360)
    with pytest.raises(DataError, match=r"1437") as caught:
        load("digits", held_out=1437)
    assert caught.value.code == "out-of-range"


def test_crops_are_windows_of_the_padded_image_and_half_are_mirrored():
    images = torch.rand(400, 3, 6, 5) + 0.1
    out = CropFlip(padding=2)(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    counts = {}
    for image, source in zip(out, padded, strict=True):
        found = [
            (flip, row, column)
            for flip in (False, True)
            for row in range(5)
            for column in range(5)
            if torch.equal(image.flip(-1) if flip else image, source[:, row : row + 6, column : column + 5])
        ]
        assert found
        counts[found[0]] = counts.get(found[0], 0) + 1
    assert len(counts) == 50  # every window, in both directions
    assert 150 < sum(n for (flip, _, _), n in counts.items() if flip) < 250
    assert torch.equal(CropFlip(0, flip=False)(images, torch.Generator()), images)
    assert isinstance(usual_augmentation("cifar10"), CropFlip)
    assert usual_augmentation("fashion-mnist").flip
    assert not usual_augmentation("mnist").flip


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")

    def paint(path, color, size=(20, 10)):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", size, color).save(path)

    for number, name in enumerate(("ant", "bee", "cat")):
        for k in range(6):
            paint(tmp_path / "train" / name / "images" / f"{k}.png", (80 * number, 10 * k, 7))
    return tmp_path, paint


def test_a_folder_of_images_is_a_data_set(pictures):
    folder, paint = pictures
    for number, name in enumerate(("ant", "bee", "cat")):
        paint(folder / "val" / name / "x.png", (80 * number, 255, 7), (8, 30))
    data = load("folder", folder, image_size=8, held_out=2)
    assert (data.classes, data.shape, len(data.train), len(data.val), len(data.test)) == (3, (3, 8, 8), 16, 2, 3)
    assert data.test.inputs[:, :, 4, 4].tolist() == [[0, 255, 7], [80, 255, 7], [160, 255, 7]]
    assert torch.equal(data.train.inputs[:, 0, 0, 0].long(), 80 * data.train.targets)
    some = load("folder", folder, image_size=8, classes=2, per_class=3, held_out=0)
    assert (some.classes, len(some.train), len(some.test)) == (2, 6, 2)


def test_a_folder_in_the_layout_of_tiny_imagenet(pictures):
    folder, paint = pictures
    paint(folder / "val" / "images" / "v0.png", (1, 2, 3))
    paint(folder / "val" / "images" / "v1.png", (4, 5, 6))
    (folder / "val" / "val_annotations.txt").write_text("v0.png\tcat\t0\t0\t1\t1\nv1.png\tant\t0\t0\t1\t1\n")
    data = load("folder", folder, image_size=4, held_out=0)
    assert data.test.targets.tolist() == [2, 0]
    assert data.test.inputs[:, :, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_folder_without_test_images_gives_some_of_its_own(pictures):
    folder, _ = pictures
    data = load("folder", folder / "train", image_size=4)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 1, 1)


def test_folders_that_cannot_be_read(pictures):
    folder, _ = pictures
    with pytest.raises(DataError) as caught:
        load("folder")
    assert caught.value.code == "missing-setting"
    with pytest.raises(DataError) as caught:
        load("folder", folder / "nothing")
    assert caught.value.code == "folder-layout"
    with pytest.raises(DataError) as caught:
        load("folder", folder / "train" / "ant")
    assert caught.value.code == "folder-layout"
    with pytest.raises(DataError) as caught:
        load("folder", folder, classes=4)
    assert caught.value.code == "out-of-range"
    with pytest.raises(DataError) as caught:
        load("folder", folder, per_class=0)
    assert caught.value.code == "out-of-range"
    with pytest.raises(DataError) as caught:
        load("digits", image_size=8)
    assert caught.value.code == "does-not-apply"
    (folder / "val" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match=r"'ant'") as caught:
        load("folder", folder)
    assert caught.value.code == "folder-layout"
    (folder / "val" / "val_annotations.txt").write_text("0.png cat\n")
    with pytest.raises(DataError, match=r"val_annotations") as caught:
        load("folder", folder)
    assert caught.value.code == "folder-layout"
    (folder / "train").rename(folder / "other")
    with pytest.raises(DataError) as caught:
        load("folder", folder)
    assert caught.value.code == "folder-layout"
    (folder / "other").rename(folder / "train")
    (folder / "train" / "bee" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png") as caught:
        load("folder", folder / "train")
    assert caught.value.code == "file-unreadable"

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eeg_gan.config import UserError
from eeg_gan.metrics import detectors, inception
from eeg_gan.metrics.detectors import (
    DETECTORS,
    DetectorConfig,
    ResNet56,
    SmallClassifier,
    SqueezeNet,
    augmented,
    build_detector,
    fit_classifier,
)


def pictures(n, size=16):
    """Class 0 has a bright left half, class 1 a bright upper half."""
    images = torch.randint(0, 80, (n, 3, size, size), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    labels = torch.arange(n) % 2
    images[labels == 0, :, :, : size // 2] += 120
    images[labels == 1, :, : size // 2] += 120
    return images, labels


def test_every_detector_has_its_name():
    assert {name: cls.name for name, cls in DETECTORS.items()} == {name: name for name in DETECTORS}
    assert DetectorConfig.__annotations__["name"].__args__ == tuple(DETECTORS)


@pytest.mark.parametrize("half", [False, True])
def test_classifier_learns_repeats_itself_and_returns_from_a_file(tmp_path, half):
    images, labels = pictures(64)

    def fitted():
        torch.manual_seed(0)
        model = SmallClassifier(2, image_size=16)
        return fit_classifier(model, images, labels, steps=25, batch=32, seed=1, half=half)

    model = fitted()
    test_images, test_labels = pictures(40)
    features, logits = model(test_images)
    assert features.shape == (40, 128)
    assert (logits.argmax(1) == test_labels).float().mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fitted().parameters(), strict=True))
    save_file(model.state_dict(), tmp_path / "judge.safetensors")
    again = build_detector(DetectorConfig(weights=str(tmp_path / "judge.safetensors"), image_size=16))
    torch.testing.assert_close(again(test_images)[1], logits)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_classifier_takes_images_of_other_sizes(size):
    features, logits = SmallClassifier(3, image_size=size)(torch.zeros(2, 3, 40, 28, dtype=torch.uint8))
    assert features.shape == (2, 128) and logits.shape == (2, 3)


def test_augmented_moves_the_picture_and_repeats_its_edge():
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).view(1, 1, 1, 16).expand(32, 3, 16, 16)
    moved = augmented(ramp, torch.Generator().manual_seed(0), shift=0.125, noise=0.0)
    shifts = {int((row[0, 8, 8].item() - 80) / 10) for row in moved}
    assert shifts == {-2, -1, 0, 1, 2}
    assert moved.dtype == torch.uint8 and (moved[:, :, :, 1:] >= moved[:, :, :, :-1]).all()


def test_resnet56_is_the_published_network(tmp_path):
    model = ResNet56().eval()
    assert sum(p.numel() for p in model.parameters()) == 853018  # 0.85 M in the paper's table 6
    keys = model.state_dict().keys()
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.8.bn2.bias", "linear.weight"} <= keys
    assert not any("shortcut" in key for key in keys)  # option A has no weights
    save_file(model.state_dict(), tmp_path / "resnet56.safetensors")
    again = build_detector(DetectorConfig(name="resnet56", weights=str(tmp_path / "resnet56.safetensors")))
    images, _ = pictures(3, size=48)
    features, logits = again(images)
    assert features.shape == (3, 64) and logits.shape == (3, 10) and not again.training
    torch.testing.assert_close(logits, model(images)[1])


def test_weights_that_are_missing_or_wrong_are_explained(tmp_path):
    with pytest.raises(UserError, match="resnet56-4bfd9763.th"):
        build_detector(DetectorConfig(name="resnet56"))
    with pytest.raises(UserError, match="no such detector weights"):
        build_detector(DetectorConfig(weights=str(tmp_path / "none.safetensors")))
    (tmp_path / "old.th").write_bytes(b"pickle")
    with pytest.raises(UserError, match="safetensors only.*convert it by"):
        build_detector(DetectorConfig(weights=str(tmp_path / "old.th")))
    (tmp_path / "bad.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        build_detector(DetectorConfig(weights=str(tmp_path / "bad.safetensors")))
    save_file(SmallClassifier(2).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not weights of the resnet56"):
        build_detector(DetectorConfig(name="resnet56", weights=str(tmp_path / "other.safetensors")))


def test_inception_says_where_its_file_goes_when_there_is_no_network(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="no route to host.*weights-inception-2015-12-05-6726825d.pth.*checkpoints"):
        build_detector(DetectorConfig(name="inception"))
    with pytest.raises(UserError, match="no such detector weights; download https"):
        build_detector(DetectorConfig(name="inception", weights=str(tmp_path / "none.pth")))


def test_inception_refuses_a_file_that_could_run_code(tmp_path):
    torch.save({"weights": detectors.SmallClassifier(2)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="not a plain file of tensors"):
        build_detector(DetectorConfig(name="inception", weights=str(tmp_path / "bad.pth")))


@pytest.mark.parametrize("size", [32, 64])
def test_squeezenet_is_the_published_network(tmp_path, size):
    model = SqueezeNet(size).eval()
    assert sum(p.numel() for p in model.parameters()) == 722_496  # 1,235,496 less the classifier's 513,000
    keys = model.state_dict().keys()
    assert {"features.0.weight", "features.12.expand3x3.bias"} <= keys and len(keys) == 50
    save_file(model.state_dict(), tmp_path / "squeezenet.safetensors")
    given = DetectorConfig("squeezenet", str(tmp_path / "squeezenet.safetensors"), image_size=size)
    images, _ = pictures(3, size=48)
    features, logits = build_detector(given)(images)
    assert features.shape == (3, 512) and logits.shape == (3, 0)
    torch.testing.assert_close(features, model(images)[0])
    assert [m.shape[1] for m in model.maps(images)] == [64, 128, 256, 512]


def test_squeezenet_takes_blue_first_and_grey_means():
    model, grey = SqueezeNet(32), torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    bias = model.features["0"].bias.relu().view(1, -1, 1, 1)
    torch.testing.assert_close(model.maps(grey)[0], bias.expand(1, 64, 15, 15))


@pytest.mark.skipif(not os.environ.get("EEG_GAN_REAL_DATA"), reason="EEG_GAN_REAL_DATA does not name the folder")
def test_the_real_squeezenet_is_read_after_conversion(tmp_path):
    given = Path(os.environ["EEG_GAN_REAL_DATA"], "weights", "squeezenet1_1_notop.pth")
    words = detectors.CONVERSION.split('python -c "')[1].split('" IN.th')[0]
    subprocess.run([sys.executable, "-c", words, str(given), str(tmp_path / "s.safetensors")], check=True)
    detector = build_detector(DetectorConfig("squeezenet", str(tmp_path / "s.safetensors"), label="squeezenet"))
    features, _ = detector(pictures(4)[0])
    assert features.shape == (4, 512) and (features >= 0).all() and 0 < features.mean() < 100


class Script(torch.nn.Module):
    def forward(self, images):
        return images.float().mean((2, 3)), images.float().amax((2, 3))


def test_a_torchscript_file_judges(tmp_path):
    torch.jit.script(Script()).save(tmp_path / "own.pt")
    features, logits = build_detector(DetectorConfig("torchscript", str(tmp_path / "own.pt")))(pictures(3)[0])
    assert features.shape == logits.shape == (3, 3)
    (tmp_path / "bad.pt").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a TorchScript file"):
        build_detector(DetectorConfig("torchscript", str(tmp_path / "bad.pt")))


@pytest.mark.parametrize("build", [lambda: SmallClassifier(2, 16), ResNet56, lambda: SqueezeNet(32)])
def test_maps_end_in_the_features_and_follow_small_steps(build):
    model, (images, _) = build().eval(), pictures(2)
    torch.testing.assert_close(model.maps(images)[-1].mean((2, 3)), model(images)[0])
    assert not model(images.float() + 0.25)[0].equal(model(images)[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"name": "torchscript"}, "judges by a file"),
        ({"name": "tower", "weights": "openai"}, "belong together"),
        ({"name": "resnet56", "image_size": 32}, "its own size"),
        ({"name": "squeezenet", "image_size": 16}, "32 to 256 pixels"),
    ],
)
def test_configs_that_make_no_sense(words, said):
    with pytest.raises(ValueError, match=said):
        DetectorConfig(**words)


def test_another_inception_file_is_named(tmp_path, caplog):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    inception.weights_file(str(tmp_path / "other.pth"))
    assert "begins with 6726825d" in caplog.text

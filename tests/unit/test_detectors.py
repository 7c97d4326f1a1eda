import pytest
import torch
from safetensors.torch import save_file

from eeg_gan.config import UserError
from eeg_gan.metrics import detectors
from eeg_gan.metrics.detectors import (
    DETECTORS,
    DetectorConfig,
    ResNet56,
    SmallClassifier,
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


def test_classifier_learns_repeats_itself_and_returns_from_a_file(tmp_path):
    images, labels = pictures(64)

    def fitted():
        torch.manual_seed(0)
        return fit_classifier(SmallClassifier(2, image_size=16), images, labels, steps=25, batch=32, seed=1)

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

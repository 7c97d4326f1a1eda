"""What is asked of DeepSpeed and refused before any process starts."""

import json
from types import SimpleNamespace

import pytest
from conftest import ROOT

from eeg_gan.config import UserError, from_dict
from eeg_gan.stages import gan
from eeg_gan.stages.gan_config import AdamConfig
from eeg_gan.training import zero
from eeg_gan.training.engine import EngineConfig
from eeg_gan.training.optim import OptimConfig

SHIPPED = sorted((ROOT / "launch" / "deepspeed").glob("*.json"))


@pytest.fixture(autouse=True)
def fresh():
    zero.launcher_asks.cache_clear()
    yield
    zero.launcher_asks.cache_clear()


def written(folder, **changes):
    given = {**json.loads(SHIPPED[1].read_text()), **changes}
    (folder / "own.json").write_text(json.dumps(given))
    return str(folder / "own.json")


def test_the_shipped_files_are_filled_in():
    assert [path.name for path in SHIPPED] == ["zero1.json", "zero2.json", "zero3.json"]
    for level, path in enumerate(SHIPPED, 1):
        found = zero.read(str(path), None)
        assert found["zero_optimization"]["stage"] == level and found["gradient_clipping"] == 0.0, "never the default 1"
        assert found["gradient_accumulation_steps"] == 1 and found["bf16"] == {"enabled": False}
        assert zero.read(str(path), 0.5)["gradient_clipping"] == 0.5
        assert "auto" not in found.values()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping is 1.0, but optim.clip_norm is None"),
        ({"optimizer": {"type": "Adam"}}, "take optimizer out"),
        ({"scheduler": {}}, "take scheduler out"),
        ({"train_batch_size": 64}, "set train_batch_size to auto"),
        ({"train_micro_batch_size_per_gpu": 8}, "set train_micro_batch_size_per_gpu to auto"),
        ({"gradient_accumulation_steps": 2}, "set gradient_accumulation_steps to auto"),
        ({"fp16": {"enabled": True}}, "fp16 is not offered"),
        ({"zero_optimization": {"stage": 0}}, "stage is 0; it is 1, 2 or 3"),
        ({"zero_optimization": {}}, "stage is None"),
    ],
)
def test_files_that_contradict_the_stage_are_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        zero.read(written(tmp_path, **changes), None)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="launch/deepspeed/ has zero1.json to zero3.json"):
        zero.read(str(tmp_path / "none.json"), None)
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(UserError, match="not a readable DeepSpeed config"):
        zero.read(str(tmp_path / "half.json"), None)


def test_the_launcher_may_ask_too(monkeypatch):
    training, reading = SimpleNamespace(engine=EngineConfig()), SimpleNamespace()
    assert zero.asked(training) is None
    zero.launcher_asks.cache_clear()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="without a file; add --deepspeed_config_file"):
        zero.asked(training)
    zero.launcher_asks.cache_clear()
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "zero2.json")
    assert zero.asked(training) == "zero2.json" and zero.asked(reading) is None
    assert zero.asked(SimpleNamespace(engine=EngineConfig(deepspeed="own.json"))) == "own.json"


@pytest.mark.parametrize(
    "environment, said",
    [({}, "DeepSpeed needs a launcher"), ({"LOCAL_RANK": "0", "ACCELERATE_USE_CPU": "true"}, "leaves DeepSpeed out")],
)
def test_starts_that_would_silently_be_without_deepspeed_are_refused(monkeypatch, environment, said):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        zero.accelerator(SimpleNamespace(engine=EngineConfig(deepspeed=str(SHIPPED[0])), optim=OptimConfig()))


def test_another_engine_than_asked_for_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    wanted = zero.read(str(SHIPPED[1]), None)
    zero.check_engine(SimpleNamespace(zero_optimization_stage=lambda: 2, world_size=2), wanted)
    with pytest.raises(UserError, match="ZeRO 2 was asked for, but SimpleNamespace of level None came"):
        zero.check_engine(SimpleNamespace(), wanted)
    with pytest.raises(UserError, match="of level 1 came"):
        zero.check_engine(SimpleNamespace(zero_optimization_stage=lambda: 1, world_size=2), wanted)
    with pytest.raises(UserError, match="DeepSpeed runs 1 processes, but the launcher started 2"):
        zero.check_engine(SimpleNamespace(zero_optimization_stage=lambda: 2, world_size=1), wanted)


@pytest.mark.parametrize(
    "file, changes, said",
    [("zero3.json", {}, "R1 and path lengths fail"), ("own", {"bf16": {"enabled": True}}, "gan keeps float32 ones")],
)
def test_gan_refuses_what_it_cannot_do(tmp_path, file, changes, said):
    path = written(tmp_path, **changes) if changes else str(ROOT / "launch" / "deepspeed" / file)
    given = {"run_dir": str(tmp_path / "r"), "loader": {"index": "i"}, "features": "f", "engine": {"deepspeed": path}}
    with pytest.raises(UserError, match=said):
        gan.run(from_dict(gan.Config, given, "test"))
    assert not (tmp_path / "r").exists()


def test_a_clipping_length_is_above_zero():
    for kind in (OptimConfig, AdamConfig):
        assert kind(clip_norm=0.5).clip_norm == 0.5
        with pytest.raises(ValueError, match="clip_norm is a length above 0"):
            kind(clip_norm=0.0)

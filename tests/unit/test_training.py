import json
import os
import signal
from dataclasses import dataclass

import pytest
import torch

from eeg_gan import torchvision_compat
from eeg_gan.config import UserError
from eeg_gan.distributed import generator_at, own_part, seed_at
from eeg_gan.training import kernels, optim, preempt, runtime
from eeg_gan.training.inference import over_all
from eeg_gan.training.log import Log, grid, read_stats


@dataclass(frozen=True)
class Config:
    run_dir: str
    lr: float = 1.0
    total_images: int = 10


def test_random_streams_are_functions_of_seed_purpose_and_position():
    def draw(*key):
        return torch.randn(3, generator=generator_at(*key))

    torch.testing.assert_close(draw(0, "z", 64), draw(0, "z", 64), rtol=0, atol=0)
    others = [draw(1, "z", 64), draw(0, "noise", 64), draw(0, "z", 128)]
    assert all((draw(0, "z", 64) != other).all() for other in others)
    assert seed_at(0, "z", 64) == seed_at(0, "z", 64) < 2**63
    assert own_part(8) == slice(0, 8)


@pytest.mark.parametrize("deterministic", [False, True])
def test_float32_convolutions_are_no_tf32_and_flags_come_back(deterministic):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), kernels.chosen(torch.device("cpu"), deterministic):
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark is not deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic is torch.backends.cudnn.deterministic
        raise KeyError
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_same_bits_on_a_gpu_need_the_compiled_operators(monkeypatch):
    monkeypatch.setattr(kernels.library, "why_not", lambda device: f"nothing was built for {device}")
    with pytest.raises(UserError, match="nothing was built for cuda.*deterministic=false"):
        with kernels.chosen(torch.device("cuda"), True):
            pass


def test_learning_rate_is_a_function_of_images():
    config = optim.OptimConfig(lr=1.0, schedule="cosine", warmup_images=10)
    assert [round(optim.learning_rate(i, config, 110), 6) for i in (0, 5, 10, 60, 110, 200)] == [0, 0.5, 1, 0.5, 0, 0]
    assert optim.learning_rate(1000, optim.OptimConfig(lr=2.0), 10) == 2.0


def test_whole_number_betas_are_accepted():
    optim.build([torch.nn.Parameter(torch.ones(1))], optim.OptimConfig(beta1=0, beta2=0.99))


@pytest.mark.parametrize("images, batch, every, crossed", [(64, 16, 64, True), (80, 16, 64, False), (70, 16, 64, True)])
def test_crossed(images, batch, every, crossed):
    assert runtime.crossed(images, batch, every) is crossed


def test_a_signal_raises_the_flag_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with preempt.watch() as flag:
        assert not flag.agreed()
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.agreed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_comes_too_late_for_the_inner_stage_stops_the_outer_one():
    with preempt.watch() as outer:
        with preempt.watch():
            os.kill(os.getpid(), signal.SIGTERM)
        assert outer.agreed()


def test_a_half_written_line_of_a_killed_run_is_passed_over(tmp_path):
    (tmp_path / "stats.jsonl").write_text('{"images": 16, "loss (1)": 1.0}\n{"images": 32, "lo')
    assert [row["images"] for row in read_stats(tmp_path)] == [16]
    Log(tmp_path, active=True, images=16).close()
    assert (tmp_path / "stats.jsonl").read_text().count("\n") == 1


def test_rank_0_work_that_fails_is_raised(tmp_path):
    def fail():
        raise UserError("no")

    with runtime.start("x", Config(str(tmp_path / "r"))) as rt, pytest.raises(UserError, match="no"):
        rt.on_main(fail)


def test_a_done_stage_whose_input_file_changed_is_not_done(tmp_path):
    config, source = Config(str(tmp_path / "r")), tmp_path / "index.json"
    source.write_text("1")
    with runtime.start("encode", config) as rt:
        rt.inputs([source], shards="1")
        rt.finish("fine")
    source.write_text("2")
    with runtime.start("encode", config) as rt:
        assert not rt.done
        with pytest.raises(UserError, match="made from other inputs"):
            rt.inputs([source], shards="2")


def test_run_directory_is_claimed_by_one_config(tmp_path):
    runtime.make_folder(tmp_path / "r")
    runtime.claim(tmp_path / "r", "encode", Config(str(tmp_path / "r")))
    runtime.claim(
        tmp_path / "r", "encode", Config(str(tmp_path / "r"), total_images=20)
    )  # a longer run is the same run
    with pytest.raises(UserError, match="lr: 1.0 -> 2.0"):
        runtime.claim(tmp_path / "r", "encode", Config(str(tmp_path / "r"), lr=2.0))


def test_finished_stages_know_it_and_time_adds_up(tmp_path):
    config = Config(str(tmp_path / "r"))
    for done in (False, True):
        with runtime.start("encode", config) as rt:
            assert rt.done is done
            if not done:
                rt.finish("fine")
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["headline"] == "fine" and record["verb"] == "encode"
    with runtime.start("encode", Config(str(tmp_path / "r"), total_images=20)) as rt:
        assert not rt.done and rt.seconds >= record["seconds"]


def test_log_counts_images_and_drops_what_is_repeated(tmp_path):
    log = Log(tmp_path, active=True)
    log.scalars(16, {"loss (1)": 1.0})
    log.scalars(32, {"loss (1)": 0.5})
    log.close()
    Log(tmp_path, active=True, images=16).close()
    assert [row["images"] for row in read_stats(tmp_path)] == [16]
    Log(tmp_path / "other", active=False).scalars(1, {"loss (1)": 1.0})
    assert not (tmp_path / "other").exists(), "ranks other than 0 write nothing"


def test_grid_places_pictures_in_rows():
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    joined = grid(images, 2)
    assert joined.shape == (3, 4, 4) and joined[0, ::2, ::2].tolist() == [[0, 1], [2, 255]]


def test_inference_keeps_the_order():
    out = over_all(lambda b: b["x"], lambda i: {"x": torch.tensor(i)[:, None]}, 5, 2)
    assert out[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["torchvision", "timm", "open_clip", "torch_fidelity", "torchmetrics"])
def test_vision_libraries_load_through_the_door(name):
    assert torchvision_compat.load(name).__name__ == name

"""Generate by its front door: every source of conditions, seeds, truncation, noise, walks and style mixing."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, commands, debug
from PIL import Image
from test_bad_input import refused

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.data import features
from eeg_gan.data.shards import Shards
from eeg_gan.stages import generate_sheets
from eeg_gan.stages.generate_draw import draw_z, slerp, styles
from eeg_gan.stages.generate_sheets import points_of, save_video, steps_of, to_pil
from eeg_gan.stages.generate_sources import open_source, read_image
from eeg_gan.stages.loading import load_generator, read_generated
from eeg_gan.training import checkpoint

EXAMPLES = sorted((ROOT / "configs" / "generate").glob("*.yaml"))


def words(runs, folder, *more):
    return ["generate", debug("generate"), *commands(runs)["generate"], f"run_dir={folder}", *more]


def drawn(runs, folder, *more):
    """Pictures by file name."""
    assert cli.main(words(runs, folder, *more)) == 0
    rows = json.loads((folder / "manifest.json").read_text())["images"]
    keys, pictures = read_generated(folder)
    assert keys == [row["key"] for row in rows] and [row["number"] for row in rows] == list(range(len(rows)))
    return {row["file"]: picture.int() for row, picture in zip(rows, pictures, strict=True)}


def same(a, b):
    assert a.keys() == b.keys()
    return max((a[file] - b[file]).abs().max() for file in a) <= 1


def index(runs):
    return f"loader.index={runs}/prepare/index.json"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_draws(runs, tmp_path, path):
    """With the examples' own folders replaced by those of the chained debug runs."""
    text = path.read_text().replace("runs/debug/", f"{runs}/")
    (tmp_path / "c.yaml").write_text(text)
    assert cli.main(["generate", str(tmp_path / "c.yaml"), f"run_dir={tmp_path}/g"]) == 0
    assert list((tmp_path / "g").glob("*.png"))


def test_eeg_is_encoded_on_the_way(runs, tmp_path):
    eeg = drawn(runs, tmp_path / "e", "source=eeg", "features=null", index(runs), f"encoder={runs}/align")
    assert same(eeg, drawn(runs, tmp_path / "f"))
    record = json.loads((tmp_path / "e" / "run.json").read_text())
    assert record["reads"] == {"test": 1}


def test_eeg_of_another_kind_is_refused(capsys, runs, shards, tmp_path):
    given = ["source=eeg", f"loader.index={shards}"]
    said = refused(capsys, words(runs, tmp_path / "e", *given, f"encoder={runs}/encode"))
    assert "another encoder" in said
    described = json.loads(shards.read_text())
    described["preprocessing"]["config"]["clip"] = 7.0
    shards.write_text(json.dumps(described))
    said = refused(capsys, words(runs, tmp_path / "a", *given, f"encoder={runs}/align"))
    assert "preprocessed otherwise" in said and "clip" in said


def test_one_trial_from_a_file(capsys, runs, tmp_path):
    prepared = Shards(runs / "prepare" / "index.json", ("test",))
    sample = prepared.read("test", 3)
    path = tmp_path / f"{sample.key}.npy"
    np.save(path, sample.eeg)
    given = ["source=trial", "features=null", f"encoder={runs}/align", f"trial={path}", "seeds=[5,6]"]
    trial = drawn(runs, tmp_path / "t", *given)
    assert same(trial, drawn(runs, tmp_path / "f", "seeds=[5,6]", f"keys=[{sample.key}]"))
    np.save(path, sample.eeg * 1e-6)
    assert "so it is raw" in refused(capsys, words(runs, tmp_path / "r", *given))
    np.save(path, sample.eeg[:, 1:])
    assert "electrodes x" in refused(capsys, words(runs, tmp_path / "r", *given))


def test_a_folder_of_images_equals_the_split_that_they_come_from(capsys, runs, tmp_path):
    prepared = Shards(runs / "prepare" / "index.json", ("test",))
    for i in range(3):
        sample = prepared.read("test", i)
        (tmp_path / "p").mkdir(exist_ok=True)
        Image.fromarray(sample.image).save(tmp_path / "p" / f"{sample.key}.png")
    given = ["source=images", "features=null", f"image2eeg={runs}/image2eeg"]
    folder = drawn(runs, tmp_path / "a", *given, f"images={tmp_path}/p", "seeds=[0]")
    keys = ",".join(prepared.keys("test")[:3])
    assert same(folder, drawn(runs, tmp_path / "b", *given, index(runs), "seeds=[0]", f"keys=[{keys}]"))
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["reads"] == {} and len([name for name in record["files"] if name.endswith(".png")]) == 3
    Image.fromarray(prepared.read("test", 3).image).save(tmp_path / "p" / "new.png")
    more = drawn(runs, tmp_path / "a", *given, f"images={tmp_path}/p", "seeds=[0]")
    assert len(more) == len(folder) + 1, "a picture that is new in the folder makes the run anew"
    Image.new("RGB", (16, 16)).save(tmp_path / "p" / "new.png")
    other = drawn(runs, tmp_path / "a", *given, f"images={tmp_path}/p", "seeds=[0]")
    assert not other["images/new-seed0.png"].equal(more["images/new-seed0.png"]), "and one that is another does"
    (tmp_path / "none").mkdir()
    assert "no image" in refused(capsys, words(runs, tmp_path / "c", *given, f"images={tmp_path}/none"))


def test_a_picture_is_cut_to_the_generators_proportions(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "w.png")
    assert (read_image(tmp_path / "w.png", (16, 16)) == 255).all()
    assert read_image(tmp_path / "w.png", (16, 48)).shape == (3, 16, 48)
    with pytest.raises(UserError, match="no such image"):
        read_image(tmp_path / "absent.png", (16, 16))


def test_class_means_are_of_training_trials(runs, tmp_path):
    given = ["source=class_means", index(runs), "seeds=[0,1]", "grid=classes"]
    assert len(drawn(runs, tmp_path / "m", *given)) == 8
    assert json.loads((tmp_path / "m" / "run.json").read_text())["reads"] == {"train": 1}
    config = cli.load(cli.stage("generate").Config, None, [w for w in words(runs, "x", *given)[2:]])
    generator, state = load_generator(runs / "gan")
    source = open_source(config, generator, state, torch.device("cpu"))
    prepared, known = Shards(runs / "prepare" / "index.json", ("train",)), features.load(runs / "embed")
    own = known.rows([m["key"] for m in prepared.metas("train") if m["label"] == 2]).mean(0)
    found = source.conditions([source.keys.index(prepared.card.class_names[2])])[0]
    torch.testing.assert_close(found, own / own.norm(), atol=1e-5, rtol=0)


def test_a_seed_is_a_picture_whatever_else_is_drawn(runs, tmp_path):
    three = drawn(runs, tmp_path / "3", "seeds=[0,1,2]", "limit=4", "grid=trials", "noise=random")
    one = drawn(runs, tmp_path / "1", "seeds=[2]", "limit=4", "batch=3", "noise=random")
    assert len(three) == 12 and same(one, {file: three[file] for file in one})
    rows = json.loads((tmp_path / "3" / "manifest.json").read_text())["images"]
    assert [row["seed"] for row in rows[:3]] == [0, 1, 2] and rows[0]["file"].endswith("-seed0.png")
    assert not same(one, drawn(runs, tmp_path / "2", "seeds=[2]", "limit=4", "noise=none"))


def test_truncation_towards_the_global_mean_and_of_some_layers(runs, tmp_path):
    common = ["psi=0.0", "towards=global", "limit=2"]
    pictures = list(drawn(runs, tmp_path / "g", *common).values())
    assert (pictures[0] - pictures[1]).abs().max() <= 1, "at psi 0 nothing of the condition is left"
    config = cli.load(cli.stage("generate").Config, None, [*words(runs, "x", *common)[2:], "cutoff=2"])
    generator, _ = load_generator(runs / "gan")
    z, c = torch.randn(2, generator.z_dim), torch.randn(2, generator.c_dim)
    ws, whole = styles(generator, config, z, c), generator.mapping(z, c)
    assert ws[:, 2:].equal(whole[:, 2:])
    torch.testing.assert_close(ws[0, :2], generator.mapping_network.w_average.expand(2, -1))


def test_every_average_can_draw(capsys, runs, tmp_path):
    found = checkpoint.chosen(runs / "gan")
    found.tensors["average-500"]["constant"] += 1  # after so few images the averages are equal
    state = {name: value for name, value in found.state.items() if name != "files"}
    checkpoint.save(tmp_path / "gan", checkpoint.Checkpoint(found.images, found.tensors, state))
    gan = f"gan={tmp_path}/gan"
    default = drawn(runs, tmp_path / "d", gan)
    assert same(default, drawn(runs, tmp_path / "2000", gan, "ema=2000")) and same(default, drawn(runs, tmp_path / "o"))
    assert not same(default, drawn(runs, tmp_path / "500", gan, "ema=500"))
    assert "half-life 2000, 500" in refused(capsys, words(runs, tmp_path / "7", gan, "ema=7"))


def test_a_network_trained_in_half_draws_in_float32_on_a_cpu(runs, tmp_path, monkeypatch):
    given = ["gan", debug("gan"), f"run_dir={tmp_path}/h", *commands(runs)["gan"]]
    assert cli.main([*given, "precision=bfloat16", "half_levels=2", "total_images=16", "checkpoint_every=16"]) == 0
    generator, _ = load_generator(tmp_path / "h")
    types = set()
    for conv in generator.convs:
        conv.register_forward_hook(lambda module, given, out: types.add(out.dtype))
    z, c = torch.randn(2, generator.z_dim), torch.randn(2, generator.c_dim)
    image = generator(z, c)
    assert types == {torch.float32} == {p.dtype for p in generator.parameters()} and image.dtype == torch.float32
    torch.testing.assert_close(generator.double()(z.double(), c.double()).float(), image, atol=1e-4, rtol=1e-4)
    assert drawn(runs, tmp_path / "i", f"gan={tmp_path}/h", "limit=2")


@pytest.mark.parametrize(
    "more, said",
    [
        (["features=null"], "source=features needs features"),
        (["source=eeg"], "source=eeg needs loader and encoder"),
        (["source=images", "image2eeg=x"], "images (a folder) or loader"),
        (["grid=classes", "loader.index=x"], "a split other than test"),
        (["seeds=[0,0]"], "different numbers"),
        (["seeds=[-1]"], "a seed is 0 or more"),
        (["keys=[a]", "limit=2"], "in place of limit"),
        (["keys=[nobody]"], "there is no nobody"),
        (["cutoff=99"], "cutoff=99"),
        (["psi=70"], "usually 0.5 to 1"),
        (["psi=.nan"], "usually 0.5 to 1"),
        (["kind=interpolation", "limit=3", "seeds=[0,1]"], "interpolation runs through"),
        (["kind=interpolation"], "a walk through 24 trials is a long one: set limit or keys"),
        (["seeds=3"], "seeds: expected a list, such as [3]"),
        (["gan=CHECKPOINT"], "is one checkpoint; give its run directory"),
        (["kind=mixing", "limit=1", "mixing.first=50"], "mixing takes layers"),
        (["kind=mixing", "limit=1", "mixing.keys=[nobody]"], "there is no nobody"),
        (["condition=shuffled", "keys=[nobody]"], "there is no nobody"),
    ],
)
def test_generate_refuses(capsys, runs, tmp_path, more, said):
    more = [word.replace("CHECKPOINT", str(next((runs / "gan").glob("checkpoint-*")))) for word in more]
    assert said in refused(capsys, words(runs, tmp_path / "r", *more))


def test_classes_of_validation_trials_are_rows(runs, tmp_path):
    drawn(runs, tmp_path / "g", "grid=classes", "split=val", index(runs))
    width, height = Image.open(tmp_path / "g" / "grid.png").size
    assert width > 6 * 64 and height == 18 + 4 * 64, "four classes of six trials, enlarged, with their names"


def frames_of(path):
    with Image.open(path) as video:
        for i in range(video.n_frames):
            video.seek(i)
            yield np.asarray(video.convert("RGB")).astype(int)


@pytest.mark.parametrize("space", ["z", "w"])
def test_a_closed_walk_passes_through_the_trials(runs, tmp_path, space):
    given = ["kind=interpolation", "limit=3", f"interpolation.space={space}", "interpolation.loop=true"]
    more = ["interpolation.frames=4", "interpolation.video=webp"]
    assert cli.main(words(runs, tmp_path / "w", *given, *more)) == 0
    about = json.loads((tmp_path / "w" / "walk.json").read_text())
    frames = list(frames_of(tmp_path / "w" / about["video"]))
    assert about["frames"] == 12 == len(frames) and (tmp_path / "w" / "strip.png").exists()
    for i, picture in enumerate(drawn(runs, tmp_path / "t", "limit=3", "seeds=[0]").values()):
        assert np.abs(frames[4 * i][::4, ::4] - picture.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("kind", ["gif", "apng", "webp"])
def test_moving_pictures(tmp_path, kind):
    frames = [to_pil(torch.full((3, 16, 16), 40 * i, dtype=torch.uint8)) for i in range(5)]
    assert len(list(frames_of(tmp_path / save_video(tmp_path, frames, kind, 12)))) == 5


def test_mp4_is_written_where_imageio_is(tmp_path, monkeypatch):
    monkeypatch.setattr(generate_sheets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install imageio"):
        generate_sheets.check_video("mp4")
    package, module, seen = ModuleType("imageio"), ModuleType("imageio.v2"), {}
    module.mimwrite = lambda path, frames, fps: seen.update(path=path, shape=frames[0].shape, fps=fps)
    package.v2 = module
    monkeypatch.setitem(sys.modules, "imageio", package)
    monkeypatch.setitem(sys.modules, "imageio.v2", module)
    assert save_video(tmp_path, [Image.new("RGB", (16, 16))], "mp4", 9) == "walk.mp4"
    assert seen == {"path": tmp_path / "walk.mp4", "shape": (64, 64, 3), "fps": 9}


def test_the_points_of_a_walk():
    config = SimpleNamespace(seeds=(7, 8), seed=0)
    assert points_of(config, ["a"]) == [(0, 7), (0, 8)] and points_of(config, ["a", "b"]) == [(0, 7), (1, 8)]
    assert points_of(SimpleNamespace(seeds=None, seed=3), ["a", "b"]) == [(0, 3), (1, 3)]
    assert steps_of(2, 2, loop=False) == [(0, 1, 0.0), (0, 1, 0.5), (0, 1, 1.0)]
    assert [step[:2] for step in steps_of(2, 2, loop=True)] == [(0, 1), (0, 1), (1, 0), (1, 0)]


def test_slerp_keeps_to_the_sphere():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    torch.testing.assert_close(slerp(a, b, 0.5), 3 * torch.tensor([0.5, 0.5]).sqrt())
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    assert slerp(a, -a, 0.5).isfinite().all() and slerp(a, torch.zeros(2), 0.5).isfinite().all()


def test_mixing_gives_rows_the_styles_of_columns(runs, tmp_path):
    common = ["kind=mixing", "limit=2", "seeds=[0,1]"]
    assert cli.main(words(runs, tmp_path / "m", *common, "mixing.first=0", "mixing.seeds=[3]")) == 0
    about = json.loads((tmp_path / "m" / "mixing.json").read_text())
    assert about["layers"] == [0, 6] and len(about["rows"]) == 4 and [seed for _, seed in about["columns"]] == [3, 3]
    whole = np.asarray(Image.open(tmp_path / "m" / "mixing.png")).astype(int)
    height, width = whole.shape[0] - 5 * 64, whole.shape[1] - 3 * 64
    cells = [[whole[height + 64 * i :, width + 64 * j :][:64, :64] for j in range(3)] for i in range(5)]
    for i in range(1, 5):
        for j in (1, 2):
            assert np.abs(cells[i][j] - cells[0][j]).max() <= 1, "with all layers taken, a mixture is its column"
    assert cli.main(words(runs, tmp_path / "n", *common)) == 0
    assert json.loads((tmp_path / "n" / "mixing.json").read_text())["layers"] == [3, 6]


def test_the_manifest_says_how_it_was_drawn(runs, tmp_path):
    drawn(runs, tmp_path / "m", "psi=0.5", "ema=500", "limit=1")
    about = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert about["psi"] == 0.5 and about["ema"] == 500 and about["confounded"] is False
    generator, _ = load_generator(runs / "gan", 500)
    assert about["gan_digest"] == checkpoint.tensors_digest(generator.state_dict())
    assert draw_z(generator, [(0, 0)]).shape == (1, generator.z_dim)

"""encode with a layer for each subject, through every stage that reads an encoder; and a new subject by few trials."""

import json
import re

import pytest
import torch
from conftest import commands, debug

from eeg_gan import cli
from eeg_gan.models.eeg import matched
from eeg_gan.stages import readout
from eeg_gan.training import checkpoint

SUBJECTS = ["encoder.subjects=true", "encoder.readout=true", "encoder.matched=true", "encoder.dropout=0"]


@pytest.fixture(scope="module")
def base(runs, tmp_path_factory):
    """An encoder with layers of the three people of the debug data, S1 to S3."""
    folder = tmp_path_factory.mktemp("base") / "encode"
    words = commands(runs)["encode"] + SUBJECTS
    assert cli.main(["encode", debug("encode"), *words, f"run_dir={folder}", "optim.lr=1e-2"]) == 0
    return folder


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """Shards of two other people, who look at the same kind of pictures."""
    folder = tmp_path_factory.mktemp("newcomer")
    words = ["source.simulated.subjects=5", f"run_dir={folder}/five"]
    assert cli.main(["prepare", debug("prepare"), *words]) == 0
    return keep_subjects(folder, ("S4", "S5"))


def keep_subjects(folder, names):
    from eeg_gan.data.shards import Shards, write_shards

    shards = Shards(folder / "five" / "index.json", ("train", "val", "test"))
    kept = {
        split: [shards.read(split, i) for i, meta in enumerate(shards.metas(split)) if meta["subject"] in names]
        for split in shards.opened
    }
    policy = {**shards.split_policy, "digest": "another"}
    write_shards(folder / "two", kept, 64, shards.card, shards.preprocessing, policy)
    return folder / "two" / "index.json"


def encode(index, run_dir, *words):
    return cli.main(["encode", debug("encode"), f"loader.index={index}", f"run_dir={run_dir}", *words])


def test_layers_are_trained_saved_and_read_by_later_stages(runs, base, tmp_path):
    found = checkpoint.chosen(base)
    assert found.state["subjects"] == subjects(runs / "prepare" / "index.json")
    layers = [found.tensors["encoder"][f"mixing.{i}"] for i in range(len(found.state["subjects"]))]
    assert all(0 < layer.abs().max() < 1 for layer in layers), "near the identity"
    filters = [found.tensors["encoder"][f"filters.1.{i}"] for i in range(len(layers))]
    assert len({tuple(each.flatten().tolist()) for each in filters}) == len(layers), "everybody's own"
    words = {**commands(runs), "base": [f"encoder={base}"]}
    index = words["embed"][0]
    assert cli.main(["align", debug("align"), index, f"encoder={base}", f"run_dir={tmp_path}/align"]) == 0
    moved = checkpoint.chosen(tmp_path / "align")
    assert moved.state["subjects"] == found.state["subjects"]
    assert not torch.equal(moved.tensors["encoder"]["mixing.0"], layers[0])
    assert cli.main(["embed", debug("embed"), index, f"encoder={tmp_path}/align", f"run_dir={tmp_path}/embed"]) == 0


def test_maps_in_closed_form_stay_and_alignment_adds_the_pictures(runs, tmp_path, capsys):
    words = [*commands(runs)["encode"], *SUBJECTS, "optim.weight_decay=0.1"]
    assert encode_debug(tmp_path / "zero", *words, "total_images=16", "optim.lr=1e-12") == 0
    assert encode_debug(tmp_path / "a", *words, "ridge=3", "stop_after=64") == 75
    first = maps(tmp_path / "a")
    assert encode_debug(tmp_path / "a", *words, "ridge=3") == 0
    assert all(layer.abs().max() < 1e-6 for layer in maps(tmp_path / "zero"))
    assert all(layer.abs().max() > 0 for layer in first)
    assert all(torch.equal(layer, old) for layer, old in zip(maps(tmp_path / "a"), first, strict=True))
    for name, ridge in (("b", "ridge=null"), ("c", "ridge=1.5")):
        words = [commands(runs)["embed"][0], f"encoder={tmp_path}/a", f"run_dir={tmp_path}/{name}", "optim.lr=1e-12"]
        assert cli.main(["align", debug("align"), *words, ridge]) == 0
    aligned, added = maps(tmp_path / "b"), maps(tmp_path / "c")
    assert all(torch.allclose(new, old, atol=1e-6) for new, old in zip(aligned, first, strict=True))
    assert all(not torch.allclose(new, old, atol=1e-6) for new, old in zip(added, first, strict=True))


def test_probabilities_of_classes_are_fitted_once_and_stay(runs, tmp_path, capsys):
    words = [*commands(runs)["encode"], *SUBJECTS, "encoder.posterior=true", "ridge=2"]
    assert encode_debug(tmp_path / "a", *words, "stop_after=64") == 75
    first = checkpoint.newest(tmp_path / "a").tensors["encoder"]
    assert encode_debug(tmp_path / "a", *words) == 0
    last = checkpoint.newest(tmp_path / "a").tensors["encoder"]
    fixed = [name for name in first if name.startswith(("posterior", "filters", "readout"))]
    assert all(torch.equal(first[name], last[name]) for name in fixed)
    lengths = first["posterior.codes"].norm(dim=1)
    torch.testing.assert_close(lengths[:4], torch.full((4,), 2.0))  # the debug data have four classes
    assert not lengths[4:].any()
    assert encode_debug(tmp_path / "b", *words, "encoder.dim=3") == 2
    assert "a direction for each of 4 classes" in capsys.readouterr().err
    again = [word for word in words if word != "ridge=2"]  # the same encoder may be named, its fit is taken over
    assert encode_debug(tmp_path / "d", *again, f"start_from={tmp_path}/a", "total_images=64") == 0
    taken = checkpoint.newest(tmp_path / "d").tensors["encoder"]
    assert torch.equal(taken["posterior.codes"], last["posterior.codes"])
    index, given = commands(runs)["embed"][0], f"encoder={tmp_path}/a"
    new = [word.replace("encoder.", "architecture.") for word in again if word.startswith("encoder.")]
    for more, says in (
        ([given, "ridge=1"], "end in probabilities of classes"),
        ([given, "from_scratch=true"], "a new encoder cannot have it"),
        (["encoder=null", *new], "a new encoder cannot have it"),
    ):
        assert cli.main(["align", debug("align"), index, f"run_dir={tmp_path}/c", *more]) == 2
        assert says in " ".join(capsys.readouterr().err.split())


def test_a_filter_needs_trials(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(matched, "LEAST", 100)
    assert encode_debug(tmp_path / "x", *commands(runs)["encode"], *SUBJECTS) == 2
    assert "of each class, here 104, but S1 has" in capsys.readouterr().err
    monkeypatch.setattr(matched, "LEAST", 8)
    monkeypatch.setattr(readout, "VALUES", 4 * 12 * 64)  # four of the debug trials
    assert encode_debug(tmp_path / "y", *commands(runs)["encode"], *SUBJECTS) == 2
    assert "of which 4 fit into memory" in " ".join(capsys.readouterr().err.split())


NOT = [["ridge=0", *SUBJECTS], ["ridge=1", "encoder.subjects=true"], [*SUBJECTS, "encoder.posterior=true"]]


@pytest.mark.parametrize("words", NOT)
def test_closed_form_needs_maps_and_a_length(runs, tmp_path, capsys, words):
    assert encode_debug(tmp_path / "x", *commands(runs)["encode"], *words) == 2
    assert "ridge" in capsys.readouterr().err


def encode_debug(run_dir, *words):
    return cli.main(["encode", debug("encode"), *words, f"run_dir={run_dir}"])


def maps(run_dir):
    tensors = checkpoint.newest(run_dir).tensors["encoder"]
    return [tensors[name] for name in sorted(tensors) if name.startswith("readout.")]


def subjects(index):
    from eeg_gan.data.shards import Shards
    from eeg_gan.stages.loading import subjects_of

    return list(subjects_of(Shards(index), ("train",)))


def test_a_new_subject_is_learnt_by_its_layer_alone_and_resumes(base, newcomer, tmp_path, capsys):
    words = [f"adapt={base}", "optim.lr=1e-2", *SUBJECTS]
    assert encode(newcomer, tmp_path / "a", *words, "stop_after=64") == 75
    assert encode(newcomer, tmp_path / "a", *words) == 0
    assert encode(newcomer, tmp_path / "b", *words) == 0
    old, new, unbroken = (checkpoint.newest(path).tensors["encoder"] for path in (base, tmp_path / "a", tmp_path / "b"))
    old = checkpoint.chosen(base).tensors["encoder"]
    first = len(checkpoint.chosen(base).state["subjects"])
    fixed = ("filters.0", "filters.1", "filters.2")
    kinds = ("mixing", "readout", *fixed)
    added = {f"{kind}.{first + i}" for kind in kinds for i in (0, 1)}
    assert new.keys() - old.keys() == added
    means = {kind: torch.stack([old[f"{kind}.{i}"] for i in range(first)]).mean(0) for kind in kinds}
    assert all(torch.equal(new[name], old[name]) for name in old), "everything else is frozen"
    kept = {name for name in added if torch.equal(new[name], means[name.rpartition(".")[0]])}
    assert kept == {name for name in added if name.startswith(fixed)}, "filters of new people are the mean of the old"
    assert all(torch.equal(new[name], unbroken[name]) for name in new)
    embed = ["embed", debug("embed"), f"loader.index={newcomer}", f"encoder={tmp_path}/a", f"run_dir={tmp_path}/e"]
    assert cli.main(embed) == 0
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert len(record["inputs"]["adapt"]) == 64


def test_what_cannot_be_adapted_is_refused(runs, base, newcomer, tmp_path, capsys):
    known = runs / "prepare" / "index.json"
    cases = {
        "already taught": (known, [f"adapt={base}"]),
        "holds no layers of subjects": (newcomer, [f"adapt={runs}/encode"]),
        "encoder.*filters: 8 -> 3": (newcomer, [f"adapt={base}", *SUBJECTS, "encoder.filters=3"]),
        "has no classifier": (newcomer, [f"adapt={base}", "loss=cross_entropy"]),
        "loader.mode=local": (newcomer, [f"adapt={base}", "loader.mode=stream"]),
    }
    for number, (said, (index, words)) in enumerate(cases.items()):
        assert encode(index, tmp_path / str(number), *SUBJECTS, *words) == 2
        assert re.search(said, capsys.readouterr().err)


def test_people_of_the_first_encoder_are_not_judged_by_the_adapted_one(base, newcomer, tmp_path, capsys):
    words = [f"adapt={base}", *SUBJECTS, "total_images=16", "evaluate_every=16", "checkpoint_every=16"]
    assert encode(newcomer, tmp_path / "a", *words) == 0
    five = newcomer.parents[1] / "five" / "index.json"
    state = next((tmp_path / "a").glob("checkpoint-*")) / "state.json"
    held = json.loads(state.read_text())
    del held["sha256"]  # of what was written; one without is read as it is
    held["data"]["split_digest"] = json.loads(five.read_text())["split_policy"]["digest"]
    state.write_text(json.dumps(held))
    assert (
        cli.main(["embed", debug("embed"), f"loader.index={five}", f"encoder={tmp_path}/a", f"run_dir={tmp_path}/e"])
        == 2
    )
    assert "their trials may have been trained on" in capsys.readouterr().err

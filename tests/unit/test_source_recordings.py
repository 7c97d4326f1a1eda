"""Recordings in every format and in a BIDS tree, and each kind of file that must be refused."""

import pickle
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT
from published import formats_b as published

from eeg_gan import cli
from eeg_gan.config import UserError
from eeg_gan.data.loader import LoaderConfig
from eeg_gan.data.sources.continuous import find_files
from eeg_gan.data.sources.recordings import Recordings, RecordingsConfig
from eeg_gan.stages.loading import open_shards

mne = pytest.importorskip("mne")
HOW = {  # ending -> where events are, and what they are called there
    ".edf": ("annotations", {"face": "face", "house": "house"}),
    ".bdf": ("stim", {"1": "face", "2": "house"}),
    ".fif": ("stim", {"1": "face", "2": "house"}),
    ".set": ("annotations", {"face": "face", "house": "house"}),
    ".vhdr": ("annotations", {"Stimulus/face": "face", "Stimulus/house": "house"}),
}
PLAIN = ["preprocess.highpass_hz=null", "preprocess.lowpass_hz=null", "preprocess.baseline=false"]
PLAIN += ["preprocess.scale=none", "preprocess.clip=null", "split.train=0.4", "split.val=0.3", "split.test=0.3"]


def source(folder, **keys):
    return Recordings(str(folder), RecordingsConfig(**{"design": "event-randomised", **keys}))


def refused(folder, *said, **keys):
    with pytest.raises(UserError) as error:
        opened = source(folder, **keys)
        for i in range(len(opened.trials)):
            opened.eeg(i), opened.image(i)
    for text in said:
        assert text in str(error.value), error.value


def prepared(tmp_path, config, *words):
    """All trials of the shards that the config makes, by key, and the card."""
    out = tmp_path / "out"
    words = [f"source.path={tmp_path}/data", f"run_dir={out}", *PLAIN, *words]
    assert cli.main(["prepare", str(ROOT / f"configs/prepare/{config}.yaml"), *words]) == 0
    shards = open_shards(LoaderConfig(index=f"{out}/index.json"), ("train", "val", "test"))
    found = {}
    for split in ("train", "val", "test"):
        for meta in shards.metas(split):
            found[meta["key"]] = meta
    return shards, found


@pytest.mark.parametrize("ending", HOW)
def test_every_format_gives_the_same_trials_through_prepare(tmp_path, ending):
    events, classes = HOW[ending]
    folder = published.recordings(tmp_path / "data", ending)
    said = ",".join(f"{event}: {name}" for event, name in classes.items())
    words = [f"source.recordings.events={events}", f"source.recordings.classes={{{said}}}"]
    shards, found = prepared(tmp_path, "recordings", *words)
    assert len(found) == 12 and shards.card.ch_names == published.NAMES
    meta = found["bela_raw_00001"]
    assert (meta["subject"], meta["class_name"], meta["onset_s"]) == ("bela", "house", 4.5)
    assert (meta["recording"], meta["tmin_s"], meta["run"]) == (f"bela_raw{ending}", -0.2, "bela_raw")
    opened = source(folder, events=events, classes={k.strip("'\""): v for k, v in classes.items()})
    for i, trial in enumerate(opened.trials):
        k, start = ("anna", "bela", "cleo").index(trial["subject"].split("_")[0]), round(trial["onset_s"] * 100) - 20
        eeg = opened.eeg(i)
        assert eeg.dtype == np.float32 and eeg.shape == (3, 100)
        np.testing.assert_allclose(eeg, published.signal(k)[:, start : start + 100], atol=0.02)


def test_fif_annotations_count_from_the_first_sample(tmp_path):
    published.write_fif(tmp_path / "a_raw.fif", published.signal(0), 100, first_samp=1234)
    opened = source(tmp_path)
    assert [t["onset_s"] for t in opened.trials] == [2.0, 4.5, 6.25, 8.0]
    np.testing.assert_allclose(opened.eeg(0), published.signal(0)[:, 180:280], atol=1e-3)


def test_recordings_whose_names_differ_by_a_sign(tmp_path):
    for name in ("anna+1_raw", "anna 1_raw", "bela_raw"):
        published.write_fif(tmp_path / f"{name}.fif", published.signal(0), 100)
    (tmp_path / "more").mkdir()
    published.write_fif(tmp_path / "more" / "bela_raw.fif", published.signal(0), 100)
    keys = [trial["key"] for trial in source(tmp_path).trials]
    assert len(set(keys)) == len(keys) == 16 and sum(key.startswith("anna_1_raw-") for key in keys) == 8
    assert {"bela_raw_fif_00000", "more_bela_raw_fif_00000"} <= set(keys)


def test_only_the_stretch_is_read(tmp_path, monkeypatch):
    opened = source(published.recordings(tmp_path, ".edf"))
    asked = []
    whole = mne.io.BaseRaw.get_data
    monkeypatch.setattr(
        mne.io.BaseRaw, "get_data", lambda raw, *a, **k: asked.append((a[1], a[2], raw.preload)) or whole(raw, *a, **k)
    )
    opened.eeg(5)
    assert asked == [(430, 530, False)]


def test_parts_of_a_large_fif_are_one_recording(tmp_path):
    for name in ("a_raw.fif", "a_raw-1.fif", "b_split-01_eeg.fif", "b_split-02_eeg.fif", "c-1.fif"):
        (tmp_path / name).touch()
    assert [file.name for file in find_files(tmp_path, "**/*")] == ["a_raw.fif", "b_split-01_eeg.fif", "c-1.fif"]


def test_another_process_opens_for_itself(tmp_path):
    opened = source(published.recordings(tmp_path, ".vhdr"))
    again = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(again.eeg(7), opened.eeg(7))


# ---- BIDS


def test_a_bids_tree_through_prepare(tmp_path):
    published.bids(tmp_path / "data")
    shards, found = prepared(tmp_path, "bids", "split.by=subject", "image_size=8")
    assert len(found) == 12  # of each file, one event reaches beyond the end and one has no class
    meta = found["sub-02_ses-1_task-see_run-2_eeg_00004"]  # the one without a class counts
    assert {name: meta[name] for name in ("subject", "session", "run", "block", "stimulus", "class_name")} == {
        "subject": "02",
        "session": "1",
        "run": "see-2",
        "block": "1",
        "stimulus": "3.png",
        "class_name": "house",
    }
    card = shards.card
    assert (card.name, card.licence, card.line_hz, card.pairing) == ("tiny faces", "CC0", 60, "trial")
    assert card.ch_names == ("O1", "Oz")  # O2 is bad, Pupil is no EEG
    assert "3 events that reach outside" in card.description and "3 events without a trial_type" in card.description


def test_what_is_left_out_is_said(tmp_path, caplog):
    caplog.set_level("INFO", "eeg_gan")
    import logging

    logging.getLogger("eeg_gan").propagate = True
    opened = source(published.bids(tmp_path), events="tsv")
    assert opened.image(1)[0, 0].tolist() == [40, 10, 10]
    assert "Pupil (pupil)" in caplog.text and "marked bad are left out of all files: O2" in caplog.text
    assert "sub-01_ses-1_task-see_run-2_eeg.edf: trials that reach outside of the recording: 1" in caplog.text


def test_bad_channels_as_told(tmp_path):
    published.bids(tmp_path)
    assert source(tmp_path, events="tsv", bad_channels="keep").card.ch_names == published.NAMES
    refused(tmp_path, "channel O2 is marked bad", "drop", events="tsv", bad_channels="refuse")


def test_another_column_tells_the_class(tmp_path):
    published.bids(tmp_path)
    assert source(tmp_path, events="tsv", label="block").class_names == ("0", "1")
    refused(tmp_path, "no column kind", "onset, duration, trial_type", events="tsv", label="kind")


def edit(folder, old, new):
    path = next(folder.rglob("sub-01*events.tsv"))
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("2.png", "9.png", "9.png does not exist"),
        ("2.png", "n/a", "stim_file is n/a"),
        ("4.5\t", "soon\t", "line 3: onset is soon"),
        ("4.5\t0.5\t", "4.5\t", "line 3: 4 cells"),
    ],
)
def test_mistakes_in_events(tmp_path, old, new, said):
    published.bids(tmp_path)
    edit(tmp_path, old, new)
    refused(tmp_path, "sub-01_ses-1_task-see_run-2_events.tsv", said, events="tsv")


def test_no_events_file(tmp_path):
    published.bids(tmp_path)
    next(tmp_path.rglob("sub-03*events.tsv")).unlink()
    refused(tmp_path, "sub-03_ses-1_task-see_run-2_events.tsv", events="tsv")


def test_no_stimuli_no_pairing(tmp_path):
    published.bids(tmp_path)
    shutil.rmtree(tmp_path / "stimuli")
    opened = source(tmp_path, events="tsv")
    assert opened.card.pairing == "none" and opened.trials[0]["stimulus"] == "0.png" and opened.image(0) is None
    refused(tmp_path, "is no folder", events="tsv", images=str(tmp_path / "pictures"))


# ---- what is refused


def test_design_must_be_said(tmp_path):
    refused(published.recordings(tmp_path, ".edf"), "recordings.design is missing", "block", design=None)


def test_no_path_no_folder_no_file(tmp_path):
    with pytest.raises(UserError, match="source.path is missing"):
        Recordings(None, RecordingsConfig(design="rsvp"))
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, "holds no recording", ".vhdr")


def test_other_rate(tmp_path):
    published.recordings(tmp_path, ".edf", n=1)
    published.write_edf(tmp_path / "zoe.edf", published.signal(0, 200), 200)
    refused(tmp_path, "zoe.edf has 200 Hz", "anna_raw.edf has 100 Hz")


def test_other_channels(tmp_path):
    published.recordings(tmp_path, ".edf", n=1)
    published.write_edf(tmp_path / "zoe.edf", published.signal(0), 100, ("O1", "Oz", "Pz"))
    refused(tmp_path, "zoe.edf and", "anna_raw.edf differ in EEG channels (O2, Pz)")
    assert source(tmp_path, drop_channels=("O2", "Pz")).card.ch_names == ("O1", "Oz")
    refused(tmp_path, "no channel is named Cz", drop_channels=("O2", "Pz", "Cz"))


def test_other_order_of_channels_is_put_right(tmp_path):
    published.recordings(tmp_path, ".edf", n=1)
    published.write_edf(tmp_path / "zoe.edf", published.signal(1)[::-1], 100, published.NAMES[::-1])
    opened = source(tmp_path)
    np.testing.assert_allclose(opened.eeg(4), published.signal(1)[:, 180:280], atol=1e-3)


def test_channels_that_only_their_name_betrays(tmp_path):
    published.write_edf(tmp_path / "a.edf", published.signal(0), 100, ("O1", "Oz", "VEOG"))
    assert source(tmp_path).card.ch_names == ("O1", "Oz")


def test_events_outside_and_in_bad_stretches_are_counted(tmp_path):
    events = ((0.1, "face"), (2.0, "face"), (4.0, "bad blink"), (4.05, "house"), (6.0, "house"), (11.9, "house"))
    published.write_edf(tmp_path / "a.edf", published.signal(0), 100, events=events)
    opened = source(tmp_path)
    assert [t["onset_s"] for t in opened.trials] == [2.0, 6.0] and opened.trials[0]["key"] == "a_00001"
    assert "2 events that reach outside of their recording" in opened.card.description
    assert "1 events in a stretch that is marked bad" in opened.card.description


def test_classes_that_no_event_has(tmp_path):
    published.recordings(tmp_path, ".edf", n=1)
    refused(tmp_path, "no trial has the event 'faces'", "face, house", classes={"face": "f", "faces": "f"})
    assert source(tmp_path, classes={"house": "building"}).class_names == ("building",)
    refused(tmp_path, "no event became a trial", tmin_s=-0.2, tmax_s=60.0)


def test_no_trigger_codes(tmp_path):
    refused(published.recordings(tmp_path, ".vhdr"), "no trigger codes found", "stim_channel", events="stim")


@pytest.mark.parametrize("ending", HOW)
@pytest.mark.parametrize("spoil", [published.garbage])
def test_damaged_files_are_named(tmp_path, ending, spoil):
    published.recordings(tmp_path, ending, n=1)
    spoil(tmp_path / f"anna_raw{ending}")
    refused(tmp_path, f"anna_raw{ending} cannot be read by MNE")


def test_an_end_that_is_missing(tmp_path):
    published.recordings(tmp_path, ".vhdr", n=1)
    (tmp_path / "anna_raw.eeg").unlink()
    refused(tmp_path, "anna_raw.vhdr cannot be read by MNE")


def test_names_tell_subject_and_session(tmp_path):
    published.recordings(tmp_path, ".edf", n=2)
    opened = source(tmp_path, names=r"^(?P<subject>\w)(?P<session>\w)")
    assert (opened.trials[0]["subject"], opened.trials[0]["session"]) == ("a", "n")
    refused(tmp_path, "does not fit bela_raw.edf", names=r"^(?P<subject>anna)")
    with pytest.raises(ValueError, match="needs a group"):
        RecordingsConfig(design="rsvp", names="abc")


def test_mne_is_missing(tmp_path, capsys, monkeypatch):
    published.recordings(tmp_path / "data", ".edf")
    monkeypatch.setitem(sys.modules, "mne", None)
    words = [f"source.path={tmp_path}/data", f"run_dir={tmp_path}/out"]
    assert cli.main(["prepare", str(ROOT / "configs/prepare/recordings.yaml"), *words]) == 2
    assert "pip install 'eeg-gan[mne]'" in capsys.readouterr().err


def test_images_need_events_tables():
    with pytest.raises(ValueError, match="set events=tsv"):
        RecordingsConfig(design="rsvp", images="pictures")

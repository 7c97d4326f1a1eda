"""Tiny files in the published formats, with values that a test knows."""

import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

# C electrode, T time sample, N trial

# ---- Kaneshiro


def kaneshiro_trials(subject: int, repeats: int) -> dict[str, np.ndarray]:
    """X_3D [124, 32, N] whose first value is the trial's number, and labels; exemplars 12 per category."""
    rng = np.random.default_rng(subject)
    exemplars = np.concatenate([rng.permutation(72) + 1 for _ in range(repeats)])
    x = rng.normal(size=(124, 32, len(exemplars))).round(3)
    x[0, 0] = np.arange(len(exemplars))
    return {
        "X_3D": x,
        "X_2D": x.reshape(-1, x.shape[2], order="F").T,
        "categoryLabels": (exemplars - 1) // 12 + 1.0,
        "exemplarLabels": exemplars.astype(float),
        "Fs": 62.5,
    }


def write_mat5(path: Path, held: dict) -> None:
    from scipy.io import savemat

    savemat(path, held, do_compression=True)


def write_mat73(path: Path, held: dict) -> None:
    """As MATLAB does: a block of 512 bytes before the HDF5 file, and every array with its axes reversed."""
    import h5py

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in held.items():
            file[name] = np.atleast_2d(value).T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def kaneshiro(folder: Path, subjects: int = 2, repeats: int = 1, write=write_mat5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for subject in range(1, subjects + 1):
        write(folder / f"S{subject}.mat", kaneshiro_trials(subject, repeats))
    return folder


def kaneshiro_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(1, 73):
        Image.new("RGB", (6, 5), (number, 0, 0)).save(folder / f"stim_{number:02d}.png")
    return folder


# ---- THINGS-EEG2

N_CONCEPTS, PER_CONCEPT, N_TEST = 6, 2, 3


def things_eeg(subject: int, split: str, n_chans: int = 5, n_times: int = 40) -> dict:
    """The dict of one file: value of image m, repetition r at (0, 0) is 100 m + r."""
    n_images, repetitions = (N_CONCEPTS * PER_CONCEPT, 4) if split == "training" else (N_TEST, 8)
    data = np.random.default_rng(subject).normal(size=(n_images, repetitions, n_chans, n_times))
    data[:, :, 0, 0] = 100 * np.arange(n_images)[:, None] + np.arange(repetitions)
    return {
        "preprocessed_eeg_data": data,
        "ch_names": [f"O{c}" for c in range(n_chans)],
        "times": -0.1 + np.arange(n_times) / 100,
    }


def write_object_npy(path: Path, held: object) -> None:
    np.save(path, held, allow_pickle=True)


def write_pickle(path: Path, held: object, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(held, protocol=protocol))


def things_metadata() -> dict:
    train = [f"{k + 1:05d}_thing{k}" for k in range(N_CONCEPTS) for _ in range(PER_CONCEPT)]
    test = [f"{k + 1:05d}_other{k}" for k in range(N_TEST)]
    return {
        "train_img_concepts": train,
        "train_img_files": [f"{name[6:]}_{k % PER_CONCEPT:02d}.jpg" for k, name in enumerate(train)],
        "train_img_concepts_THINGS": [f"{int(name[:5]) * 7:05d}{name[5:]}" for name in train],
        "test_img_concepts": test,
        "test_img_files": [f"{name[6:]}_00.jpg" for name in test],
        "test_img_concepts_THINGS": [f"{900 + k:05d}{name[5:]}" for k, name in enumerate(test)],
    }


def things_eeg2(folder: Path, subjects: int = 2, write=write_object_npy) -> Path:
    for subject in range(1, subjects + 1):
        own = folder / f"sub-{subject:02d}"
        own.mkdir(parents=True)
        for split in ("training", "test"):
            write(own / f"preprocessed_eeg_{split}.npy", things_eeg(subject, split))
    held = things_metadata()
    write_object_npy(folder / "image_metadata.npy", held)
    for part, name in (("train", "training"), ("test", "test")):
        for k, (concept, file) in enumerate(zip(held[f"{part}_img_concepts"], held[f"{part}_img_files"], strict=True)):
            path = folder / f"{name}_images" / concept / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (7, 7), (0, 20 * k, 0)).save(path)
    return folder


# ---- recordings: the same signal in every format

NAMES = ("O1", "Oz", "O2")
EVENTS = ((2.0, "face"), (4.5, "house"), (6.25, "face"), (8.0, "house"))  # s
CODES = {"face": 1, "house": 2}


def signal(seed: int, sfreq: int = 100, seconds: int = 12, n_chans: int = 3) -> np.ndarray:
    """[C, T] in microvolt, in steps of 0.1."""
    return np.random.default_rng(seed).normal(scale=20, size=(n_chans, sfreq * seconds)).round(1)


def write_edf(path: Path, uv: np.ndarray, sfreq: int, names=NAMES, events=EVENTS) -> None:
    """EDF+: one-second records of 16-bit samples of 0.1 microvolt, and a signal of annotations."""
    room = 120  # bytes of annotations per record
    fields = [[name, "", "uV", "-3276.8", "3276.7", "-32768", "32767", "", str(sfreq)] for name in names]
    fields.append(["EDF Annotations", "", "", "-1", "1", "-32768", "32767", "", str(room // 2)])
    seconds = uv.shape[1] // sfreq
    digital = np.round(uv * 10).astype("<i2")
    with path.open("wb") as file:
        file.write(_edf_header(b"0       ", "EDF+C", seconds, fields))
        for second in range(seconds):
            file.write(digital[:, second * sfreq : (second + 1) * sfreq].tobytes())
            lists = f"+{second}\x14\x14\x00"
            lists += "".join(f"+{onset}\x150.1\x14{name}\x14\x00" for onset, name in events if int(onset) == second)
            file.write(lists.encode().ljust(room, b"\x00"))


def write_bdf(path: Path, uv: np.ndarray, sfreq: int, names=NAMES, events=EVENTS) -> None:
    """BDF: 24-bit samples of 1/32 microvolt, and the Status channel with the codes of CODES for 50 ms."""
    top, physical = 2**23, 2**18  # headers have room for 8 letters
    scale = ["uV", str(-physical), str(physical - 1), str(-top), str(top - 1), "", str(sfreq)]
    fields = [[name, "", *scale] for name in names]
    fields.append(["Status", "", "Boolean", str(-top), str(top - 1), str(-top), str(top - 1), "", str(sfreq)])
    status = np.zeros(uv.shape[1])
    for onset, name in events:
        start = round(onset * sfreq)
        status[start : start + sfreq // 20] = CODES[name]
    steps = (2 * top - 1) / (2 * physical - 1)  # per microvolt
    digital = np.vstack([np.round((uv + physical) * steps - top), status]).astype("<i4")
    seconds = uv.shape[1] // sfreq
    with path.open("wb") as file:
        file.write(_edf_header(b"\xffBIOSEMI", "24BIT", seconds, fields))
        for second in range(seconds):
            block = np.ascontiguousarray(digital[:, second * sfreq : (second + 1) * sfreq])
            file.write(block.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())


def _edf_header(magic: bytes, kind: str, records: int, fields: list[list[str]]) -> bytes:
    widths = (16, 80, 8, 8, 8, 8, 8, 80, 8)
    start = [("X X X X", 80), ("Startdate 01-JAN-2020 X X X", 80), ("01.01.20", 8), ("10.00.00", 8)]
    start += [(str(256 * (len(fields) + 1)), 8), (kind, 44), (str(records), 8), ("1", 8), (str(len(fields)), 4)]
    text = "".join(value.ljust(width)[:width] for value, width in start)
    for k, width in enumerate(widths):
        text += "".join(field[k].ljust(width)[:width] for field in fields)
    return magic + (text + " " * 32 * len(fields)).encode("ascii")


def write_vhdr(path: Path, uv: np.ndarray, sfreq: int, names=NAMES, events=EVENTS) -> None:
    """BrainVision: .vhdr, .vmrk with markers counted from 1, .eeg of 32-bit floats."""
    uv.T.astype("<f4").tofile(path.with_suffix(".eeg"))
    channels = "".join(f"Ch{k + 1}={name},,1,uV\n" for k, name in enumerate(names))
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\nMarkerFile={path.stem}.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        f"NumberOfChannels={len(names)}\nSamplingInterval={1_000_000 // sfreq}\n\n[Binary Infos]\n"
        f"BinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]\n{channels}"
    )
    markers = [
        f"Mk{k}=Stimulus,{name},{round(onset * sfreq) + 1},1,0\n" for k, (onset, name) in enumerate(events, start=2)
    ]
    path.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={path.stem}.eeg\n\n[Marker Infos]\nMk1=New Segment,,1,1,0,20200101100000000000\n" + "".join(markers)
    )


def write_fif(path: Path, uv: np.ndarray, sfreq: int, names=NAMES, events=EVENTS, first_samp: int = 70) -> None:
    """FIF by MNE, with an EOG channel, a stimulus channel, annotations, and samples that do not count from 0."""
    import mne

    stim = np.zeros((1, uv.shape[1]))
    for onset, name in events:
        stim[0, round(onset * sfreq) :][: sfreq // 20] = CODES[name]
    kinds = ["eeg"] * len(names) + ["eog", "stim"]
    info = mne.create_info([*names, "EOG", "STI 014"], sfreq, kinds)
    raw = mne.io.RawArray(np.vstack([uv * 1e-6, uv[:1] * 1e-5, stim]), info, first_samp=first_samp, verbose="error")
    raw.set_annotations(mne.Annotations([o for o, _ in events], 0.1, [n for _, n in events]))
    raw.save(path, overwrite=True, verbose="error")


def write_set(path: Path, uv: np.ndarray, sfreq: int, names=NAMES, events=EVENTS) -> None:
    """EEGLAB's SET with the data inside; latencies count from 1."""
    from scipy.io import savemat

    places = np.zeros(len(names), dtype=[("labels", object), ("X", object), ("Y", object), ("Z", object)])
    places["labels"], places["X"], places["Y"], places["Z"] = names, 0.0, 0.1, 0.1
    marks = np.zeros(len(events), dtype=[("type", object), ("latency", object), ("duration", object)])
    for mark, (onset, name) in zip(marks, events, strict=True):
        mark["type"], mark["latency"], mark["duration"] = name, onset * sfreq + 1, 0.0
    eeg = {"setname": path.stem, "nbchan": len(names), "pnts": uv.shape[1], "trials": 1, "srate": float(sfreq)}
    eeg |= {"xmin": 0.0, "xmax": (uv.shape[1] - 1) / sfreq, "data": uv.astype(np.float32), "ref": "common"}
    eeg |= {"chanlocs": places, "event": marks, "epoch": [], "icawinv": [], "icasphere": [], "icaweights": []}
    savemat(path, {"EEG": eeg}, appendmat=False)


WRITERS = {".edf": write_edf, ".bdf": write_bdf, ".fif": write_fif, ".set": write_set, ".vhdr": write_vhdr}


def recordings(folder: Path, ending: str, n: int = 3, sfreq: int = 100) -> Path:
    """anna_raw.edf, bela_raw.edf, ...: file k holds signal(k)."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(("anna", "bela", "cleo", "dora")[:n]):
        WRITERS[ending](folder / f"{name}_raw{ending}", signal(k, sfreq), sfreq)
    return folder


def bids(root: Path, subjects: int = 3, sfreq: int = 100) -> Path:
    """A tree with a picture per event, a bad channel and a channel that is no EEG."""
    (root / "stimuli").mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "tiny faces", "BIDSVersion": "1.8.0", "License": "CC0"}')
    (root / "task-see_eeg.json").write_text('{"PowerLineFrequency": 60, "SamplingFrequency": 100}')
    (root / "task-see_channels.tsv").write_text(
        "name\ttype\tunits\tstatus\nO1\tEEG\tuV\tgood\nOz\tEEG\tuV\tgood\nO2\tEEG\tuV\tbad\nPupil\tPUPIL\tn/a\tgood\n"
    )
    for k in range(4):
        Image.new("RGB", (5, 4), (40 * k, 10, 10)).save(root / f"stimuli/{k}.png")
    for subject in range(1, subjects + 1):
        folder = root / f"sub-{subject:02d}" / "ses-1" / "eeg"
        folder.mkdir(parents=True)
        stem = f"sub-{subject:02d}_ses-1_task-see_run-2"
        uv = signal(subject, sfreq, n_chans=4)
        write_edf(folder / f"{stem}_eeg.edf", uv, sfreq, (*NAMES, "Pupil"), ())
        rows = "".join(f"{o}\t0.5\t{name}\t{k}.png\t{k // 2}\n" for k, (o, name) in enumerate(EVENTS))
        rows += "11.7\t0.5\tface\t0.png\t1\n3.0\t0\tn/a\tn/a\tn/a\n"
        (folder / f"{stem}_events.tsv").write_text("onset\tduration\ttrial_type\tstim_file\tblock\n" + rows)
    return root


def truncated(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def garbage(path: Path) -> None:
    path.write_bytes(struct.pack("<100d", *range(100)))

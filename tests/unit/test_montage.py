"""Electrodes of the data made those of a network: by name, by position, or not at all."""

import logging

import numpy as np
import pytest

from eeg_gan.config import UserError
from eeg_gan.models.eeg import montage
from eeg_gan.models.eeg.montage import mixing, plain

DATA = ("Fp1", "Fp2", "F7", "F8", "C3", "Cz", "C4", "P7", "P8", "O1", "Oz", "O2")


def test_names_are_mapped_in_the_order_of_the_network_whatever_their_spelling():
    weights = mixing(("EEG Fp1-REF", "cz", "T3", "Oz."), ("OZ", "T7", "Fp1", "Cz"), "refuse")
    assert np.array_equal(weights, np.eye(4)[[3, 2, 0, 1]])
    assert [plain(name) for name in ("EEG T5-LE", "FP1-F7", " Cz..")] == ["P7", "FP1-F7", "CZ"]


def test_a_pair_is_the_difference_of_its_electrodes_unless_the_data_have_the_pair():
    assert np.array_equal(mixing(("Fp1", "F7", "T3"), ("FP1-F7", "F7-T7"), "refuse"), [[1, -1, 0], [0, 1, -1]])
    assert np.array_equal(mixing(("Fp1-F7", "F7-T7"), ("FP1-F7", "F7-T7"), "refuse"), np.eye(2))


def test_a_pair_may_be_interpolated_too_and_places_add_to_the_montage():
    pytest.importorskip("mne")
    weights = mixing(DATA, ("F7-T7", "F7", "T7", "My1"), "interpolate", {"My1": montage._montage()["T7"]})
    np.testing.assert_allclose(weights[0], weights[1] - weights[2])
    np.testing.assert_allclose(weights[3], weights[2])
    with pytest.raises(UserError, match="SCALE of the network"):  # said to lie in the middle of the head
        mixing(DATA, ("SCALE",), "interpolate", {"SCALE": np.array([0.0, -0.01, 0.03])})


def test_what_is_absent_is_refused_by_name_unless_asked_for():
    with pytest.raises(UserError, match="the data lack PZ; set encoder.zoo.absent=interpolate"):
        mixing(DATA, (*DATA, "Pz"), "refuse")


def test_interpolation_is_that_of_mne(caplog):
    mne = pytest.importorskip("mne")
    wanted = ("Fz", "Pz", "P3", "T7")
    with caplog.at_level(logging.WARNING, "eeg_gan"):
        weights = mixing(DATA, ("Cz", *wanted), "interpolate")
    assert "interpolated from other electrodes: 4 of 5, FZ, PZ, P3, T7" in caplog.text
    assert np.array_equal(weights[0], np.eye(len(DATA))[DATA.index("Cz")])
    where = montage.positions((*DATA, *wanted))
    info = mne.create_info([*DATA, *wanted], 100.0, "eeg")
    head = mne.channels.make_dig_montage({name: 0.095 * place for name, place in where.items()}, coord_frame="head")
    x = np.random.default_rng(0).normal(size=(len(DATA), 50))
    raw = mne.io.RawArray(np.vstack([x, np.zeros((4, 50))]), info, verbose="error").set_montage(head, verbose="error")
    raw.info["bads"] = list(wanted)
    theirs = raw.interpolate_bads(origin=(0.0, 0.0, 0.0), verbose="error").get_data(picks=list(wanted))
    np.testing.assert_allclose(weights[1:] @ x, theirs, rtol=1e-4, atol=1e-6)


def test_a_smooth_field_is_interpolated_nearly_and_never_to_zero():
    pytest.importorskip("mne")
    where = montage.positions((*DATA, "Pz", "Fz"))
    field = {name: 1 + place @ np.array([0.3, 0.5, -0.4]) for name, place in where.items()}
    weights = mixing(DATA, ("Pz", "Fz"), "interpolate")
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights @ [field[name] for name in DATA], [field["Pz"], field["Fz"]], atol=0.1)


def test_positions_lie_around_the_middle_of_the_head():
    pytest.importorskip("mne")
    where = montage.positions(("Cz", "T7", "T8", "Fpz", "Oz"))
    np.testing.assert_allclose([np.linalg.norm(place) for place in where.values()], 1, atol=1e-6)
    for left, right in (("T7", "T8"), ("Fpz", "Oz")):  # on opposite sides, a quarter of the way round from Cz
        assert where[left] @ where[right] < -0.85
        assert abs(where[left] @ where["Cz"]) < 0.3


@pytest.mark.parametrize(
    "data, network, said",
    [
        (DATA, ("Cz", "SCALE"), "SCALE of the network have no position"),
        (("E1", "E2", "Cz", "Pz"), ("Cz", "Oz"), "2 of the data's electrodes"),
        (("T3", "T7", "Cz"), ("Cz",), "T3 and T7 of the data are one electrode"),
    ],
)
def test_what_cannot_be_interpolated_is_refused(data, network, said):
    pytest.importorskip("mne")
    with pytest.raises(UserError, match=said):
        mixing(data, network, "interpolate")


def test_electrodes_that_nothing_reads_are_said(caplog):
    with caplog.at_level(logging.WARNING, "eeg_gan"):
        mixing(DATA, ("Cz", "Oz"), "refuse")
    assert "no place for 10 of the data's electrodes: Fp1, Fp2" in caplog.text

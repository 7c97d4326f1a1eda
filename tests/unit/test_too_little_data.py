"""Too little data is the user's to mend, so each of these says so in a UserError."""

import numpy as np
import pytest
import torch

from eeg_gan.config import UserError
from eeg_gan.metrics import distribution, embedding, statistics
from eeg_gan.models.eeg import EncoderConfig, build_encoder
from eeg_gan.models.stylegan2.layers import minibatch_deviation, sizes_up_to

ONE = np.ones((1, 4))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: distribution.frechet(ONE, ONE), "give more images"),
        (lambda: distribution.precision_recall(ONE, ONE), "needs 4 samples"),
        (lambda: embedding.clusters(ONE, 2, 0), "evaluate a larger split"),
        (lambda: embedding.linear_svm(ONE, np.zeros(1), ONE, np.zeros(1)), "one class only"),
        (lambda: embedding.lda_baseline(ONE[None], np.zeros(1), ONE[None], np.zeros(1)), "one class only"),
        (lambda: statistics.bootstrap_mean([]), "is empty"),
        (lambda: build_encoder(EncoderConfig("erp"), 4, 15), "16 samples or more"),
        (lambda: build_encoder(EncoderConfig("tsconv"), 4, 15), "16 samples or more"),
        (lambda: build_encoder(EncoderConfig("eegnet"), 4, 15), "16 samples or more"),
        (lambda: build_encoder(EncoderConfig("atm"), 4, 15), "16 samples or more"),
        (lambda: build_encoder(EncoderConfig("cnn", keep_time=False), 14, 16), "keep_time=true"),
        (lambda: sizes_up_to(36), "such an image_size"),
        (lambda: minibatch_deviation(torch.zeros(6, 1, 4, 4), 4), "mbstd_group"),
    ],
)
def test_is_refused(call, said):
    with pytest.raises(UserError, match=said):
        call()


def test_votes_of_neighbours():
    z, y = np.eye(3).repeat(2, 0), np.array([2, 2, 5, 5, 7, 7])
    assert embedding.knn_predict(z, y, np.eye(3), k=2).tolist() == [2, 5, 7]
    assert embedding.knn_accuracy(z, y, np.eye(3), np.array([2, 5, 0]), k=2).tolist() == [True, True, False]

import pytest

from eeg_gan.config import UserError
from eeg_gan.data import card as cards
from eeg_gan.data.card import Card

VALUES = {
    "name": "tiny",
    "sfreq": 100.0,
    "ch_names": ["Oz", "Pz"],
    "design": "block",
    "class_names": ["cat", "dog"],
    "licence": "CC0",
    "line_hz": 50,
}


def test_dict_and_back():
    card = cards.from_dict(VALUES, "dataset.yaml")
    assert card.ch_names == ("Oz", "Pz") and card.unit == "uV" and card.pairing == "none"
    assert cards.from_dict(cards.to_dict(card)) == card


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sfreq": 0}, "sfreq"),
        ({"unit": "V"}, "microvolt"),
        ({"line_hz": 55}, "line_hz"),
        ({"ch_names": []}, "ch_names is empty"),
        ({"ch_names": ["Oz", "Oz"]}, "Oz more than once"),
        ({"class_names": []}, "class_names is empty"),
        ({"design": "blocks"}, "did you mean block"),
        ({"samplerate": 3}, "unknown key samplerate"),
    ],
)
def test_mistakes_name_file_and_key(wrong, said):
    with pytest.raises(UserError, match=said) as error:
        cards.from_dict(VALUES | wrong, "dataset.yaml")
    assert "dataset.yaml" in str(error.value)


def test_choice_is_checked_without_yaml_too():
    with pytest.raises(ValueError, match="design"):
        Card("a", 100, ("Oz",), "random", ("cat",), "CC0")

"""`python -m eeg_gan VERB CONFIG.yaml [key=value ...]`, the form that launchers use."""

from eeg_gan.cli import entry

if __name__ == "__main__":
    entry()

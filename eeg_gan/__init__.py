"""Visual representations from EEG, and images made from them (Singh & Raman, WACV 2024)."""

__version__ = "0.1.0"

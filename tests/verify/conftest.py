"""Settings of the tests that run torch."""

from __future__ import annotations

import os

import pytest
import torch

# Read when transformers is imported, which takes seconds and few tests need.
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _single_threaded() -> None:
    """Tests run side by side; threads of theirs would only get in each other's way."""
    torch.set_num_threads(1)

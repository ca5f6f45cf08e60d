"""Settings of the tests that run torch."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_single_threaded() -> None:
    """Tests run side by side; threads of theirs would only get in each other's way."""
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

"""The static fraction against SGLang's own functions.

The expected values are what the released functions return: `_handle_gpu_memory_settings` of
sglang 0.5.5 to 0.5.15 (srt/server_args.py) and `handle_gpu_memory_settings` of 0.5.20 and 0.5.23
(srt/arg_groups/memory_hook.py), taken out of the source distributions and called with these
settings on a stand-in for the server arguments. Older releases have constants that stand in their
source.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesize.core.errors import InvalidDeploymentError
from moesize.core.sglang_budget import (
    ReserveSettings,
    capacity_defaults,
    memory_fraction,
    prefill_graph_sizes,
)
from moesize.engines import engine_profile

# version, nvidia-smi MiB, tp, attention dp, chunk, speculation, latent, prefill graphs
#     -> mem_fraction_static, chunked_prefill_size, largest decode graph
FRACTIONS = [
    ("0.5.5", 81559, 1, 1, None, "", False, False, 0.835, 8192, 256),
    ("0.5.5", 81559, 8, 1, None, "", False, False, 0.818, 8192, 512),
    ("0.5.5", 143771, 8, 1, None, "", False, False, 0.897, 8192, 512),
    ("0.5.5", 24564, 1, 1, None, "", False, False, 0.847, 2048, 24),
    ("0.5.5", 81559, 2, 1, 16384, "", False, False, 0.683, 16384, 256),
    ("0.5.5", 24564, 4, 1, None, "", False, False, 0.827, 2048, 80),
    ("0.5.5", 143771, 1, 1, 16384, "EAGLE", False, False, 0.807, 16384, 256),
    ("0.5.5", 183359, 4, 1, 16384, "EAGLE", True, False, 0.844, 16384, 512),
    ("0.5.10", 24564, 2, 1, None, "", False, True, 0.828, 2048, 24),
    ("0.5.10", 143771, 8, 4, 16384, "", True, False, 0.747, 16384, 512),
    ("0.5.10", 143771, 4, 1, None, "", True, True, 0.89, 8192, 512),
    ("0.5.10", 81559, 2, 1, None, "EAGLE", False, False, 0.783, 8192, 256),
    ("0.5.10", 183359, 8, 1, None, "", False, True, 0.849, 16384, 512),
    ("0.5.15", 81559, 8, 8, None, "", True, False, 0.592, 8192, 512),
    ("0.5.15", 46068, 8, 4, None, "", False, False, 0.785, 4096, 160),
    ("0.5.15", 183359, 4, 4, None, "EAGLE", False, False, 0.805, 16384, 512),
    ("0.5.20", 24564, 8, 8, None, "", False, True, 0.502, 4096, 160),
    ("0.5.20", 143771, 8, 1, None, "", False, True, 0.893, 8192, 512),
    ("0.5.20", 183359, 1, 1, 16384, "", True, True, 0.849, 16384, 512),
    ("0.5.23", 81559, 8, 8, None, "", True, True, 0.573, 8192, 512),
    ("0.5.23", 143771, 4, 1, None, "EAGLE", True, True, 0.89, 8192, 512),
    ("0.5.23", 81559, 1, 1, None, "", False, True, 0.83, 8192, 256),
    ("0.5.23", 46068, 4, 1, None, "", False, True, 0.829, 4096, 160),
]


@pytest.mark.parametrize("row", FRACTIONS)
def test_fraction_of_the_released_functions(row: tuple[object, ...]) -> None:
    version, driver, tp, dp, chunk, algorithm, latent, graphs, *expected = row
    facts = engine_profile("sglang", str(version)).facts
    settings = ReserveSettings(
        driver_mib=driver,  # type: ignore[arg-type]
        tensor_parallel_size=tp,  # type: ignore[arg-type]
        attention_data_parallel_size=dp,  # type: ignore[arg-type]
        chunked_prefill_size=chunk,  # type: ignore[arg-type]
        speculation=str(algorithm),
        latent=bool(latent),
        prefill_graphs=bool(graphs),
    )
    capacity = capacity_defaults(settings, facts)
    assert [
        memory_fraction(settings, facts),
        capacity.chunked_prefill_size,
        capacity.graph_max_sequences,
    ] == expected


@pytest.mark.parametrize(
    ("version", "driver", "tp", "speculation", "dp", "expected"),
    [
        # 0.4.6 srt/server_args.py: a table up to 80 GiB, 13 GiB of larger cards.
        ("0.4.6", 81559, 1, "", 1, 0.88),
        ("0.4.6", 81559, 8, "", 1, 0.81),
        ("0.4.6", 143771, 8, "", 1, (143771 - 13312) / 143771),
        # 0.4.9.post6: (9.5 + tp / 2) GiB, 2 GiB for a draft, 4 GiB for data-parallel attention.
        ("0.4.9", 81559, 8, "", 1, round((81559 - 13.5 * 1024) / 81559, 3)),
        ("0.4.9", 143771, 8, "EAGLE", 8, round((143771 - 22 * 1024) / 143771, 3)),
        # 0.5.2: 6 GiB for a draft model of its own.
        ("0.5.2", 24564, 1, "STANDALONE", 1, round((24564 - 8.9 * 1024) / 24564, 3)),
    ],
)
def test_older_releases_reserve_constants(
    version: str, driver: int, tp: int, speculation: str, dp: int, expected: float
) -> None:
    facts = engine_profile("sglang", version).facts
    settings = ReserveSettings(
        driver_mib=driver,
        tensor_parallel_size=tp,
        speculation=speculation,
        attention_data_parallel_size=dp,
    )
    assert memory_fraction(settings, facts) == expected


def test_a_vision_tower_as_large_as_the_reference_takes_five_percent() -> None:
    """adjust_mem_fraction_for_vlm: factor 0.95 for 24 layers of 1024, at most 1.05 x that."""
    facts = engine_profile("sglang", "0.5.5").facts
    plain = ReserveSettings(driver_mib=81559, tensor_parallel_size=1)
    tower = ReserveSettings(driver_mib=81559, tensor_parallel_size=1, vision_size=24 * 1024**2)
    assert memory_fraction(tower, facts) == pytest.approx(0.95 * memory_fraction(plain, facts))


def test_sizes_of_prefill_graphs() -> None:
    """generate_prefill_cuda_graph_batch_sizes(8192) of 0.5.23 gives 58 sizes."""
    sizes = prefill_graph_sizes(8192)
    assert len(sizes) == 58
    assert (sizes[0], sizes[-1]) == (4, 8192)


def test_a_reserve_above_the_card_is_refused() -> None:
    facts = engine_profile("sglang", "0.5.23").facts
    settings = ReserveSettings(driver_mib=15360, tensor_parallel_size=1, chunked_prefill_size=32768)
    with pytest.raises(InvalidDeploymentError, match="reserves"):
        memory_fraction(settings, facts)


@given(
    st.sampled_from(["0.4.6", "0.4.9", "0.5.2", "0.5.5", "0.5.10", "0.5.15", "0.5.23"]),
    st.integers(40_000, 300_000),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1024, 2048, 4096, 8192]),
)
def test_fraction_lies_between_nothing_and_the_card(
    version: str, driver: int, tp: int, chunk: int
) -> None:
    facts = engine_profile("sglang", version).facts
    settings = ReserveSettings(
        driver_mib=driver, tensor_parallel_size=tp, chunked_prefill_size=chunk
    )
    larger = ReserveSettings(
        driver_mib=driver, tensor_parallel_size=tp, chunked_prefill_size=2 * chunk
    )
    fraction = memory_fraction(settings, facts)
    assert 0 < fraction < 1
    assert memory_fraction(larger, facts) <= fraction

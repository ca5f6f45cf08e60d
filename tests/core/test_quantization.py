"""Bytes of weight formats and the schemes, compared with published checkpoints and packages."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moesize.core.errors import InvalidInputError, UnknownNameError, UnsupportedError
from moesize.core.quantization import (
    find_scheme,
    list_schemes,
    resolve_family,
    scheme_format_for,
)
from moesize.core.weight_formats import (
    BLOCK_TYPES,
    NUMBER_FORMATS,
    BitsAndBytes4Bit,
    BitsAndBytesInt8,
    Fp8Block,
    Fp8PerChannel,
    Fp8PerTensor,
    Gguf,
    GroupInt,
    Held,
    Int8PerChannel,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    PackQuantized,
    Plain,
    WeightFormat,
    find_block_type,
    find_number_format,
    number_bytes,
)

FORMATS: tuple[WeightFormat, ...] = (
    Plain(dtype="bfloat16"),
    Fp8PerTensor(),
    Fp8PerTensor(static_input_scale=True),
    Fp8PerChannel(),
    Int8PerChannel(),
    Fp8Block(),
    Fp8Block(block_rows=1, block_cols=32, scale_dtype="float8_e8m0"),
    GroupInt(bits=4, group_size=128, symmetric=True),
    GroupInt(bits=3, group_size=-1, symmetric=False, act_order=True),
    GroupInt(bits=8, group_size=32, symmetric=True, zero_points_stored=False),
    PackQuantized(bits=4, group_size=128),
    PackQuantized(bits=2, group_size=32, symmetric=False),
    BitsAndBytes4Bit(),
    BitsAndBytes4Bit(nested=True),
    BitsAndBytesInt8(),
    Mxfp4(),
    Mxfp8(),
    Nvfp4(),
    Nvfp4(static_input_scale=False),
)
HELD: tuple[Held, ...] = ("file", "vllm_load", "vllm")
AWQ = find_scheme("awq-4bit").weight_format
GPTQ = find_scheme("gptq-4bit").weight_format

Shapes = list[tuple[int, int]]


def _sum_bytes(weight_format: WeightFormat, shapes: Shapes, held: Held = "file") -> int:
    return sum(weight_format.matrix_bytes(*shape, held=held) for shape in shapes)


def _llama_layer(hidden: int, kv_width: int, width: int) -> Shapes:
    attention = [(hidden, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, hidden)]
    return [*attention, (width, hidden), (width, hidden), (hidden, width)]


# --- Number formats and block types -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "bits"),
    [
        ("bfloat16", "bfloat16", 16),
        ("torch.float16", "float16", 16),
        ("BF16", "bfloat16", 16),
        ("F8_E4M3", "float8_e4m3", 8),
        ("float8_e8m0fnu", "float8_e8m0", 8),
        ("I64", "int64", 64),
        ("fp32", "float32", 32),
        ("int4", "int4", 4),
    ],
)
def test_number_formats(name: str, expected: str, bits: int) -> None:
    """Widths by definition; spellings of torch and of safetensors headers."""
    found = find_number_format(name)
    assert (found.name, found.bits) == (expected, bits)


def test_number_bytes() -> None:
    """Three 4-bit numbers need two bytes; an unknown format is refused."""
    assert number_bytes("uint4", 3) == 2
    assert number_bytes("bfloat16", 3) == 6
    with pytest.raises(UnknownNameError) as caught:
        number_bytes("float17", 1)
    assert caught.value.suggestions


# Type: (elements, bytes) of sizeof(block_*) in ggml-org/ggml src/ggml-common.h at d99724f2b.
GGML_SIZES = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q8_1": (32, 36),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
    "Q1_0": (128, 18),
    "Q2_0": (64, 18),
}


def test_block_types() -> None:
    """Source: ggml-common.h, see GGML_SIZES."""
    ours = {t.name: (t.elements_per_block, t.bytes_per_block) for t in BLOCK_TYPES.values()}
    assert ours == GGML_SIZES


def test_block_types_equal_gguf_package() -> None:
    """The PyPI package `gguf` (0.19.0); its Q8_1 is 40 bytes, never in a file; it lacks Q2_0."""
    from gguf.constants import GGML_QUANT_SIZES

    theirs = {kind.name: size for kind, size in GGML_QUANT_SIZES.items()}
    for name, size in GGML_SIZES.items():
        if name in theirs and name != "Q8_1":
            assert theirs[name] == size, name


def test_find_block_type() -> None:
    """Any case; an unknown type names the nearest."""
    assert find_block_type("q4_k") is BLOCK_TYPES["Q4_K"]
    with pytest.raises(UnknownNameError) as caught:
        find_block_type("Q4_KK")
    assert "Q4_K" in caught.value.suggestions


# --- Whole checkpoints --------------------------------------------------------------------------


def test_qwen_7b_chat_int4_file() -> None:
    """total_size 5,860,564,992 of Qwen/Qwen-7B-Chat-Int4 (model.safetensors.index.json): GPTQ,
    g_idx and a bias for every linear layer; embedding and head apart, 65 norms, float16."""
    d, f = 4096, 11008
    layer = _sum_bytes(GPTQ, [(3 * d, d), (d, d), (f, d), (f, d), (d, f)])
    biases = (3 * d + d + f + f + d) * 2
    assert 32 * (layer + biases) + 2 * 151936 * d * 2 + 65 * d * 2 == 5_860_564_992


def test_mistral_7b_awq() -> None:
    """4,150,796,288 bytes of parameters of TheBloke/Mistral-7B-Instruct-v0.1-AWQ, as vLLM 0.32.0
    creates them on torch's meta device; Marlin keeps the zero points."""
    for held in HELD:
        layer = _sum_bytes(AWQ, _llama_layer(4096, 1024, 14336), held)
        assert 32 * layer + 2 * 32000 * 4096 * 2 + 65 * 4096 * 2 == 4_150_796_288


def test_command_r_plus_awq() -> None:
    """58,592,485,376 bytes of aixsatoshi/c4ai-command-r-plus-08-2024-awq in vLLM 0.32.0: tied
    embeddings, one norm a layer, q and k norms for each of 96 + 8 heads."""
    d = 12288
    layer = _sum_bytes(AWQ, _llama_layer(d, 1024, 33792), "vllm_load")
    rest = 256000 * d * 2 + 65 * d * 2 + 64 * (96 + 8) * 128 * 2
    assert 64 * layer + rest == 58_592_485_376


def test_mixtral_gptq_channel_wise() -> None:
    """23,785,152,512 bytes of IbuNai/Mixtral-8x7B-v0.1-gptq-4bit (group_size -1, desc_act) in vLLM
    0.32.0, which also creates biases, all zero, for every expert (w13_bias, w2_bias)."""
    channel_wise = GroupInt(bits=4, group_size=-1, symmetric=True, act_order=True)
    attention, expert = _llama_layer(4096, 1024, 14336)[:4], _llama_layer(4096, 1024, 14336)[4:]
    layer = _sum_bytes(channel_wise, attention + 8 * expert, "vllm_load")
    expert_biases = 8 * (2 * 14336 + 4096) * 2
    router, rest = 8 * 4096 * 2, 2 * 32000 * 4096 * 2 + 65 * 4096 * 2
    assert 32 * (layer + expert_biases + router) + rest == 23_785_152_512


def test_llama_8b_bitsandbytes_int8_file() -> None:
    """total_size 11,188,584,672 of IrfanUruchi/Llama-3.1-8B-Computer-Networks-LLM
    (model.safetensors.index.json): LLM.int8(), float32 elsewhere."""
    layer = _sum_bytes(BitsAndBytesInt8(), _llama_layer(4096, 1024, 14336))
    assert 32 * layer + 2 * 128256 * 4096 * 4 + 65 * 4096 * 4 == 11_188_584_672


def test_gpt_oss_20b() -> None:
    """13,761,264,768 bytes of openai/gpt-oss-20b in vLLM 0.32.0 on a Hopper GPU, where nothing is
    padded: MXFP4 experts with biases, everything else bfloat16."""
    d, experts, layers = 2880, 32, 24
    expert = _sum_bytes(Mxfp4(), [(2 * d, d), (d, d)]) + (2 * d + d) * 2
    attention = 2 * (64 * 64 * d) + 2 * (8 * 64 * d) + (64 * 64 + 2 * 512 + d) + 64
    layer = experts * expert + 2 * (attention + experts * d + experts + 2 * d)
    assert layers * layer + 2 * (2 * 201088 * d + d) == 13_761_264_768


@pytest.mark.parametrize(
    ("weight_format", "expected"),
    [(Fp8Block(), 236_445_456_112), (Nvfp4(), 134_101_652_144)],
)
def test_qwen3_235b(weight_format: WeightFormat, expected: int) -> None:
    """Qwen/Qwen3-235B-A22B-FP8 and nvidia/Qwen3-235B-A22B-NVFP4, parameters of vLLM 0.32.0 on
    torch's meta device; 8 bytes a layer are its scales of the KV cache."""
    h, f, layers = 4096, 1536, 94
    attention = [(64 * 128, h), (4 * 128, h), (4 * 128, h), (h, 64 * 128)]
    experts = 128 * [(f, h), (f, h), (h, f)]
    layer = _sum_bytes(weight_format, attention + experts, "vllm_load")
    unquantized = 2 * (128 * h + 2 * h + 2 * 128)
    total = layers * (layer + unquantized + 8) + 2 * (2 * 151936 * h + h)
    assert total == expected


def test_deepseek_v3_elements() -> None:
    """684,531,386,000 tensor elements of deepseek-ai/DeepSeek-V3 (safetensors.total on the hub),
    scales included, of which 41,555,600 are float32: block scales and routing biases."""
    h, fp8 = 7168, Fp8Block()
    attention = [(1536, h), (128 * 192, 1536), (576, h), (128 * 256, 512), (h, 128 * 128)]
    dense = [(18432, h), (18432, h), (h, 18432)]
    expert = [(2048, h), (2048, h), (h, 2048)]
    # 61 layers and one MTP block, all but the first 3 with 256 routed and 1 shared expert.
    quantized = 62 * attention + 3 * dense + 59 * 257 * expert
    counts = {"weight": 0, "scale": 0}
    for shape, times in {shape: quantized.count(shape) for shape in set(quantized)}.items():
        for part in fp8.components(*shape):
            counts[part.name] += part.elements * times
    routing_biases = 59 * 256
    assert counts["scale"] + routing_biases == 41_555_600
    embeddings = 2 * 2 * 129280 * h  # embedding and head, and copies of both in the MTP block
    mtp = 2 * h * h + 3 * h
    norms = 62 * (2 * h + 1536 + 512) + h
    kept = embeddings + mtp + norms + 59 * 256 * h + routing_biases
    assert counts["weight"] + counts["scale"] + kept == 684_531_386_000


@pytest.mark.parametrize(
    ("nested", "out_features", "in_features", "expected"),
    [
        (False, 256, 128, 16384 + 2048 + 64),
        (True, 256, 128, 16384 + 512 + 64 + 8 + 1024),
        (False, 33, 70, 1155 + 148 + 64),
        (True, 33, 70, 1155 + 37 + 64 + 4 + 1024),
    ],
)
def test_bitsandbytes_4bit(
    nested: bool, out_features: int, in_features: int, expected: int
) -> None:
    """Tensors in the state dict of bitsandbytes 0.50.2 Linear4bit (nf4), quantized on a CPU; its
    JSON tensor (77 to 169 bytes) left out. In vLLM, nesting is undone."""
    weight_format = BitsAndBytes4Bit(nested=nested)
    assert weight_format.matrix_bytes(out_features, in_features) == expected
    plain = BitsAndBytes4Bit().matrix_bytes(out_features, in_features)
    assert weight_format.matrix_bytes(out_features, in_features, held="vllm") == plain


@pytest.mark.parametrize(
    ("bits", "weight_words", "zero_words"), [(2, 5, 3), (3, 7, 4), (4, 9, 5), (8, 18, 9)]
)
def test_pack_quantized_words(bits: int, weight_words: int, zero_words: int) -> None:
    """33 x 70 in groups of 32: shapes that compressed-tensors 0.20.0 pack_to_int32 returns."""
    parts = PackQuantized(bits=bits, group_size=32, symmetric=False).components(33, 70)
    elements = {part.name: part.elements for part in parts}
    assert elements["weight"] == 33 * weight_words
    assert elements["zero_point"] == zero_words * 3
    assert elements["scale"] == 33 * 3
    assert elements["weight_shape"] == 2


# --- One format at a time -----------------------------------------------------------------------


def test_scales_by_hand() -> None:
    """Small matrices worked by hand from the formulas in the docstrings."""
    assert Fp8PerTensor().matrix_bytes(3, 5) == 15 + 4
    assert Fp8PerTensor(static_input_scale=True).matrix_bytes(3, 5) == 15 + 8
    assert Fp8PerChannel().matrix_bytes(3, 5) == 15 + 3 * 2
    assert Int8PerChannel().matrix_bytes(3, 5, held="vllm") == 15 + 3 * 4
    assert Fp8Block().matrix_bytes(129, 128) == 129 * 128 + 2 * 4
    assert Fp8Block(scale_dtype="float8_e8m0").matrix_bytes(576, 7168) == 576 * 7168 + 5 * 56
    assert Mxfp4().matrix_bytes(2, 33) == 2 * (17 + 2)
    assert Mxfp8().matrix_bytes(2, 33) == 2 * (33 + 2)
    assert Nvfp4().matrix_bytes(2, 17) == 2 * (9 + 2) + 8
    assert Nvfp4(static_input_scale=False).matrix_bytes(2, 16) == 2 * (8 + 1) + 4
    assert Gguf(block_type=BLOCK_TYPES["Q6_K"]).matrix_bytes(3, 512) == 3 * 2 * 210
    assert BitsAndBytesInt8().matrix_bytes(3, 5, held="vllm") == 15 + 12


def test_gptq_stages() -> None:
    """128 x 256, 4 bits: g_idx is in the file only; symmetric zero points go when vLLM repacks."""
    weight, scales, zeros, g_idx = 128 * 256 // 2, 2 * 128 * 2, 2 * 128 // 2, 256 * 4
    assert GPTQ.matrix_bytes(128, 256) == weight + scales + zeros + g_idx
    assert GPTQ.matrix_bytes(128, 256, held="vllm_load") == weight + scales + zeros
    assert GPTQ.matrix_bytes(128, 256, held="vllm") == weight + scales


@given(st.sampled_from(FORMATS), st.sampled_from(HELD), st.integers(1, 3000), st.integers(1, 3000))
def test_components_add_up(
    weight_format: WeightFormat, held: Held, out_features: int, in_features: int
) -> None:
    """Sizes follow from dtype and elements, their sum is the total, names are unique."""
    parts = weight_format.components(out_features, in_features, held=held)
    for part in parts:
        assert part.size_bytes == part.elements * NUMBER_FORMATS[part.dtype].bits // 8
    total = weight_format.matrix_bytes(out_features, in_features, held=held)
    assert sum(part.size_bytes for part in parts) == total
    assert len({part.name for part in parts}) == len(parts)


@given(
    st.sampled_from(FORMATS),
    st.sampled_from(HELD),
    st.integers(1, 2000),
    st.integers(1, 2000),
    st.integers(0, 500),
    st.integers(0, 500),
)
def test_bytes_grow_with_dimensions(
    weight_format: WeightFormat, held: Held, out_features: int, in_features: int, a: int, b: int
) -> None:
    """A larger matrix never takes less."""
    small = weight_format.matrix_bytes(out_features, in_features, held=held)
    assert small <= weight_format.matrix_bytes(out_features + a, in_features + b, held=held)


@given(st.sampled_from(FORMATS), st.integers(1, 2000), st.integers(1, 2000))
def test_an_engine_adds_at_most_wider_scales(
    weight_format: WeightFormat, out_features: int, in_features: int
) -> None:
    """vLLM holds no more than the file plus what it widens: scales, a nested absmax."""
    in_file = weight_format.matrix_bytes(out_features, in_features)
    resident = weight_format.matrix_bytes(out_features, in_features, held="vllm")
    loaded = weight_format.matrix_bytes(out_features, in_features, held="vllm_load")
    widened = 2 * out_features + out_features * in_features // 16 + 64
    assert resident <= loaded <= in_file + widened


@given(st.sampled_from(sorted(BLOCK_TYPES)), st.integers(1, 50), st.integers(1, 5000))
def test_gguf_refuses_rows_that_do_not_divide(name: str, rows: int, row_elements: int) -> None:
    """As gguf-py does (quants.py:quant_shape_to_byte_shape)."""
    block_type = BLOCK_TYPES[name]
    weight_format = Gguf(block_type=block_type)
    if row_elements % block_type.elements_per_block:
        with pytest.raises(InvalidInputError, match=f"a row of {row_elements} elements"):
            weight_format.matrix_bytes(rows, row_elements)
    else:
        elements = rows * row_elements
        expected = elements // block_type.elements_per_block * block_type.bytes_per_block
        assert weight_format.matrix_bytes(rows, row_elements) == expected


@pytest.mark.parametrize("weight_format", [*FORMATS, Gguf(block_type=BLOCK_TYPES["F16"]), AWQ])
def test_empty_matrices_are_refused(weight_format: WeightFormat) -> None:
    """A dimension of 0 is a mistake of the caller."""
    with pytest.raises(InvalidInputError, match="no elements"):
        weight_format.matrix_bytes(0, 8)


@given(st.integers(1, 500), st.integers(1, 2000))
def test_awq_refuses_what_autoawq_refuses(out_features: int, in_features: int) -> None:
    """AutoAWQ 0.2.9 asserts in % group == 0 and out % 8 == 0."""
    assume(out_features % 8 or in_features % 128)
    with pytest.raises(InvalidInputError, match="AWQ cannot hold"):
        AWQ.matrix_bytes(out_features, in_features)


def test_impossible_integer_formats_are_refused() -> None:
    """Five bits and empty groups are no known layout."""
    with pytest.raises(InvalidInputError, match="5-bit"):
        GroupInt(bits=5, group_size=128, symmetric=True)
    with pytest.raises(InvalidInputError, match="groups of 0"):
        PackQuantized(bits=4, group_size=0)


# --- Schemes ------------------------------------------------------------------------------------

# What the command line promises, in its order, and some GGUF file types.
PROMISED = (
    *("bf16", "fp16", "fp32", "fp8", "fp8-block", "int8", "gptq-4bit", "awq-4bit", "gptq-8bit"),
    *("nf4", "nf4-dq", "mxfp4", "nvfp4", "w4a16", "w8a8"),
    *("Q4_K_M", "Q8_0", "Q2_K", "IQ4_XS", "MXFP4_MOE"),
)


def test_every_promised_name_is_found_in_any_case() -> None:
    """Source: the names that `--quant` documents."""
    for name in PROMISED:
        assert find_scheme(name).name == name
        assert find_scheme(name.upper()) is find_scheme(name.lower())
    assert find_scheme("float16").name == "fp16"


def test_scheme_names_are_unique_and_described() -> None:
    """A row of the table that lists them is never empty."""
    schemes = list_schemes()
    assert len({scheme.name.lower() for scheme in schemes}) == len(schemes)
    for scheme in schemes:
        assert scheme.title
        assert scheme.leaves_out
        assert scheme.capability_source
        assert hash(scheme) == hash(find_scheme(scheme.name))


def test_unknown_scheme_names_the_nearest() -> None:
    """Near names, in their own spelling, and the command that lists all."""
    with pytest.raises(UnknownNameError) as caught:
        find_scheme("q4_k_n")
    assert "Q4_K_M" in caught.value.suggestions
    assert "moesize quants" in caught.value.hint


MATRIX = (4096, 4096)


@pytest.mark.parametrize(
    ("scheme", "role", "shape", "is_quantized"),
    [
        ("fp8", "attention.q", MATRIX, True),
        ("fp8", "lm_head.weight", MATRIX, False),
        ("fp8", "router.weight", (8, 4096), False),
        ("fp8", "norms.hidden", (4096,), False),
        ("fp8", "attention.q.bias", (4096,), False),
        ("fp8", "attention.linear.conv", (8192, 1, 4), False),
        ("fp8", "attention.linear.a", (32, 4096), False),
        ("fp8", "attention.linear.qkv", MATRIX, True),
        ("fp8", "towers.vision", MATRIX, False),
        ("fp8", "other.mtp_projection", (4096, 8192), False),
        ("fp8-block", "attention.kv_b", MATRIX, True),
        ("fp8-block", "attention.indexer.q_b", MATRIX, True),
        ("fp8-block", "attention.indexer.weights", (64, 7168), False),
        ("awq-4bit", "attention.indexer.q_b", MATRIX, False),
        ("awq-4bit", "routed_experts.up", MATRIX, True),
        ("awq-4bit", "shared_experts.sigmoid_gate", (1, 4096), False),
        ("mxfp4", "routed_experts.down", MATRIX, True),
        ("mxfp4", "attention.q", MATRIX, False),
        ("mxfp4", "shared_experts.up", MATRIX, False),
        ("nvfp4", "attention.kv_a", MATRIX, False),
        ("nvfp4", "attention.o", MATRIX, True),
        ("nvfp4", "attention.q", MATRIX, True),
    ],
)
def test_what_schemes_leave(
    scheme: str, role: str, shape: tuple[int, ...], is_quantized: bool
) -> None:
    """Source: ignore lists of deepseek-ai/DeepSeek-V3.2, nvidia/DeepSeek-V3.1-NVFP4,
    nvidia/Qwen3-235B-A22B-NVFP4, openai/gpt-oss-20b; ModelOpt 0.47.0's default exceptions."""
    found = scheme_format_for(find_scheme(scheme), role, shape)
    assert found == (find_scheme(scheme).weight_format if is_quantized else None)


def test_transformers_leaves_experts_to_bitsandbytes() -> None:
    """transformers 5.19.0 replaces nn.Linear only; Mixtral's experts are nn.Parameter there."""
    scheme = find_scheme("nf4")
    assert scheme_format_for(scheme, "routed_experts.up", MATRIX, engine="transformers") is None
    assert scheme_format_for(scheme, "routed_experts.up", MATRIX, engine="vllm") is not None
    assert scheme_format_for(scheme, "attention.q", MATRIX, engine="transformers") is not None


def test_plain_schemes_convert_everything() -> None:
    """bf16 stores norms and embeddings in bfloat16 as well."""
    found = scheme_format_for(find_scheme("bf16"), "norms.hidden", (4096,))
    assert found == Plain(dtype="bfloat16")


def test_gguf_schemes_have_no_format_by_role() -> None:
    """Their types depend on layer and shape, see test_gguf."""
    scheme = find_scheme("q4_k_m")
    assert scheme.is_gguf
    assert scheme.gguf_file_type == "Q4_K_M"
    assert not find_scheme("fp16").is_gguf
    assert find_scheme("fp16").gguf_file_type == "F16"
    with pytest.raises(UnsupportedError, match="no one format"):
        scheme_format_for(scheme, "attention.q", MATRIX)


@pytest.mark.parametrize(
    ("word", "engine", "expected"),
    [
        ("4bit", "vllm", "awq-4bit"),
        ("8BIT", "vllm", "fp8"),
        ("4bit", "sglang", "awq-4bit"),
        ("8bit", "sglang", "fp8"),
        ("4bit", "llama.cpp", "Q4_K_M"),
        ("8bit", "llama.cpp", "Q8_0"),
        ("4bit", "transformers", "nf4"),
        ("8bit", "transformers", "int8"),
    ],
)
def test_families(word: str, engine: str, expected: str) -> None:
    """Reasons stand beside the choices; llama.cpp's -hf takes Q4_K_M by default."""
    choice = resolve_family(word, engine)
    assert choice.scheme.name == expected
    assert choice.reason


def test_families_refuse_the_unknown() -> None:
    """Neither the word nor the engine is guessed."""
    with pytest.raises(UnknownNameError, match="quantization family"):
        resolve_family("5bit", "vllm")
    with pytest.raises(UnknownNameError, match="engine"):
        resolve_family("4bit", "mlc")


@given(st.integers(1, 64), st.integers(1, 64))
def test_awq_is_the_largest_of_the_4bit_formats_in_vllm(rows: int, groups: int) -> None:
    """What `resolve_family` says in its reason, for shapes that all three can hold."""
    shape = (8 * rows, 128 * groups)
    awq = AWQ.matrix_bytes(*shape, held="vllm")
    assert awq >= GPTQ.matrix_bytes(*shape, held="vllm")
    shape_tensor_bytes = 16
    w4a16 = find_scheme("w4a16").weight_format.matrix_bytes(*shape, held="vllm")
    assert awq >= w4a16 - shape_tensor_bytes

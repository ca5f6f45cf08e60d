"""GGUF types and sizes, compared with llama.cpp's own quantizer and with published files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesize.core.errors import InvalidInputError, UnknownNameError, UnsupportedError
from moesize.core.gguf import (
    FUSED_GATE_UP_ARCHITECTURES,
    FUSED_QKV_ARCHITECTURES,
    GgufModel,
    GgufTensor,
    assign_types,
    file_tensor_bytes,
    find_file_type,
    gguf_name,
    gguf_tensor,
    list_file_types,
    model_bytes,
    split_mla_kv_b,
    tensor_bytes,
)
from moesize.core.weight_formats import (
    BLOCK_TYPES,
)

# --- Models, from their published config.json ---------------------------------------------------


def _embeddings(vocab: int, hidden: int) -> list[GgufTensor]:
    return [
        gguf_tensor("embedding.tokens", (vocab, hidden)),
        gguf_tensor("norms.final", (hidden,)),
        gguf_tensor("lm_head.weight", (vocab, hidden)),
    ]


def _attention(block: int, hidden: int, kv_width: int) -> list[GgufTensor]:
    return [
        gguf_tensor("norms.attention", (hidden,), block=block),
        gguf_tensor("attention.q", (hidden, hidden), block=block),
        gguf_tensor("attention.k", (kv_width, hidden), block=block),
        gguf_tensor("attention.v", (kv_width, hidden), block=block),
        gguf_tensor("attention.o", (hidden, hidden), block=block),
        gguf_tensor("norms.ffn", (hidden,), block=block),
    ]


def _gated(group: str, block: int, hidden: int, width: int, stacked: int = 1) -> list[GgufTensor]:
    return [
        gguf_tensor(f"{group}.gate", (width, hidden), block=block, num_stacked=stacked),
        gguf_tensor(f"{group}.up", (width, hidden), block=block, num_stacked=stacked),
        gguf_tensor(f"{group}.down", (hidden, width), block=block, num_stacked=stacked),
    ]


def _mixtral(
    num_layers: int = 32, hidden: int = 4096, width: int = 14336, kv: int = 1024
) -> list[GgufTensor]:
    tensors = _embeddings(32000, hidden)
    for block in range(num_layers):
        tensors += _attention(block, hidden, kv)
        tensors.append(gguf_tensor("router.weight", (8, hidden), block=block))
        tensors += _gated("routed_experts", block, hidden, width, stacked=8)
    return tensors


def _llama_70b() -> list[GgufTensor]:
    tensors = _embeddings(128256, 8192)
    tensors.append(GgufTensor(name="rope_freqs.weight", shape=(64,)))
    for block in range(80):
        tensors += _attention(block, 8192, 1024) + _gated("dense_mlp", block, 8192, 28672)
    return tensors


def _falcon_40b() -> list[GgufTensor]:
    hidden = 8192
    tensors = _embeddings(65024, hidden)
    tensors.append(gguf_tensor("norms.final.bias", (hidden,)))
    for block in range(60):
        for norm in ("norms.attention", "norms.attention.bias", "norms.ffn", "norms.ffn.bias"):
            tensors.append(gguf_tensor(norm, (hidden,), block=block))
        tensors += [
            gguf_tensor("attention.qkv", ((128 + 2 * 8) * 64, hidden), block=block),
            gguf_tensor("attention.o", (hidden, hidden), block=block),
            gguf_tensor("dense_mlp.up", (4 * hidden, hidden), block=block),
            gguf_tensor("dense_mlp.down", (hidden, 4 * hidden), block=block),
        ]
    return tensors


def _deepseek_v2_lite() -> list[GgufTensor]:
    hidden = 2048
    tensors = _embeddings(102400, hidden)
    for block in range(27):
        tensors += [
            gguf_tensor("norms.attention", (hidden,), block=block),
            gguf_tensor("attention.q", (16 * 192, hidden), block=block),
            gguf_tensor("attention.kv_a", (576, hidden), block=block),
            gguf_tensor("norms.kv_a", (512,), block=block),
            *split_mla_kv_b(
                num_heads=16, qk_nope_head_dim=128, v_head_dim=128, kv_lora_rank=512, block=block
            ),
            gguf_tensor("attention.o", (hidden, 16 * 128), block=block),
            gguf_tensor("norms.ffn", (hidden,), block=block),
        ]
        if block == 0:
            tensors += _gated("dense_mlp", block, hidden, 10944)
            continue
        tensors.append(gguf_tensor("router.weight", (64, hidden), block=block))
        tensors += _gated("routed_experts", block, hidden, 1408, stacked=64)
        tensors += _gated("shared_experts", block, hidden, 2 * 1408)
    return tensors


def _model(
    architecture: str, layers: int, heads: int, kv_heads: int, experts: int = 0
) -> GgufModel:
    return GgufModel(
        architecture=architecture,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        num_experts=experts,
    )


MODELS = {
    "mixtral-8x7b": (_model("llama", 32, 32, 8, 8), _mixtral()),
    "deepseek-v2-lite": (_model("deepseek2", 27, 16, 16, 64), _deepseek_v2_lite()),
    "falcon-40b": (_model("falcon", 60, 128, 8), _falcon_40b()),
    "llama-3.1-70b": (_model("llama", 80, 64, 8), _llama_70b()),
}

# What llama.cpp's own quantizer (llama_quant_compute_types, commit 0c1e57098) makes of these
# models: tensor bytes by ggml_row_size, without and with an importance matrix. The F16, Q8_0 and
# Q4_K_M values are also what that build's loader printed as the size of the whole model.
# The quantizer refuses Q1_0 for DeepSeek-V2-Lite, whose experts are 1,408 wide.
QUANTIZER_BYTES = {
    "mixtral-8x7b": {
        "F32": (186_811_170_816, 186_811_170_816),
        "F16": (93_408_215_040, 93_408_215_040),
        "BF16": (93_408_215_040, 93_408_215_040),
        "Q8_0": (49_625_579_520, 49_625_579_520),
        "Q6_K": (38_380_077_056, 38_380_077_056),
        "Q5_K_M": (33_228_840_960, 33_228_840_960),
        "Q5_K_S": (32_230_596_608, 32_230_596_608),
        "Q5_1": (35_124_469_760, 35_124_469_760),
        "Q5_0": (32_230_596_608, 32_348_037_120),
        "Q4_K_M": (28_447_727_616, 28_447_727_616),
        "Q4_K_S": (26_744_840_192, 26_744_840_192),
        "Q4_1": (29_336_723_456, 29_336_723_456),
        "Q4_0": (26_442_850_304, 26_560_290_816),
        "IQ4_NL": (26_744_840_192, 26_509_959_168),
        "IQ4_XS": (25_373_401_088, 25_079_799_808),
        "MXFP4_MOE": (25_667_715_072, 25_667_715_072),
        "Q3_K_L": (24_168_906_752, 24_168_906_752),
        "Q3_K_M": (22_545_711_104, 22_545_711_104),
        "Q3_K_S": (20_431_781_888, 20_431_781_888),
        "IQ3_M": (21_430_026_240, 21_430_026_240),
        "IQ3_S": (20_431_781_888, 20_431_781_888),
        "IQ3_XS": (19_349_651_456, 19_349_651_456),
        "IQ3_XXS": (19_195_928_576, 18_241_724_416),
        "Q2_K": (17_310_490_624, 17_310_490_624),
        "Q2_K_S": (16_031_227_904, 16_031_227_904),
        "Q2_0": (13_457_285_120, 13_457_285_120),
        "IQ2_M": (15_494_455_296, 15_494_455_296),
        "IQ2_S": (14_127_112_192, 14_127_112_192),
        "IQ2_XS": (13_922_959_360, 13_922_959_360),
        "IQ2_XXS": (12_555_616_256, 12_555_616_256),
        "TQ2_0": (12_375_154_688, 12_375_154_688),
        "TQ1_0": (10_210_893_824, 10_210_893_824),
        "IQ1_M": (10_846_437_376, 10_846_437_376),
        "IQ1_S": (9_820_930_048, 9_820_930_048),
        "Q1_0": (6_909_206_528, 6_909_206_528),
    },
    "deepseek-v2-lite": {
        "F32": (62_825_936_896, 62_825_936_896),
        "F16": (31_420_037_120, 31_420_037_120),
        "BF16": (31_420_037_120, 31_420_037_120),
        "Q8_0": (16_698_521_600, 16_698_521_600),
        "Q6_K": (14_069_832_704, 14_069_832_704),
        "Q5_K_M": (11_849_086_976, 11_849_086_976),
        "Q5_K_S": (11_140_831_232, 11_140_831_232),
        "Q5_1": (11_806_095_360, 11_806_095_360),
        "Q5_0": (10_837_768_192, 10_862_958_592),
        "Q4_K_M": (10_363_959_296, 10_363_959_296),
        "Q4_K_S": (9_533_151_232, 9_533_151_232),
        "Q4_1": (9_869_441_024, 9_869_441_024),
        "Q4_0": (8_901_113_856, 8_926_304_256),
        "IQ4_NL": (8_975_964_160, 8_901_113_856),
        "IQ4_XS": (8_643_692_544, 8_568_481_792),
        "MXFP4_MOE": (9_021_175_808, 9_021_175_808),
        "Q3_K_L": (8_459_162_624, 8_459_162_624),
        "Q3_K_M": (8_126_370_816, 8_126_370_816),
        "Q3_K_S": (7_487_427_584, 7_487_427_584),
        "IQ3_M": (7_552_939_008, 7_552_939_008),
        "IQ3_S": (7_487_427_584, 7_487_427_584),
        "IQ3_XS": (7_122_621_440, 7_122_621_440),
        "IQ3_XXS": (7_022_648_320, 6_965_148_672),
        "Q2_K": (6_433_103_872, 6_433_103_872),
        "Q2_K_S": (6_458_015_744, 6_458_015_744),
        "Q2_0": (4_602_624_000, 4_602_624_000),
        "IQ2_M": (6_331_317_248, 6_331_317_248),
        "IQ2_S": (6_008_957_952, 6_008_957_952),
        "IQ2_XS": (5_971_147_776, 5_971_147_776),
        "IQ2_XXS": (5_645_249_536, 5_645_249_536),
        "TQ2_0": (5_721_848_832, 5_721_848_832),
        "TQ1_0": (5_232_731_136, 5_232_731_136),
        "IQ1_M": (5_242_300_416, 5_242_300_416),
        "IQ1_S": (5_000_530_944, 5_000_530_944),
    },
    "falcon-40b": {
        "F32": (167_343_882_240, 167_343_882_240),
        "F16": (83_675_906_048, 83_675_906_048),
        "BF16": (83_675_906_048, 83_675_906_048),
        "Q8_0": (44_456_542_208, 44_456_542_208),
        "Q6_K": (34_453_880_832, 34_453_880_832),
        "Q5_K_M": (30_338_908_160, 30_338_908_160),
        "Q5_K_S": (28_968_550_400, 28_968_550_400),
        "Q5_1": (31_549_882_368, 31_549_882_368),
        "Q5_0": (28_968_550_400, 29_085_990_912),
        "Q4_K_M": (25_503_399_936, 25_503_399_936),
        "Q4_K_S": (23_843_635_200, 23_843_635_200),
        "Q4_1": (26_387_218_432, 26_387_218_432),
        "Q4_0": (23_805_886_464, 23_923_326_976),
        "IQ4_NL": (24_606_998_528, 24_372_117_504),
        "IQ4_XS": (23_516_610_560, 23_223_009_280),
        "MXFP4_MOE": (44_456_542_208, 44_456_542_208),
        "Q3_K_L": (22_162_276_352, 22_162_276_352),
        "Q3_K_M": (20_111_261_696, 20_111_261_696),
        "Q3_K_S": (18_320_556_032, 18_320_556_032),
        "IQ3_M": (19_171_737_600, 19_171_737_600),
        "IQ3_S": (18_922_176_512, 18_922_176_512),
        "IQ3_XS": (18_355_945_472, 18_355_945_472),
        "IQ3_XXS": (18_228_019_200, 17_223_483_392),
        "Q2_K": (16_823_353_344, 16_823_353_344),
        "Q2_K_S": (15_627_976_704, 15_627_976_704),
        "Q2_0": (12_339_707_904, 12_339_707_904),
        "IQ2_M": (15_604_482_048, 15_604_482_048),
        "IQ2_S": (14_656_569_344, 14_656_569_344),
        "IQ2_XS": (13_845_397_504, 13_845_397_504),
        "IQ2_XXS": (12_771_655_680, 12_771_655_680),
        "TQ2_0": (11_384_193_024, 11_384_193_024),
        "TQ1_0": (9_473_163_264, 9_473_163_264),
        "IQ1_M": (11_586_764_800, 11_586_764_800),
        "IQ1_S": (10_875_830_272, 10_875_830_272),
        "Q1_0": (6_381_895_680, 6_381_895_680),
    },
    "llama-3.1-70b": {
        "F32": (282_214_826_240, 282_214_826_240),
        "F16": (141_110_051_072, 141_110_051_072),
        "BF16": (141_110_051_072, 141_110_051_072),
        "Q8_0": (74_967_187_712, 74_967_187_712),
        "Q6_K": (57_880_281_344, 57_880_281_344),
        "Q5_K_M": (49_941_954_816, 49_941_954_816),
        "Q5_K_S": (48_649_584_896, 48_649_584_896),
        "Q5_1": (52_993_442_048, 52_993_442_048),
        "Q5_0": (48_649_584_896, 48_796_385_536),
        "Q4_K_M": (42_512_531_712, 42_512_531_712),
        "Q4_K_S": (40_339_357_952, 40_339_357_952),
        "Q4_1": (44_305_727_744, 44_305_727_744),
        "Q4_0": (39_961_870_592, 40_108_671_232),
        "IQ4_NL": (40_339_357_952, 40_045_756_672),
        "IQ4_XS": (38_261_801_216, 37_894_799_616),
        "MXFP4_MOE": (74_967_187_712, 74_967_187_712),
        "Q3_K_L": (37_132_730_624, 37_132_730_624),
        "Q3_K_M": (34_259_632_384, 34_259_632_384),
        "Q3_K_S": (30_904_189_184, 30_904_189_184),
        "IQ3_M": (31_929_172_224, 31_929_172_224),
        "IQ3_S": (30_904_189_184, 30_904_189_184),
        "IQ3_XS": (29_299_867_904, 29_299_867_904),
        "IQ3_XXS": (28_654_387_456, 27_461_632_256),
        "Q2_K": (26_367_246_592, 26_367_246_592),
        "Q2_K_S": (24_464_081_152, 24_464_081_152),
        "Q2_0": (20_710_015_232, 20_710_015_232),
        "IQ2_M": (24_111_431_936, 24_111_431_936),
        "IQ2_S": (22_234_480_896, 22_234_480_896),
        "IQ2_XS": (21_134_246_144, 21_134_246_144),
        "IQ2_XXS": (19_089_522_944, 19_089_522_944),
        "TQ2_0": (19_105_693_952, 19_105_693_952),
        "TQ1_0": (15_897_051_392, 15_897_051_392),
        "IQ1_M": (16_743_334_144, 16_743_334_144),
        "IQ1_S": (15_335_620_864, 15_335_620_864),
        "Q1_0": (10_640_834_816, 10_640_834_816),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_every_file_type_equals_llama_cpp(name: str) -> None:
    """All file types of four models, to the byte. Source: the quantizer itself, see above."""
    model, tensors = MODELS[name]
    expected = QUANTIZER_BYTES[name]
    refused = {"Q1_0"} if name == "deepseek-v2-lite" else set()
    assert set(expected) == set(list_file_types()) - refused
    for file_type, sizes in expected.items():
        for has_imatrix, size_bytes in zip((False, True), sizes, strict=True):
            types = assign_types(tensors, model, file_type, has_imatrix=has_imatrix)
            assert model_bytes(tensors, types) == size_bytes, (file_type, has_imatrix)


# As stated on the hub: gobean/Mixtral-8x7B-Instruct-v0.1-GGUF at b2c06e8c, Q8_0 shenberg1/...,
# Q2_K matteocavestri/...-Q2_K-GGUF (all quantized after the layout change of 2024);
# mradermacher/DeepSeek-V2-Lite-GGUF, F16 and Q8_0 larenspear/DeepSeek-V2-Lite-GGUF.
STATED_GB = [
    ("mixtral-8x7b", "Q2_K", "17.3"),
    ("mixtral-8x7b", "Q3_K_M", "22.5"),
    ("mixtral-8x7b", "Q4_0", "26.4"),
    ("mixtral-8x7b", "Q4_K_M", "28.4"),
    ("mixtral-8x7b", "Q5_0", "32.2"),
    ("mixtral-8x7b", "Q5_K_M", "33.2"),
    ("mixtral-8x7b", "Q6_K", "38.4"),
    ("mixtral-8x7b", "Q8_0", "49.6"),
    ("deepseek-v2-lite", "IQ3_M", "7.55"),
    ("deepseek-v2-lite", "IQ3_S", "7.49"),
    ("deepseek-v2-lite", "IQ3_XS", "7.12"),
    ("deepseek-v2-lite", "Q2_K", "6.43"),
    ("deepseek-v2-lite", "Q3_K_L", "8.46"),
    ("deepseek-v2-lite", "Q3_K_M", "8.13"),
    ("deepseek-v2-lite", "Q3_K_S", "7.49"),
    ("deepseek-v2-lite", "Q4_K_M", "10.4"),
    ("deepseek-v2-lite", "Q4_K_S", "9.53"),
    ("deepseek-v2-lite", "Q5_K_M", "11.9"),
    ("deepseek-v2-lite", "Q5_K_S", "11.1"),
    ("deepseek-v2-lite", "Q6_K", "14.1"),
    ("deepseek-v2-lite", "F16", "31.4"),
    ("deepseek-v2-lite", "Q8_0", "16.7"),
]
METADATA_BYTES = 6_000_000  # vocabularies of 32,000 and 102,400 tokens: 0.8 and about 5 MB


@pytest.mark.parametrize(("name", "file_type", "stated"), STATED_GB)
def test_published_file_sizes(name: str, file_type: str, stated: str) -> None:
    """Stated size in GB within its rounding and the vocabulary. Source: hub pages, see above."""
    model, tensors = MODELS[name]
    size_bytes = file_tensor_bytes(tensors, assign_types(tensors, model, file_type))
    step = 10 ** (9 - len(stated.partition(".")[2]))
    middle = int(stated.replace(".", "")) * step
    assert middle - step // 2 - METADATA_BYTES <= size_bytes <= middle + step // 2


# bartowski/Mixtral-8x22B-v0.1-GGUF, sizes in GB, which are cut, not rounded, to 0.01. The files
# of April 2024 are smaller than those of 2026 by what a router in F16 saves (5.5 MB).
MIXTRAL_8X22B_TOLERANCE_BYTES = 10_000_000 + 5_505_024
MIXTRAL_8X22B_GB = {
    "Q5_K_M": 99.96,
    "Q5_K_S": 96.97,
    "Q4_K_M": 85.58,
    "Q4_K_S": 80.47,
    "IQ4_XS": 76.35,
    "Q3_K_L": 72.57,
    "Q3_K_M": 67.78,
    "IQ3_M": 64.49,
    "IQ3_S": 61.49,
    "Q3_K_S": 61.49,
    "IQ3_XS": 58.22,
    "Q2_K": 52.10,
}


@pytest.mark.parametrize("file_type", MIXTRAL_8X22B_GB)
def test_mixtral_8x22b(file_type: str) -> None:
    """56 layers of 6144 x 16384, 48 and 8 heads. Source: bartowski/Mixtral-8x22B-v0.1-GGUF."""
    tensors = _mixtral(num_layers=56, hidden=6144, width=16384, kv=1024)
    types = assign_types(tensors, _model("llama", 56, 48, 8, 8), file_type)
    above = file_tensor_bytes(tensors, types) - round(MIXTRAL_8X22B_GB[file_type] * 10**9)
    assert 0 <= above <= MIXTRAL_8X22B_TOLERANCE_BYTES


def test_layers_with_more_bits() -> None:
    """Q4_K_M, 32 layers: Q6_K in 0-3, 28-31 and every third between. Source: llama.cpp,
    use_more_bits in src/llama-quant.cpp at 0c1e57098, worked by hand."""
    model, tensors = MODELS["mixtral-8x7b"]
    types = assign_types(tensors, model, "q4_k_m")
    down = [
        tensor.block
        for tensor, block_type in zip(tensors, types, strict=True)
        if "ffn_down" in tensor.name and block_type.name == "Q6_K"
    ]
    assert down == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def _only(name: str, shape: tuple[int, ...], file_type: str, **facts: object) -> str:
    """Type of one tensor of an untied model with two layers."""
    model = GgufModel(
        **{  # type: ignore[arg-type]
            "architecture": "llama",
            "num_layers": 2,
            "num_heads": 32,
            "num_kv_heads": 8,
            **facts,
        }
    )
    block = int(name.split(".")[1]) if name.startswith("blk.") else None
    tensors = [
        GgufTensor(name=name, shape=shape, block=block),
        GgufTensor(name="output.weight", shape=(256, 256)),
    ]
    return assign_types(tensors, model, file_type)[0].name


@pytest.mark.parametrize(
    ("name", "shape", "file_type", "expected"),
    [
        ("blk.0.attn_norm.weight", (4096,), "Q4_K_M", "F32"),
        ("blk.0.attn_k.weight", (4096, 1), "Q4_K_M", "F32"),
        ("blk.0.ffn_gate_inp.weight", (4096, 8), "F16", "F32"),
        ("blk.0.ssm_a", (16, 8192), "Q4_K_M", "F32"),
        ("blk.0.ssm_conv1d.weight", (4, 8192), "Q4_K_M", "F32"),
        ("blk.0.ffn_down_exps.bias", (2880, 32), "Q4_K_M", "F32"),
        ("position_embd.weight", (768, 1024), "Q4_K_M", "F32"),
        ("blk.0.indexer.proj.weight", (7168, 64), "BF16", "F32"),
        ("blk.0.indexer.proj.weight", (7168, 64), "Q4_K_M", "Q4_K"),
        ("blk.0.indexer.k_proj.weight", (4096, 128), "Q4_K_M", "F32"),
        ("per_layer_model_proj.weight", (2048, 7680), "Q8_0", "F16"),
        ("token_embd.weight", (4096, 32000), "Q4_K_M", "Q4_K"),
        ("token_embd.weight", (4096, 32000), "IQ2_M", "IQ3_S"),
        ("blk.0.attn_q.weight", (4096, 4096), "IQ3_XXS", "IQ2_S"),
        ("blk.0.attn_output.weight", (4096, 4096), "IQ1_M", "IQ2_XXS"),
        ("blk.0.attn_output.weight", (4096, 4096), "IQ2_XS", "IQ2_XS"),
        ("blk.0.attn_v.weight", (4096, 1024), "IQ2_XS", "Q4_K"),
        ("blk.0.attn_q_a.weight", (4096, 1536), "Q2_K", "Q2_K"),
    ],
)
def test_what_is_kept_and_what_has_a_rule(
    name: str, shape: tuple[int, ...], file_type: str, expected: str
) -> None:
    """Source: tensor_allows_quantization and llama_tensor_get_type_impl, llama.cpp 0c1e57098; what
    is kept has the type that conversion/base.py of the same commit gives it."""
    assert _only(name, shape, file_type) == expected


@pytest.mark.parametrize(
    ("file_type", "row", "expected"),
    [
        ("Q4_K_M", 2880, "Q5_0"),
        ("Q5_K_S", 2880, "Q5_1"),
        ("Q6_K", 2880, "Q8_0"),
        ("Q2_K_S", 2880, "Q4_0"),
        ("IQ4_XS", 2880, "IQ4_NL"),
        ("Q8_0", 100, "F16"),
        ("Q6_K", 100, "F16"),
        ("Q2_0", 96, "Q4_0"),
    ],
)
def test_rows_that_do_not_divide_fall_back(file_type: str, row: int, expected: str) -> None:
    """Source: tensor_type_fallback, llama.cpp src/llama-quant.cpp at 0c1e57098."""
    assert _only("blk.0.attn_q.weight", (row, 4096), file_type) == expected


def test_without_a_substitute_it_is_refused() -> None:
    """llama.cpp throws "no tensor type fallback is defined" for Q1_0, whose blocks hold 128."""
    with pytest.raises(UnsupportedError, match="no substitute for Q1_0"):
        _only("blk.0.attn_q.weight", (2880, 4096), "Q1_0")


def test_output_row_that_does_not_divide_is_q8_0() -> None:
    """Source: llama_tensor_get_type_impl, output branch; gpt-oss has rows of 2,880."""
    tensors = [GgufTensor(name="token_embd.weight", shape=(2880, 1000))]
    (block_type,) = assign_types(tensors, _model("gpt-oss", 24, 64, 8, 32), "Q4_K_M")
    assert block_type.name == "Q8_0"


@pytest.mark.parametrize(
    ("architecture", "layers", "heads", "kv_heads", "expected"),
    [
        ("llama", 80, 64, 8, "Q5_K"),  # Llama 2 and 3 70B
        ("llama", 80, 64, 64, "Q3_K"),  # Llama 65B
        ("qwen2", 80, 64, 8, "Q5_K"),  # Qwen2 72B
        ("qwen3", 80, 64, 8, "Q4_K"),
        ("jais2", 68, 32, 32, "Q5_K"),
    ],
)
def test_70b_models_get_a_better_attn_v(
    architecture: str, layers: int, heads: int, kv_heads: int, expected: str
) -> None:
    """Q2_K. Source: LLM_TYPE_70B in llama.cpp src/models/*.cpp and src/llama-quant.cpp."""
    facts = {"num_layers": layers, "num_heads": heads, "num_kv_heads": kv_heads}
    shape = (8192, 1024)
    found = _only("blk.0.attn_v.weight", shape, "Q2_K", architecture=architecture, **facts)
    assert found == expected


def test_narrow_attn_v_depends_on_the_imatrix() -> None:
    """IQ3_XXS, gqa below 4. Source: the attn_v branch of llama_tensor_get_type_impl."""
    model = _model("llama", 2, 32, 32)
    tensors = [GgufTensor(name="blk.0.attn_v.weight", shape=(4096, 4096), block=0)]
    for has_imatrix, expected in ((False, "IQ3_S"), (True, "IQ3_XXS")):
        (block_type,) = assign_types(tensors, model, "IQ3_XXS", has_imatrix=has_imatrix)
        assert block_type.name == expected


def test_first_layer_without_attention() -> None:
    """gqa is 0 when layer 0 has no KV heads (hybrids): llama_hparams::n_gqa."""
    assert _only("blk.0.attn_v.weight", (4096, 1024), "Q2_K", num_kv_heads=0) == "Q3_K"


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("deepseek2", "blk.0.attn_k_b.weight", "MXFP4"),
        ("bailingmoe3", "blk.0.attn_k_b.weight", "Q8_0"),
        ("bailingmoe3", "blk.0.ffn_up_exps.weight", "MXFP4"),
    ],
)
def test_mxfp4_moe_takes_every_stack(architecture: str, name: str, expected: str) -> None:
    """Source: the MXFP4_MOE branch of llama_tensor_get_type_impl, llama.cpp 0c1e57098."""
    found = _only(name, (128, 512, 16), "MXFP4_MOE", architecture=architecture, num_experts=16)
    assert found == expected


def test_order_of_the_input_does_not_matter() -> None:
    """llama.cpp sorts by block and name itself; its running counters see that order."""
    model, tensors = MODELS["llama-3.1-70b"]
    turned = tensors[::-1]
    types = assign_types(tensors, model, "Q4_K_M")
    assert assign_types(turned, model, "Q4_K_M") == types[::-1]


@given(
    st.sampled_from([t for t in list_file_types() if t != "Q1_0"]),
    st.booleans(),
    st.integers(1, 300),
    st.integers(1, 12),
    st.integers(0, 9),
)
def test_any_shape_gets_a_type_that_divides(
    file_type: str, has_imatrix: bool, units: int, layers: int, experts: int
) -> None:
    """Every tensor has a type, its bytes are defined, and more elements never take less."""
    row = 32 * units
    tensors = _embeddings(64, row)
    for block in range(layers):
        tensors += _attention(block, row, row)
        tensors += _gated("routed_experts", block, row, 96, stacked=max(1, experts))
    model = _model("llama", layers, 8, 2, experts)
    types = assign_types(tensors, model, file_type, has_imatrix=has_imatrix)
    assert len(types) == len(tensors)
    total = sum(map(tensor_bytes, tensors, types))
    assert total == model_bytes(tensors, types)
    assert total <= file_tensor_bytes(tensors, types) < total + 32 * len(tensors)


def test_padding_to_32_bytes() -> None:
    """Three floats take 12 bytes and, in the file, 32. Source: GGUF_DEFAULT_ALIGNMENT, ggml."""
    tensors = [GgufTensor(name="a", shape=(3,)), GgufTensor(name="b", shape=(8,))]
    types = (BLOCK_TYPES["F32"], BLOCK_TYPES["F32"])
    assert model_bytes(tensors, types) == 12 + 32
    assert file_tensor_bytes(tensors, types) == 32 + 32


@pytest.mark.parametrize(
    ("role", "mixer", "expected"),
    [
        ("attention.q", "gqa", "attn_q.weight"),
        ("attention.q.bias", "gqa", "attn_q.bias"),
        ("attention.kv_a", "mla", "attn_kv_a_mqa.weight"),
        ("routed_experts.down", "", "ffn_down_exps.weight"),
        ("routed_experts.down.bias", "", "ffn_down_exps.bias"),
        ("shared_experts.up", "", "ffn_up_shexp.weight"),
        ("router.weight", "", "ffn_gate_inp.weight"),
        ("router.bias", "", "exp_probs_b.bias"),
        ("norms.q_a", "mla", "q_a_norm.weight"),
        ("norms.final.bias", "", "final_norm.bias"),
        ("attention.linear.a_log", "mamba2", "ssm_a"),
        ("attention.linear.dt.bias", "mamba1", "ssm_dt.bias"),
        ("attention.linear.conv.bias", "mamba2", "ssm_conv1d.bias"),
        ("attention.linear.out", "mamba2", "ssm_out.weight"),
        ("attention.linear.out", "kimi_delta", "attn_output.weight"),
        ("attention.linear.out.bias", "short_conv", "shortconv.out_proj.bias"),
        ("attention.linear.qkv", "gated_delta_net", "attn_qkv.weight"),
        ("attention.indexer.k", "mla", "indexer.attn_k.weight"),
        ("attention.indexer.k", "gqa", "indexer.k_proj.weight"),
        ("other.hc_attn_fn", "", "hc_attn_fn.weight"),
        ("other.hc_head_base", "", "output_hc_base.weight"),
        ("embedding.tokens", "", "token_embd.weight"),
        ("lm_head.weight", "", "output.weight"),
    ],
)
def test_names(role: str, mixer: str, expected: str) -> None:
    """Source: gguf-py/gguf/constants.py of llama.cpp at 0c1e57098 (norms: ours, see gguf_name)."""
    assert gguf_name(role, mixer=mixer) == expected


@pytest.mark.parametrize("role", ["towers.vision", "attention.linear.qkvz", "norms.", "nonsense"])
def test_roles_without_a_name_are_refused(role: str) -> None:
    """A name is never made up."""
    with pytest.raises(UnsupportedError, match="no GGUF tensor name"):
        gguf_name(role)


def test_fused_families() -> None:
    """Source: src/models/*.cpp of llama.cpp at 0c1e57098."""
    assert {"falcon", "phi3", "qwen", "dbrx", "bloom", "gpt2"} <= FUSED_QKV_ARCHITECTURES
    assert "qwen2" not in FUSED_QKV_ARCHITECTURES
    assert "phi3" in FUSED_GATE_UP_ARCHITECTURES


def test_errors_say_what_is_wrong() -> None:
    """Unknown file types name the nearest; impossible tensors and architectures are refused."""
    with pytest.raises(UnknownNameError) as caught:
        find_file_type("Q4_K_X")
    assert "Q4_K_M" in caught.value.suggestions
    with pytest.raises(InvalidInputError, match="outside the 2 blocks"):
        _only("blk.7.ffn_down_exps.weight", (256, 256, 8), "Q4_K_M", num_experts=8)
    with pytest.raises(UnsupportedError, match="glm5-next"):
        _only("blk.0.attn_q.weight", (256, 256), "Q4_K_M", architecture="glm5-next")
    with pytest.raises(InvalidInputError, match="a row of 100 elements"):
        tensor_bytes(GgufTensor(name="x", shape=(100, 2)), BLOCK_TYPES["Q4_K"])

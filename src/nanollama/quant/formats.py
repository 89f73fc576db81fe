"""The GGML tensor types: a type number from a file comes in, its name and block geometry go out; a plain
table.

Numbers and sizes follow ``enum ggml_type`` and the block structs of ggml (``ggml.h``, ``ggml-common.h``).
Types that are not decoded are listed too, so that a file using them can still be measured and the type be
named in an error.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuantFormat:
    """One tensor type: ``block_size`` consecutive elements of a row are stored in ``block_bytes`` bytes."""

    name: str
    type_id: int
    block_size: int
    block_bytes: int
    decodable: bool = True

    def nbytes(self, n_elements: int) -> int:
        """Bytes that ``n_elements`` take; ``n_elements`` is a multiple of ``block_size``."""
        assert n_elements % self.block_size == 0, f"{n_elements} elements are not whole {self.name} blocks"
        return n_elements // self.block_size * self.block_bytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size


_ALL = (
    QuantFormat("F32", 0, 1, 4),
    QuantFormat("F16", 1, 1, 2),
    QuantFormat("Q4_0", 2, 32, 18),
    QuantFormat("Q4_1", 3, 32, 20),
    QuantFormat("Q5_0", 6, 32, 22),
    QuantFormat("Q5_1", 7, 32, 24),
    QuantFormat("Q8_0", 8, 32, 34),
    # ggml's struct has two halves and 32 quants; gguf-py still lists two floats (40 bytes).
    QuantFormat("Q8_1", 9, 32, 36, decodable=False),
    QuantFormat("Q2_K", 10, 256, 84),
    QuantFormat("Q3_K", 11, 256, 110),
    QuantFormat("Q4_K", 12, 256, 144),
    QuantFormat("Q5_K", 13, 256, 176),
    QuantFormat("Q6_K", 14, 256, 210),
    QuantFormat("Q8_K", 15, 256, 292, decodable=False),
    QuantFormat("IQ2_XXS", 16, 256, 66, decodable=False),
    QuantFormat("IQ2_XS", 17, 256, 74, decodable=False),
    QuantFormat("IQ3_XXS", 18, 256, 98, decodable=False),
    QuantFormat("IQ1_S", 19, 256, 50, decodable=False),
    QuantFormat("IQ4_NL", 20, 32, 18),
    QuantFormat("IQ3_S", 21, 256, 110, decodable=False),
    QuantFormat("IQ2_S", 22, 256, 82, decodable=False),
    QuantFormat("IQ4_XS", 23, 256, 136),
    QuantFormat("I8", 24, 1, 1),
    QuantFormat("I16", 25, 1, 2),
    QuantFormat("I32", 26, 1, 4),
    QuantFormat("I64", 27, 1, 8),
    QuantFormat("F64", 28, 1, 8),
    QuantFormat("IQ1_M", 29, 256, 56, decodable=False),
    QuantFormat("BF16", 30, 1, 2),
    QuantFormat("TQ1_0", 34, 256, 54, decodable=False),
    QuantFormat("TQ2_0", 35, 256, 66, decodable=False),
    QuantFormat("MXFP4", 39, 32, 17),
    QuantFormat("NVFP4", 40, 64, 36, decodable=False),
    QuantFormat("Q1_0", 41, 128, 18, decodable=False),
)

FORMATS: dict[str, QuantFormat] = {fmt.name: fmt for fmt in _ALL}
BY_ID: dict[int, QuantFormat] = {fmt.type_id: fmt for fmt in _ALL}

REMOVED: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Numbers that ggml once used and withdrew: no file with them can be read, but the error can name the
type."""

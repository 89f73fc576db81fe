"""Quantized checkpoints: what a slow loop over the written-out layouts gives is what is read, to the bit.

The layouts are packed here one number at a time from known integers, as the methods' own descriptions say.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from folders import edit, llama_config, save_model, save_tokenizer
from nanollama import LLM
from nanollama.errors import FormatError, UnsupportedError
from nanollama.model.quantized import StoredTensor, unpacked

DTYPES = {
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "uint8": "U8",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float8_e4m3fn": "F8_E4M3",
}
Tensors = dict[str, torch.Tensor]


def stored(tensors: Tensors) -> dict[str, StoredTensor]:
    def one(name: str, tensor: torch.Tensor) -> StoredTensor:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
        return StoredTensor(name, dtype, tuple(tensor.shape), lambda: memoryview(data), lambda: None)

    return {name: one(name, tensor) for name, tensor in tensors.items()}


def words(codes: np.ndarray, bits: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """Codes ``[rows, n]`` in 32-bit words along the rows, one by one."""
    per_word = 32 // bits
    rows, n = codes.shape
    out = np.zeros((rows, -(-n // per_word)), np.uint32)
    for row in range(rows):
        for i in range(n):
            place = (places or range(per_word))[i % per_word]
            out[row, i // per_word] |= int(codes[row, i]) << bits * place
    return torch.from_numpy(out.view(np.int32))


AWQ_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)


class Example:
    """Random integers of a layer ``[rows, columns]``, and the weights that they stand for."""

    def __init__(
        self,
        *,
        bits: int = 4,
        size: int = 32,
        symmetric: bool = True,
        shuffled: bool = False,
        scale: torch.dtype = torch.float16,
        shape: tuple[int, int] = (16, 64),
    ) -> None:
        random = np.random.default_rng(5)
        self.bits, self.rows, self.columns = bits, *shape
        self.count = -(-self.columns // size)
        high = 1 << bits
        self.codes = random.integers(0, high, shape)
        zeros = np.full((self.rows, self.count), high // 2)
        self.zeros = zeros if symmetric else random.integers(0, high, zeros.shape)
        self.scales = torch.from_numpy(random.uniform(0.001, 0.02, zeros.shape)).to(scale)
        order = [column // size for column in range(self.columns)]
        self.order = random.permutation(order) if shuffled else np.array(order)

    def weights(self) -> np.ndarray:
        out = np.zeros((self.rows, self.columns), np.float32)
        scales = self.scales.float().numpy()
        for row in range(self.rows):
            for column in range(self.columns):
                group = self.order[column]
                difference = int(self.codes[row, column]) - int(self.zeros[row, group])
                out[row, column] = np.float32(difference) * scales[row, group]
        return out

    def gptq(self, stem: str = "x", *, version: int = 1) -> Tensors:
        zeros = self.zeros.T - 1 if version == 1 else self.zeros.T
        return {
            f"{stem}.qweight": words(self.codes, self.bits).T.contiguous(),
            f"{stem}.qzeros": words(zeros % (1 << self.bits), self.bits),
            f"{stem}.scales": self.scales.T.contiguous(),
            f"{stem}.g_idx": torch.from_numpy(self.order.astype(np.int32)),
        }

    def awq(self, stem: str = "x") -> Tensors:
        return {
            f"{stem}.qweight": words(self.codes.T, 4, AWQ_PLACE),
            f"{stem}.qzeros": words(self.zeros.T, 4, AWQ_PLACE),
            f"{stem}.scales": self.scales.T.contiguous(),
        }

    def compressed(self, stem: str = "x", *, zeros: bool = False, order: bool = False) -> Tensors:
        found = {
            f"{stem}.weight_packed": words(self.codes, self.bits),
            f"{stem}.weight_scale": self.scales,
            f"{stem}.weight_shape": torch.tensor([self.rows, self.columns]),
        }
        if zeros:
            found[f"{stem}.weight_zero_point"] = words(self.zeros.T, self.bits).T.contiguous()
        if order:
            found[f"{stem}.weight_g_idx"] = torch.from_numpy(self.order.astype(np.int32))
        return found

    def int8(self, stem: str = "x") -> Tensors:
        return {
            f"{stem}.weight": torch.from_numpy((self.codes - 128).astype(np.int8)),
            f"{stem}.weight_scale": self.scales,
            f"{stem}.weight_zero_point": torch.from_numpy((self.zeros - 128).astype(np.int8)),
        }


def config(method: str, **more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method} | more}


GPTQ, GPTQ8 = config("gptq", bits=4), config("gptq", bits=8)
V2 = config("gptq", bits=4, checkpoint_format="gptq_v2")
AWQ = config("awq", bits=4, version="gemm")
PACKED = config("compressed-tensors", format="pack-quantized")
INT8 = config("compressed-tensors", format="int-quantized")

Case = tuple[dict[str, Any], dict[str, Any], Callable[[Example], Tensors], str]
INTEGERS: dict[str, Case] = {
    "gptq": (GPTQ, {}, Example.gptq, "Q4_0"),
    "gptq without a group": (GPTQ, {"size": 64}, Example.gptq, "Q4_0"),
    "gptq with zeros": (GPTQ, {"symmetric": False}, Example.gptq, "Q5_0"),
    "gptq v2": (V2, {"symmetric": False}, lambda e: e.gptq(version=2), "Q5_0"),
    "gptq, activation order": (GPTQ, {"shuffled": True, "symmetric": False}, Example.gptq, "F32"),
    "gptq, groups of 16": (GPTQ, {"size": 16}, Example.gptq, "F32"),
    "gptq, outputs between words": (GPTQ, {"shape": (13, 64), "symmetric": False}, Example.gptq, "Q5_0"),
    "gptq, last group shorter": (GPTQ, {"shape": (8, 80)}, Example.gptq, "F32"),
    "gptq of 8 bits": (GPTQ8, {"bits": 8}, Example.gptq, "Q8_0"),
    "gptq of 8 bits with zeros": (GPTQ8, {"bits": 8, "symmetric": False}, Example.gptq, "F32"),
    "awq": (AWQ, {"symmetric": False}, Example.awq, "Q5_0"),
    "awq, bfloat16": (AWQ, {"scale": torch.bfloat16, "symmetric": False}, Example.awq, "Q5_0"),
    "awq, float32": (AWQ, {"scale": torch.float32, "symmetric": False}, Example.awq, "F32"),
    "packed": (PACKED, {"scale": torch.bfloat16}, Example.compressed, "Q4_0"),
    "packed of 8 bits": (PACKED, {"bits": 8}, Example.compressed, "Q8_0"),
    "packed with zeros": (PACKED, {"symmetric": False}, lambda e: e.compressed(zeros=True), "Q5_0"),
    "packed, shuffled": (PACKED, {"shuffled": True}, lambda e: e.compressed(order=True), "F32"),
    "packed, rows between words": (
        PACKED,
        {"shape": (13, 64), "symmetric": False},
        lambda e: e.compressed(zeros=True),
        "Q5_0",
    ),
    "int8, a scale a row": (INT8, {"bits": 8, "size": 64}, Example.int8, "Q8_0"),
    "int8 with zeros": (INT8, {"bits": 8, "symmetric": False}, Example.int8, "F32"),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_read_to_the_bit(name: str) -> None:
    settings, how, pack, fmt = INTEGERS[name]
    example = Example(**how)
    tensors = pack(example) | {"norm.weight": torch.ones(4)}
    found = unpacked(settings, stored(tensors))
    assert set(found) == {"x.weight", "norm.weight"}
    weight = found["x.weight"]
    assert (weight.fmt.name, weight.shape) == (fmt, (example.rows, example.columns))
    assert np.array_equal(weight.float32(), example.weights())


FP8 = config("fp8", weight_block_size=[128, 128])
FLOAT = config("compressed-tensors", format="float-quantized")
FP8_CASES = {
    "blocks": (FP8, "weight_scale_inv", (2, 3), torch.float32, "F32"),
    "powers of two": (FP8, "weight_scale_inv", (2, 3), None, "BF16"),
    "a tensor": (config("fp8"), "weight_scale", (), torch.float32, "F32"),
    "a tensor in a list": (config("fp8"), "weight_scale", (1,), torch.float32, "F32"),
    "rows": (FLOAT, "weight_scale", (150, 1), torch.bfloat16, "F32"),
    "rows of fbgemm": (config("fbgemm_fp8"), "weight_scale", (150, 1), torch.float32, "F32"),
}


@pytest.mark.parametrize("name", FP8_CASES)
def test_eight_bit_floats_are_read_to_the_bit(name: str) -> None:
    settings, part, shape, dtype, fmt = FP8_CASES[name]
    rows, columns = 150, 300
    torch.manual_seed(1)
    numbers = torch.randint(0, 256, (rows, columns), dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.rand(shape) if dtype else torch.exp2(torch.randint(-9, 3, shape).float())
    scales = scales.to(dtype or torch.float32)
    tensors = {
        "x.weight": numbers,
        f"x.{part}": scales,
        "x.input_scale": torch.ones(1),
        "self_attn.k_proj.k_scale": torch.ones(1),
    }
    found = unpacked(settings, stored(tensors))
    assert set(found) == {"x.weight"}
    assert found["x.weight"].fmt.name == fmt
    expected = numbers.float().clone()
    for row in range(rows):
        for column in range(columns):
            place = (row // 128, column // 128) if shape == (2, 3) else (row, 0) if len(shape) == 2 else ...
            expected[row, column] *= scales.float()[place].reshape(())
    assert np.array_equal(found["x.weight"].float32(), expected.numpy(), equal_nan=True)


def test_a_bias_of_zeros_that_only_fills_a_gptq_layer_is_left_out() -> None:
    tensors = Example().gptq() | {"x.bias": torch.zeros(16), "y.bias": torch.zeros(16)}
    assert set(unpacked(GPTQ, stored(tensors))) == {"x.weight", "y.bias"}
    tensors["x.bias"] = torch.ones(16)
    assert set(unpacked(GPTQ, stored(tensors))) == {"x.weight", "x.bias", "y.bias"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config("bitsandbytes", load_in_4bit=True), "quantized by bitsandbytes, and what is read is awq, "),
        (config("aqlm"), "quantized by aqlm"),
        (config("gptq", bits=3), "bits of the quantization in config.json is 3; what is read is 4 and 8"),
        (config("gptq"), "bits of the quantization in config.json is None"),
        (config("gptq", bits=4, checkpoint_format="marlin"), "checkpoint_format .* is 'marlin'"),
        (config("gptq", bits=4, dynamic={"-:lm_head": {}}), "other settings for some layers"),
        (config("awq", bits=4, version="gemv"), "version .* is 'gemv'; what is read is gemm"),
        (config("compressed-tensors", format="nvfp4-pack-quantized"), "format .* is 'nvfp4-pack-quantized'"),
        (config("compressed-tensors", format="pack-quantized", transform_config={"a": 1}), "by a transform"),
    ],
)
def test_what_is_not_read_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        unpacked(settings, stored(Example().gptq()))


def cut(part: str, rows: int | None = None, columns: int | None = None) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"x.{part}"] = tensors[f"x.{part}"][:rows, :columns].contiguous()

    return change


def typed(part: str, dtype: torch.dtype) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({f"x.{part}": tensors[f"x.{part}"].to(dtype)})


def without(part: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(f"x.{part}")


def far(tensors: Tensors) -> None:
    tensors["x.g_idx"][3] = 2


def other_shape(tensors: Tensors) -> None:
    tensors["x.weight_shape"] = torch.tensor([16, 100])


@pytest.mark.parametrize(
    ("settings", "pack", "change", "message"),
    [
        (GPTQ, Example.gptq, without("qzeros"), "x is quantized, but its tensor qzeros is missing"),
        (GPTQ, Example.gptq, without("scales"), "x is quantized, but its tensor scales is missing"),
        (GPTQ, Example.gptq, typed("scales", torch.int32), "x.scales is of data type I32; expected F16 or"),
        (GPTQ, Example.gptq, typed("qweight", torch.int64), "x.qweight is of data type I64; expected I32"),
        (GPTQ, Example.gptq, cut("scales", columns=12), r"x.scales has shape \[2, 12\]; expected a matrix"),
        (
            GPTQ,
            Example.gptq,
            cut("qzeros", rows=1),
            r"x.qzeros has shape \[1, 2\]; expected a matrix of 2 x 2",
        ),
        (GPTQ, Example.gptq, cut("qweight", rows=7), "x.g_idx does not name one of 2 groups for each of 56"),
        (GPTQ, Example.gptq, far, "x.g_idx does not name one of 2 groups for each of 64 inputs"),
        (AWQ, Example.awq, cut("qweight", rows=63), "x has 63 inputs, which do not form 2 equal groups"),
        (AWQ, Example.awq, cut("qweight", rows=0), r"x.qweight has shape \[0, 2\]"),
        (PACKED, Example.compressed, other_shape, r"shape \[16, 8\] for a matrix of \[16, 100\]"),
        (PACKED, Example.compressed, cut("weight_scale", rows=3), r"x.weight_scale has shape \[3, 2\]"),
    ],
)
def test_tensors_that_do_not_belong_together_are_named(
    settings: dict[str, Any],
    pack: Callable[[Example], Tensors],
    change: Callable[[Tensors], None],
    message: str,
) -> None:
    tensors = pack(Example())
    change(tensors)
    with pytest.raises((FormatError, UnsupportedError), match=message):
        unpacked(settings, stored(tensors))


def test_scales_that_fit_no_rows_are_named() -> None:
    tensors = {"x.weight": torch.zeros(4, 8).to(torch.float8_e4m3fn), "x.weight_scale": torch.ones(3)}
    with pytest.raises(
        FormatError, match=r"x.weight_scale has shape \[3\]; expected one scale, one for each"
    ):
        unpacked(config("fp8"), stored(tensors))
    with pytest.raises(
        UnsupportedError, match=r"of data type F8_E4M3, and config.json names no quantization"
    ):
        unpacked({}, stored(tensors))


PACKERS: dict[str, tuple[dict[str, Any], Callable[[Example, str], Tensors]]] = {
    "gptq": (GPTQ, Example.gptq),
    "awq": (AWQ, Example.awq),
    "compressed-tensors": (PACKED, lambda e, stem: e.compressed(stem, zeros=True)),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "toy"
    save_tokenizer(folder)
    save_model(folder, llama_config(bos_token_id=None, eos_token_id=None))
    return folder


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("method", PACKERS)
def test_a_quantized_folder_computes_as_its_weights_in_full(
    method: str, backend: str, plain: Path, tmp_path: Path
) -> None:
    settings, pack = PACKERS[method]
    full, folder = (Path(shutil.copytree(plain, tmp_path / name)) for name in ("full", "quantized"))
    tensors = load_file(plain / "model.safetensors")
    weights = dict(tensors)
    for name, tensor in tensors.items():
        if "_proj" in name:
            example = Example(symmetric=False, shape=tuple(tensor.shape))
            example.scales *= 0.5
            del weights[name]
            weights |= pack(example, name.removesuffix(".weight"))
            tensors[name] = torch.from_numpy(example.weights())
    save_file(weights, folder / "model.safetensors")
    edit(folder / "config.json", **settings)
    save_file(tensors, full / "model.safetensors", {"format": "pt"})
    model = LlamaForCausalLM.from_pretrained(full).eval()
    with LLM(str(folder), backend=backend, device="cpu", threads=1) as llm:
        ids = llm.tokenizer.encode("Once upon a time, there were 12 words.")
        with torch.inference_mode():
            theirs = model(torch.tensor([ids])).logits[0]
        # The native backend computes with 8-bit activations where weights lie in blocks.
        close = 1e-4 if backend == "torch" else 0.05 * float(theirs.abs().max())
        assert float((torch.from_numpy(llm.logits(ids)) - theirs).abs().max()) < close

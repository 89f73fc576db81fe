"""Whole files to another type: what is in them, what other engines read, and failures that leave nothing."""

import http.client
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from nanollama.errors import FormatError, UnsupportedError, UsageError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_write import write_gguf
from nanollama.quant import requantize
from nanollama.quant.decode import dequantize
from nanollama.quant.encode import quantize
from nanollama.quant.formats import FORMATS
from nanollama.quant.plan import FILE_TYPES
from nanollama.quant.requantize import PIECE_WEIGHTS, file_source, planned_bytes, transcoded


def converted(source: Path, target: Path, wanted: str) -> Path:
    with GGUFFile(source) as file:
        requantize.requantize(file_source(file), target, wanted, on_bytes=lambda done: None)
    return target


def small_model(path: Path, weights: NDArray[np.float32]) -> Path:
    tensors = [
        ("blk.0.ffn_up.weight", weights.shape, FORMATS["F32"], weights.tobytes()),
        ("output_norm.weight", (4,), FORMATS["F32"], np.ones(4, np.float32).tobytes()),
    ]
    write_gguf(path, {"general.architecture": "llama"}, tensors)
    return path


@pytest.mark.parametrize("wanted", list(FILE_TYPES))
def test_the_gguf_package_decodes_what_is_written_to_the_same_bits(
    wanted: str, stories_path: Path, tmp_path: Path
) -> None:
    target = converted(stories_path, tmp_path / "out.gguf", wanted)
    reader = gguf.GGUFReader(target)
    with GGUFFile(stories_path) as before, GGUFFile(target) as after:
        assert [t.name for t in reader.tensors] == list(before.tensors)
        for tensor in reader.tensors:
            info = after.tensors[tensor.name]
            ours = dequantize(info.fmt, after.data(tensor.name), info.shape)
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(info.shape)
            np.testing.assert_array_equal(ours, theirs)
            source = before.tensors[tensor.name]
            weights = dequantize(source.fmt, before.data(tensor.name), source.shape)
            np.testing.assert_array_equal(
                np.frombuffer(after.data(tensor.name), np.uint8), quantize(info.fmt, weights)
            )


def test_metadata_is_copied_and_says_the_new_type(stories_path: Path, tmp_path: Path) -> None:
    target = converted(stories_path, tmp_path / "out.gguf", "Q5_K_M")
    with GGUFFile(stories_path) as before, GGUFFile(target) as after:
        for key in before.metadata:
            assert after.typed(key) == before.typed(key)
        assert after.metadata["general.file_type"] == FILE_TYPES["Q5_K_M"] == 17
        assert after.metadata["general.quantization_version"] == 2
        assert len(after.metadata) == len(before.metadata) + 2


def test_keys_of_a_split_model_are_left_out(tmp_path: Path) -> None:
    weights = np.ones((4, 32), np.float32)
    tensors = [("output.weight", (4, 32), FORMATS["F32"], weights.tobytes())]
    metadata = {"general.architecture": "llama", "general.name": "x"}
    from nanollama.formats.gguf_values import Typed, ValueType

    split = {"split.no": Typed(ValueType.UINT16, 0), "split.count": Typed(ValueType.UINT16, 1)}
    write_gguf(tmp_path / "m-00001-of-00001.gguf", {**metadata, **split}, tensors)
    target = converted(tmp_path / "m-00001-of-00001.gguf", tmp_path / "out.gguf", "Q8_0")
    with GGUFFile(target) as file:
        assert not [key for key in file.metadata if key.startswith("split.")]


def test_progress_counts_up_to_the_planned_bytes(stories_path: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    with GGUFFile(stories_path) as file:
        planned = planned_bytes(file_source(file), "Q4_0")
        outcome = requantize.requantize(
            file_source(file), tmp_path / "out.gguf", "Q4_0", on_bytes=seen.append
        )
        assert outcome.before == sum(t.nbytes for t in file.tensors.values())
    assert seen == sorted(seen)
    assert seen[-1] == planned == outcome.after
    assert set(outcome.misfits.values()) == {"F16"}  # 172 columns
    assert all("ffn_down" in name for name in outcome.misfits)


def test_what_has_its_type_already_is_copied(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 60, 4 * 34, np.uint8).tobytes()
    tensors = [("blk.0.ffn_up.weight", (4, 32), FORMATS["Q8_0"], packed)]
    write_gguf(tmp_path / "in.gguf", {"general.architecture": "llama"}, tensors)
    with GGUFFile(converted(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")) as file:
        assert bytes(file.data("blk.0.ffn_up.weight")) == packed


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("count", [256, PIECE_WEIGHTS, PIECE_WEIGHTS + 256, 9 * PIECE_WEIGHTS + 512])
def test_pieces_on_threads_give_the_bytes_of_the_whole(
    count: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requantize, "_usable_cpus", lambda: threads)
    weights = np.random.default_rng(2).standard_normal(count).astype(np.float32)
    source = quantize(FORMATS["Q8_0"], weights)
    pieces = list(transcoded(FORMATS["Q8_0"], source, FORMATS["Q6_K"], name="w"))
    whole = quantize(FORMATS["Q6_K"], dequantize(FORMATS["Q8_0"], source, (count,)))
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_weight_that_is_no_number_names_its_tensor_and_leaves_no_file(tmp_path: Path) -> None:
    weights = np.zeros((4, 32), np.float32)
    weights[2, 7] = np.nan
    source = small_model(tmp_path / "in.gguf", weights)
    with pytest.raises(
        FormatError, match=r"the tensor blk\.0\.ffn_up\.weight holds weights that are infinite"
    ):
        converted(source, tmp_path / "out.gguf", "Q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_a_type_that_cannot_be_decoded_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    fmt = FORMATS["IQ2_XXS"]
    tensors = [("blk.0.ffn_up.weight", (1, 256), fmt, bytes(fmt.block_bytes))]
    write_gguf(tmp_path / "in.gguf", {"general.architecture": "llama"}, tensors)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_up\.weight is of type IQ2_XXS"):
        converted(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_an_unknown_type_is_refused_with_the_list(stories_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'Q3_K' is no type to quantize to; expected one of Q8_0, Q4_0"):
        converted(stories_path, tmp_path / "out.gguf", "Q3_K")


def llama_cpp_continues(path: Path, prompt: str) -> str:
    """What llama.cpp's server on this machine makes of a prompt, greedily."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 128
    params.warmup = False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    body = json.dumps({"prompt": prompt, "temperature": 0, "n_predict": 24})
    connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
    text: str = json.load(connection.getresponse())["content"]
    connection.close()
    del server
    return text


def test_llama_cpp_loads_the_files_and_tells_the_same_story(stories_path: Path, tmp_path: Path) -> None:
    prompt = "Once upon a time"
    expected = llama_cpp_continues(stories_path, prompt)
    assert len(expected) > 40
    for wanted in ("F16", "Q8_0"):
        target = converted(stories_path, tmp_path / f"{wanted}.gguf", wanted)
        assert llama_cpp_continues(target, prompt) == expected
    for wanted in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        target = converted(stories_path, tmp_path / f"{wanted}.gguf", wanted)
        assert len(llama_cpp_continues(target, prompt)) > 40

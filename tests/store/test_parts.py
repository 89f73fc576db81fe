"""Unfinished files: what a kill, a power failure or a stranger leaves is told from what was written."""

import os
import random
import threading
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.store.parts import PartFile, kept_bytes, pieces

CONTENT = random.Random(3).randbytes(10_000)


@pytest.fixture
def final(tmp_path):
    return tmp_path / "toy.gguf"


def opened(final, identity="one"):
    return PartFile(final, len(CONTENT), identity)


def write(part, *ranges):
    for start, stop in ranges:
        part.write(start, CONTENT[start:stop])


def reopened_missing(final, identity="one"):
    part = opened(final, identity)
    try:
        return part.missing()
    finally:
        part.close()


def test_blocks_come_in_any_order_and_the_file_is_whole_in_the_end(final):
    part = opened(final)
    assert part.missing() == [(0, 10_000)]
    write(part, (6_000, 10_000), (0, 1_000))
    assert (part.done, part.missing()) == (5_000, [(1_000, 6_000)])
    write(part, (1_000, 6_000))
    assert part.missing() == []
    part.sync()
    part.close()
    PartFile.publish(final)
    assert final.read_bytes() == CONTENT
    assert [path.name for path in final.parent.iterdir()] == ["toy.gguf"]


def test_an_unfinished_file_is_gone_on_with(final):
    part = opened(final)
    write(part, (2_000, 3_000), (5_000, 5_001))
    part.close()
    assert reopened_missing(final) == [(0, 2_000), (3_000, 5_000), (5_001, 10_000)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_after_a_kill_at_any_byte_of_data_or_map_nothing_wrong_is_trusted(tmp_path_factory, data):
    final = tmp_path_factory.mktemp("parts") / "toy.gguf"
    part = opened(final)
    cuts = sorted(data.draw(st.lists(st.integers(0, 10_000), max_size=8, unique=True)))
    ranges = [pair for pair in pairwise(cuts) if data.draw(st.booleans())]
    write(part, *data.draw(st.permutations(ranges)))
    part.close()
    for path in (part.path, part.map_path):
        os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
    part = opened(final)
    kept = part.path.read_bytes().ljust(len(CONTENT), b"\0")
    position = 0
    for start, stop in [*part.missing(), (len(CONTENT), len(CONTENT))]:
        assert kept[position:start] == CONTENT[position:start]
        position = stop
    write(part, *part.missing())
    part.close()
    assert part.path.read_bytes() == CONTENT


def test_a_torn_line_does_not_spoil_the_next_one(final):
    part = opened(final)
    os.write(part._map, b"\n0 10")
    write(part, (0, 1_000))
    part.close()
    assert reopened_missing(final) == [(1_000, 10_000)]


BAD_MAPS = {
    "empty": b"",
    "of another file": b"nanollama-part 1 10000 6f74686572\n\n0 10000 00000000\n",
    "not text": bytes(range(256)) * 10,
    "without end": b"\n0 1 00000000" * 10_000,
}


@pytest.mark.parametrize("content", BAD_MAPS.values(), ids=BAD_MAPS.keys())
def test_a_map_that_does_not_belong_here_is_as_good_as_none(content, final):
    part = opened(final)
    write(part, (0, 5_000))
    part.close()
    part.map_path.write_bytes(content)
    assert reopened_missing(final) == [(0, 10_000)]


@pytest.mark.parametrize("line", [b"9000 11000", b"5 5", b"7 3", b"0 0", b"-1 5", b"0 1e3"])
def test_a_line_with_an_impossible_range_is_passed_over(line, final):
    part = opened(final)
    write(part, (0, 1_000))
    os.write(part._map, b"\n%s 00000000\n" % line)
    part.close()
    assert reopened_missing(final) == [(1_000, 10_000)]


def test_what_came_of_another_version_is_not_gone_on_with(final):
    part = opened(final, "one")
    write(part, (0, 5_000))
    part.close()
    assert reopened_missing(final, "two") == [(0, 10_000)]


def test_a_file_that_was_changed_meanwhile_is_fetched_again_where_it_differs(final):
    part = opened(final)
    write(part, (0, 5_000), (5_000, 9_000))
    part.close()
    with part.path.open("r+b") as file:
        file.seek(6_000)
        file.write(b"changed")
    assert reopened_missing(final) == [(5_000, 10_000)]


def test_links_and_pipes_in_the_way_are_replaced_and_never_written_through(final, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "toy.gguf.part").symlink_to(victim)
    os.mkfifo(tmp_path / "toy.gguf.part.map")
    part = opened(final)
    write(part, (0, 10_000))
    part.close()
    assert victim.read_bytes() == b"precious"
    assert part.path.read_bytes() == CONTENT


def test_a_late_thread_writes_nowhere(final):
    part = opened(final)
    part.close()
    with pytest.raises(ValueError, match="closed"):
        write(part, (0, 10))


def test_several_threads_write_at_once(final):
    part = opened(final)
    jobs = [
        threading.Thread(target=write, args=(part, *[(n, n + 10) for n in range(first * 10, 10_000, 40)]))
        for first in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    part.close()
    assert part.path.read_bytes() == CONTENT
    assert reopened_missing(final) == []


def test_a_discarded_file_leaves_nothing(final):
    part = opened(final)
    write(part, (0, 10))
    part.discard()
    assert list(final.parent.iterdir()) == []


def test_a_file_of_no_bytes_is_complete_at_once(final):
    part = PartFile(final, 0, "one")
    assert part.missing() == []
    part.close()


def test_kept_bytes_count_against_the_space_that_is_needed(final):
    assert kept_bytes(final) == 0
    part = opened(final)
    write(part, (0, 10_000))
    part.close()
    assert kept_bytes(final) == 10_000


@given(st.lists(st.integers(0, 500), max_size=12, unique=True), st.integers(1, 60))
def test_pieces_cover_the_gaps_in_order_and_none_is_too_long(cuts, length):
    cuts = sorted(cuts)
    gaps = list(zip(cuts[::2], cuts[1::2], strict=False))
    cut = list(pieces(gaps, length))
    assert [n for start, stop in cut for n in range(start, stop)] == [
        n for start, stop in gaps for n in range(start, stop)
    ]
    assert all(0 < stop - start <= length for start, stop in cut)

"""Token ids beside an answer's bytes keep their order and how they were grouped."""

from hypothesis import given
from hypothesis import strategies as st

from workers.output_ids import ID_BYTES, groups, pack

TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)


@given(st.lists(TOKENS))
def test_what_is_packed_comes_out_in_the_same_groups(outputs: list[list[int]]) -> None:
    packed = b"".join(map(pack, outputs))
    assert groups(packed) == outputs
    assert len(packed) == ID_BYTES * sum(map(len, outputs))


def test_an_output_without_tokens_is_nothing() -> None:
    assert pack([]) == b"" and groups(b"") == []

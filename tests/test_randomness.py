"""Random numbers are functions of their key, the same on every machine and for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.randomness import generator, number, uniforms

KEYS = st.lists(st.one_of(st.integers(), st.text(), st.floats(allow_nan=False)), min_size=1, max_size=4)


def test_pinned_numbers() -> None:
    """A change here redraws every view, every label split and every cache key of every user."""
    assert number("pinned", 1) == 6456138200981213688
    assert uniforms(0, "view", "clip", 1)[:3] == (0.24019686227804127, 0.7885078122567676, 0.6700334231974676)
    assert generator(0, "order", 1).permutation(8).tolist() == [7, 0, 2, 4, 3, 1, 5, 6]


@given(KEYS)
def test_a_key_always_gives_the_same(key: list[object]) -> None:
    assert number(*key) == number(*key)
    assert 0 <= number(*key) < 2**63
    draws = uniforms(*key)
    assert len(draws) == 8
    assert all(0 <= draw < 1 for draw in draws)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), ("1",)),
        ((1,), (1.0,)),
        ((1, 2), (2, 1)),
        ((1, 2), (12,)),
        (("a", "b"), ("ab",)),
        ((0,), (0, 0)),
        ((True,), (1,)),
    ],
)
def test_keys_that_differ_draw_differently(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert number(*one) != number(*other)
    assert uniforms(*one) != uniforms(*other)


def test_draws_look_uniform() -> None:
    draws = np.array([uniforms("uniform", i) for i in range(2000)])
    assert np.abs(draws.mean(0) - 0.5).max() < 0.03
    assert np.abs(draws.var(0) - 1 / 12).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(8)).max() < 0.1


def test_generators_do_not_share_state() -> None:
    first, again = generator("same"), generator("same")
    first.random(5)
    assert again.random() == generator("same").random()

"""Trait models: what they see in texts, and their bytes."""

from __future__ import annotations

import io
import pickle
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.learning.trait_model import LOOKED_AT, TRAITS, TraitModel, text_of
from cp_resources.trait_models import bytes_of, model_of

DAY = date(2026, 3, 1)
SUBJECTS = (
    "migration of the billing schema",
    "layout of the settings page",
    "retry of the webhook",
    "login form",
)
SENTENCES = (
    "it fails when more rows are loaded",
    "customers see a stale value",
    "the old behaviour was never documented",
    "measure before and after",
    "keep the public interface",
)


def texts(count: int = 300) -> list[str]:
    generator = np.random.default_rng(1)
    return [
        f"{SUBJECTS[generator.integers(4)]} {' '.join(generator.choice(SENTENCES, 3))} {'x ' * generator.integers(9)}"
        for _ in range(count)
    ]


KINDS = ["backend/simple", "frontend/complex"] * 150
MODEL = TraitModel.learn(texts(), KINDS, day=DAY, seed=1)
WORDS = slice(0, TRAITS - 6)


def test_texts_of_other_words_have_other_traits_and_equal_ones_equal_traits():
    seen = MODEL.traits_of([SUBJECTS[0], SUBJECTS[1], SUBJECTS[0]], ["backend/simple"] * 3)
    assert seen.shape == (3, TRAITS)
    assert seen.dtype == np.float32
    assert (seen[0] == seen[2]).all()
    assert np.abs(seen[0, WORDS] - seen[1, WORDS]).max() > 0.5


def test_words_that_were_never_met_say_nothing():
    known, more = MODEL.traits_of([SUBJECTS[2], f"{SUBJECTS[2]} zyzzyva quokkatron"], ["backend/simple"] * 2)
    assert more[WORDS] == pytest.approx(known[WORDS], abs=1e-5)


def test_a_text_without_a_known_word_lies_no_further_than_any_other():
    strange, empty = MODEL.traits_of(["zyzzyva quokkatron", ""], ["backend/simple"] * 2)
    assert strange[WORDS] == pytest.approx(empty[WORDS])
    assert np.abs([strange, empty]).max() <= 3


@given(st.lists(st.text(max_size=300), min_size=1, max_size=5))
def test_whatever_a_text_holds_its_traits_are_small_numbers_of_its_own(made):
    together = MODEL.traits_of(made, ["devops/simple"] * len(made))
    assert np.isfinite(together).all()
    assert np.abs(together).max() <= 3
    alone = np.vstack([MODEL.traits_of([text], ["devops/simple"]) for text in made])
    assert together == pytest.approx(alone, abs=1e-4)


def test_the_usual_text_of_a_kind_has_traits_around_nought():
    seen = MODEL.traits_of(texts(), KINDS)
    for kind in set(KINDS):
        own = seen[np.array(KINDS) == kind]
        assert np.abs(own.mean(axis=0)).max() < 0.2


def test_what_only_the_kind_says_is_no_trait():
    long, short = ["one two three four five six seven " * 40] * 200, ["one two"] * 200
    generator = np.random.default_rng(3)
    varied = [f"{text} {'seven ' * generator.integers(1, 4)}" for text in long + short]
    model = TraitModel.learn(varied, ["backend/simple"] * 200 + ["general/simple"] * 200, day=DAY, seed=1)
    [of_its_kind, of_the_other] = model.traits_of([varied[0]] * 2, ["backend/simple", "general/simple"])
    length = TRAITS - 6
    assert of_the_other[length] > of_its_kind[length] + 1


def test_a_kind_that_it_does_not_know_is_held_against_all_texts():
    assert np.isfinite(MODEL.traits_of(["login form"], ["astrology/huge"])).all()


def test_texts_that_are_all_alike_have_no_traits():
    model = TraitModel.learn(["the same"] * 50, ["backend/simple"] * 50, day=DAY, seed=1)
    assert np.abs(model.traits_of(["the same"], ["backend/simple"])).max() < 0.01


def test_only_the_beginning_of_a_long_text_is_looked_at():
    assert len(text_of("t" * 10, "d" * 10_000)) == LOOKED_AT
    assert text_of(None, None).strip() == ""


def test_equal_texts_and_seeds_give_equal_bytes():
    again = TraitModel.learn(texts(), KINDS, day=DAY, seed=1)
    assert bytes_of(again) == bytes_of(MODEL)
    assert bytes_of(TraitModel.learn(texts(), KINDS, day=DAY, seed=2)) != bytes_of(MODEL)


def test_bytes_give_back_the_same_eye():
    read = model_of(bytes_of(MODEL))
    assert (read.traits_of(texts(), KINDS) == MODEL.traits_of(texts(), KINDS)).all()
    assert bytes_of(read) == bytes_of(MODEL)


def an_archive(**arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not the bytes of a trait model"),
        (b"nothing of the kind", "not the bytes of a trait model"),
        (pickle.dumps({"axes": 1}), "not the bytes of a trait model"),
        (bytes_of(MODEL)[:1000], "not the bytes of a trait model"),
        (an_archive(axes=np.array([{"an": "object"}], dtype=object)), "not the bytes of a trait model"),
        (an_archive(format=np.array(1)), "it has no rarity"),
        (an_archive(**MODEL.as_arrays() | {"format": np.array(99)}), "it has format 99"),
    ],
    ids=["empty", "text", "pickle", "cut-off", "object", "incomplete", "format"],
)
def test_other_bytes_are_refused_and_never_executed(content, says):
    with pytest.raises(ValueError, match=says):
        model_of(content)

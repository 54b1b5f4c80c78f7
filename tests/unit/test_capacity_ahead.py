"""Replays of a search that run ahead of it, in processes of their own: the same is found, and nothing stays."""

from __future__ import annotations

import multiprocessing
import os

import pytest

from launcher.twin.capacity_search import Found, Question, Tried, find
from launcher.twin.crew import Crew
from launcher.twin.families import Family, families
from launcher.twin.foresight import Ask, foreseen
from launcher.twin.needs import Needs
from launcher.twin.splits import Layout, Part, Split

PREFILL, DECODE, MIXED = 11.0, 14.0, 1.3  # what one worker is to it; together they disturb themselves
LAYOUTS = (Layout(1), Layout(2))
DEADLY = Question(Split(Part(Layout(1), 25)))


def replay(question: Question) -> Tried:
    split, load = question
    ttft = itl = load * MIXED * (PREFILL + DECODE) / split.decode.gpus
    if split.prefill is not None:
        ttft, itl = load * PREFILL / split.prefill.gpus, load * DECODE / split.decode.gpus
    return Tried(split=split, ttft_s=ttft, itl_s=itl, ttft_of_target=ttft, itl_of_target=itl)


def dying(question: Question) -> Tried:
    if question == DEADLY and multiprocessing.parent_process() is not None:
        os._exit(9)
    return replay(question)


def ordered() -> list[Family]:
    needs = [
        Needs(layout, PREFILL / layout.gpus, DECODE / layout.gpus, (PREFILL + DECODE) / layout.gpus)
        for layout in LAYOUTS
    ]
    return families(needs, lambda split: True)


def search(ask: Ask) -> Found:
    return find(ask, ordered(), 64)


def asked_alone() -> list[Question]:
    asked: list[Question] = []

    def ask(question: Question) -> Tried:
        asked.append(question)
        return replay(question)

    search(ask)
    return list(dict.fromkeys(asked))


def test_the_first_that_is_foreseen_is_what_the_search_asks_next() -> None:
    known: dict[Question, Tried] = {}
    while todo := foreseen(search, known, 3):
        assert len(todo) <= 3
        known[todo[0]] = replay(todo[0])
    assert list(known) == asked_alone()


def test_most_of_what_is_foreseen_is_asked_for() -> None:
    alone = asked_alone()
    ahead = [
        foreseen(search, {question: replay(question) for question in alone[:number]}, 2)[1:]
        for number in range(len(alone))
    ]
    guesses = [question for each in ahead for question in each]
    assert sum(question in alone for question in guesses) > len(guesses) / 2


@pytest.mark.parametrize("num", [1, 3])
def test_however_many_processes_there_are_the_same_is_found_in_the_same_order(num: int) -> None:
    with Crew(replay, num) as crew:
        assert len(multiprocessing.active_children()) == (num if num > 1 else 0)
        found = crew.run(search)
    assert found == search(replay)
    assert not multiprocessing.active_children()


def test_processes_that_die_are_done_without() -> None:
    assert DEADLY in asked_alone()
    with Crew(dying, 2) as crew:
        assert crew.run(search) == search(replay)

"""Stages at work at the same time: order, errors of every stage, Ctrl-C, and that no one waits for ever."""

from __future__ import annotations

import itertools
import signal
import threading
import time
import weakref

import pytest

from mask2former.deploy.pipeline import WAITING_ITEMS, in_background, read_ahead

SOON = 10  # seconds that only a failing test waits


class BrokenStageError(Exception):
    pass


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(SOON)
        assert not thread.is_alive()


def numbers_then_error(count):
    yield from range(count)
    raise BrokenStageError("source")


def test_items_come_in_order_through_both_stages():
    done = []
    with read_ahead(range(100)) as ahead, in_background(done.append) as hand_over:
        for item in ahead:
            hand_over(2 * item)
    assert done == list(range(0, 200, 2))


def test_an_empty_source_ends_at_once():
    with read_ahead([]) as ahead, in_background(print) as hand_over:
        for item in ahead:
            hand_over(item)


def test_the_next_item_is_read_while_this_one_is_worked_on():
    second_was_read = threading.Event()

    def source():
        yield 1
        second_was_read.set()
        yield 2

    with read_ahead(source()) as ahead:
        next(ahead)
        assert second_was_read.wait(SOON)


def test_the_caller_goes_on_while_an_item_is_consumed():
    may_finish = threading.Event()
    with in_background(lambda item: may_finish.wait(SOON)) as hand_over:
        hand_over(1)
        may_finish.set()  # a hand-over that waited for its item would never come here
    assert may_finish.is_set()


def test_a_fast_source_waits():
    num_read = 0
    one_too_many = threading.Event()

    def source():
        nonlocal num_read
        for _ in range(100):
            num_read += 1
            if num_read > WAITING_ITEMS + 2:
                one_too_many.set()
            yield num_read

    with read_ahead(source()) as ahead:
        assert next(ahead) == 1
        # One was taken, some wait, and one is held by the thread, which waits for room.
        assert not one_too_many.wait(0.1)


def test_a_fast_caller_waits_for_a_slow_consumer():
    started = threading.Semaphore(0)
    may_go_on = threading.Semaphore(0)
    num_handed_over = 0

    def consume(item):
        started.release()
        assert may_go_on.acquire(timeout=SOON)

    def produce(hand_over):
        nonlocal num_handed_over
        for item in range(20):
            hand_over(item)
            num_handed_over += 1

    with in_background(consume) as hand_over:
        caller = threading.Thread(target=produce, args=(hand_over,))
        caller.start()
        assert started.acquire(timeout=SOON)
        caller.join(0.1)
        assert caller.is_alive() and num_handed_over <= 1 + WAITING_ITEMS
        may_go_on.release(20)
        caller.join(SOON)
    assert num_handed_over == 20


def test_live_sources_give_the_newest_item():
    all_read = threading.Event()

    def source():
        yield from range(10)
        all_read.set()

    with read_ahead(source(), newest_only=True) as ahead:
        assert all_read.wait(SOON), "a live source never waits"
        assert list(ahead) == [9]


def test_an_error_of_the_source_comes_behind_the_items_before_it():
    done = []
    source = numbers_then_error(7)
    with pytest.raises(BrokenStageError), read_ahead(source) as ahead, in_background(done.append) as hand_over:
        for item in ahead:
            hand_over(item)
    assert done == list(range(7))


@pytest.mark.parametrize("error", [BrokenStageError, KeyboardInterrupt])
def test_when_the_caller_fails_or_is_stopped_what_was_handed_over_is_still_done(error):
    done = []
    with pytest.raises(error), read_ahead(range(1000)) as ahead, in_background(done.append) as hand_over:
        for item in ahead:
            if item == 5:
                raise error
            hand_over(item)
    assert done == list(range(5))


def test_an_error_of_the_consumer_stops_the_caller():
    def consume(item):
        if item == 3:
            raise BrokenStageError(f"item {item}")

    endless = itertools.count()
    with pytest.raises(BrokenStageError), read_ahead(endless) as ahead, in_background(consume) as hand_over:
        for item in ahead:
            hand_over(item)


def test_an_error_of_the_consumer_in_the_last_item_is_raised_on_leaving():
    def consume(item):
        raise BrokenStageError("last")

    with pytest.raises(BrokenStageError, match="last"), in_background(consume) as hand_over:
        hand_over(1)


def test_an_error_of_the_consumer_is_not_hidden_by_a_stop():
    def consume(item):
        raise BrokenStageError("disk full")

    with pytest.raises(BrokenStageError, match="disk full") as raised, in_background(consume) as hand_over:
        hand_over(1)
        raise KeyboardInterrupt
    assert isinstance(raised.value.__context__, KeyboardInterrupt)


def test_a_second_stop_waits_only_for_the_item_that_is_being_done():
    leaving = threading.Event()
    done = []

    def consume(item):
        assert leaving.wait(SOON)
        time.sleep(0.05)  # until the main thread waits for this one
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(KeyboardInterrupt), in_background(consume) as hand_over:
        for item in range(3):
            hand_over(item)
        leaving.set()
        raise KeyboardInterrupt
    assert done == [0]


def test_items_are_let_go_as_soon_as_they_were_consumed():
    class Item:
        pass

    references = []
    alive = []

    def source():
        for _ in range(50):
            item = Item()
            references.append(weakref.ref(item))
            yield item
            del item

    with read_ahead(source()) as ahead, in_background(lambda item: None) as hand_over:
        for item in ahead:
            hand_over(item)
            alive.append(sum(reference() is not None for reference in references))
    assert max(alive) <= 2 * WAITING_ITEMS + 4

"""taskd.scheduling.credit, costs and ids: what a server may assign without a turn, how much a task counts, and ids."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from taskd.ports.scheduling import OTHERS
from taskd.ports.workers import Mean
from taskd.scheduling.costs import FASTEST, HORIZON, MOST, Costs, cost_of
from taskd.scheduling.credit import Credit
from taskd.scheduling.ids import FRESH, LEAST, Ids


def after_turn(**room: float) -> Credit:
    """The credit of a server whose first turn has found this room."""
    credit = Credit()
    credit.turn_begins()
    credit.turn_ended(room, room.keys())
    return credit


def takes(credit: Credit, cost: float = 1.0) -> list[str]:
    """Use all credit; the workers in the order in which they were chosen."""
    found = []
    while worker := credit.best(cost)[0]:
        credit.take(worker, cost)
        found.append(worker)
    return found


class TestCredit:
    """What a turn found, less what was done since."""

    def test_there_is_none_before_a_turn(self) -> None:
        credit = Credit()
        assert credit.best(1.0) == ("", 0)
        assert credit.room_left

    def test_it_is_half_of_the_room_and_of_the_worker_with_the_most(self) -> None:
        credit = after_turn(a=4.0, b=6.0)
        assert credit.best(1.0) == ("b", 3.0)
        assert takes(credit) == ["b", "a", "b", "a", "b"]
        assert credit.room_left

    def test_it_is_at_least_one_task_where_there_is_room_at_all(self) -> None:
        credit = after_turn(a=0.2, b=1.0, c=0.0, d=-3.0)
        assert sorted(takes(credit)) == ["a", "b"]
        assert not credit.room_left

    def test_servers_together_exceed_the_room_by_one_task_each_at_most(self) -> None:
        for slots in (1, 2, 3, 7, 100):
            servers = [after_turn(w=float(slots)) for _ in range(2)]
            assert sum(len(takes(credit)) for credit in servers) <= slots + len(servers)

    def test_it_grows_by_what_ends(self) -> None:
        credit = after_turn(a=2.0)
        assert takes(credit) == ["a"]
        credit.give("a", 1.0)
        credit.give("stopped", 1.0)
        assert takes(credit) == ["a"]

    def test_short_tasks_take_little_of_it(self) -> None:
        """They may use all the room."""
        assert len(takes(after_turn(a=10.0), 0.5)) == 20
        assert len(takes(after_turn(a=10.0), 0.05)) in (200, 201)
        assert len(takes(after_turn(a=10.0), 0.51)) in (9, 10)

    def test_a_creation_that_a_turn_may_not_have_seen_counts_after_it(self) -> None:
        credit = after_turn(a=10.0)
        credit.take("a", 1.0)  # answered before the turn: the turn has seen it
        credit.answered("a", 1.0)
        credit.take("a", 1.0)  # under way when the turn begins
        credit.turn_begins()
        credit.answered("a", 1.0)
        credit.take("a", 1.0)  # during the turn
        credit.turn_ended({"a": 8.0}, {"a"})
        assert credit.best(1.0) == ("a", 2.0)

    def test_only_workers_that_can_get_tasks_have_credit(self) -> None:
        credit = after_turn(a=4.0, b=8.0)
        credit.only({"a"})
        assert credit.best(1.0) == ("a", 2.0)
        credit.turn_ended({"a": 4.0, "b": 8.0}, {"a"})
        assert credit.best(1.0) == ("a", 2.0)

    def test_nothing_is_known_after_a_doubt(self) -> None:
        credit = after_turn(a=4.0)
        credit.forget()
        assert credit.best(1.0) == ("", 0)
        assert credit.room_left

    def test_what_has_ended_since_the_turn_may_leave_room(self) -> None:
        credit = after_turn(a=-1.0)
        seen = [credit.room_left]
        credit.freed += 1.0
        seen.append(credit.room_left)
        credit.turn_begins()
        seen.append(credit.room_left)
        assert seen == [False, True, False]


class TestCosts:
    """How much of a slot a task counts."""

    def test_it_is_the_part_of_the_time_in_flight_that_a_slot_is_held(self) -> None:
        assert cost_of(HORIZON, 1) == pytest.approx(0.5)
        assert cost_of(0.9, 100) == pytest.approx(0.9)

    def test_long_tasks_count_a_whole_slot(self) -> None:
        assert cost_of(1.0, 100) == cost_of(3600.0, 100) == 1.0

    def test_the_number_in_flight_on_a_worker_is_bounded(self) -> None:
        for slots in (1, 10, 100, 1000):
            in_flight = slots / cost_of(0.0, slots)
            assert in_flight == pytest.approx(slots + FASTEST * HORIZON)

    def test_what_nobody_has_measured_counts_a_whole_slot(self) -> None:
        assert Costs().of(1, "a") == 1.0
        assert Costs([Mean(1, "a", 0.1)], 1).of(1, "b") == 1.0

    def test_users_that_nobody_has_measured_have_the_mean_of_the_kind(self) -> None:
        costs = Costs([Mean(1, "a", 0.1), Mean(2, "a", 0.3)], 1)
        assert costs.of(1, "a") == pytest.approx(0.5)
        assert costs.of(2, "a") == pytest.approx(0.75)
        assert costs.of(3, "a") == pytest.approx(0.2 / 0.3)

    def test_the_means_of_workers_weigh_evenly(self) -> None:
        costs = Costs([Mean(1, "a", 0.1), Mean(1, "a", 0.3)], 1)
        assert costs.of(1, "a") == pytest.approx(0.2 / 0.3)
        assert {(c.user_id, c.kind) for c in costs.rows()} == {(1, "a"), (OTHERS, "a")}

    def test_a_turn_gets_the_costs_of_all_kinds_and_of_a_bounded_number_of_users(self) -> None:
        costs = Costs([Mean(user, kind, 0.1) for user in range(1, 900) for kind in "ab"], 1)
        rows = costs.rows()
        assert len(rows) == MOST + 2
        assert {row.kind for row in rows if row.user_id == OTHERS} == {"a", "b"}


class TestIds:
    """The stock of ids."""

    def setup_method(self) -> None:
        self.clock = Clock()
        self.ids = Ids(self.clock)

    def test_ids_are_given_out_in_their_order(self) -> None:
        assert self.ids.missing(3) == 3
        self.ids.add([4, 5])
        assert (self.ids.missing(2), self.ids.missing(3)) == (0, 1)
        self.ids.add([7])
        assert [self.ids.take() for _ in range(3)] == [4, 5, 7]

    def test_answers_may_overtake_each_other(self) -> None:
        self.ids.add([10, 11])
        self.ids.add([5, 6])
        assert [self.ids.take() for _ in range(4)] == [5, 6, 10, 11]

    def test_no_id_is_given_out_twice(self) -> None:
        self.ids.add([10, 11, 12])
        self.ids.add([11, 12, 13])
        assert [self.ids.take() for _ in range(4)] == [10, 11, 12, 13]

    def test_a_sequence_that_has_gone_back(self) -> None:
        """The database has gone on from an older state."""
        self.ids.add([1000, 1001])
        self.ids.take()
        self.ids.drawn([5, 6])
        assert [self.ids.take() for _ in range(2)] == [5, 6]
        self.ids.drawn([7])
        assert self.ids.take() == 7

    def test_a_creation_draws_for_the_next_one_of_its_size(self) -> None:
        assert self.ids.spare(1) == LEAST
        assert self.ids.spare(1000) == 2000
        self.ids.add(range(1, LEAST + 1))
        self.ids.take()
        assert self.ids.spare(1) == 1
        self.ids.add([])

    def test_a_stock_is_dropped_when_it_is_old_and_other_servers_have_gone_on(self) -> None:
        self.ids.add([1, 2])
        self.clock.advance(FRESH + 1)
        assert self.ids.missing(1) == 0, "nobody has gone on"
        self.ids.seen(1000)
        assert self.ids.missing(1) == 1
        self.ids.add([1001])
        self.ids.seen(1005)
        assert self.ids.missing(1) == 0, "it is fresh"

"""The injected faults. Each public function but begin() is a kind of fault, and ends by itself after some seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.processes import Process, WorkerProcess
    from tests.simulation.world import World


LOOKS = 30
LOOK_AGAIN = 0.2
"""How often, and how many seconds apart, a fault looks for a worker that runs tasks."""


def begin(world: World) -> None:
    """Inject faults from now on, until the chaos ends."""
    if world.plan.faults:
        world.clock.call(None, world.stream("faults").expovariate(1 / world.plan.fault_interval), _next, world)


def _next(world: World) -> None:
    if world.rates:
        stream = world.stream("faults")
        name = stream.choice(world.plan.faults)
        globals()[name](world, stream)
        begin(world)


def _choose(stream: random.Random, processes: list[Process]) -> Process | None:
    alive = [p for p in processes if not p.dead]
    return stream.choice(alive) if alive else None


def _to_worker(world: World, stream: random.Random, what: Callable[[WorkerProcess], object]) -> None:
    """Do this to a worker: most often to one that runs tasks, as soon as there is one."""
    if stream.random() < 0.2:
        if world.workers:
            what(stream.choice(world.workers))
    else:
        _to_busy_worker(world, stream, what, LOOKS)


def _to_busy_worker(world: World, stream: random.Random, what: Callable[[WorkerProcess], object], looks: int) -> None:
    busy = [w for w in world.workers if not w.paused and world.referee.running.get(w.name)]
    if busy and world.rates:
        what(stream.choice(busy))
    elif looks and world.rates:
        world.clock.call(None, LOOK_AGAIN, _to_busy_worker, world, stream, what, looks - 1)


def kill_server(world: World, stream: random.Random) -> None:
    """kill -9 of a server."""
    if process := _choose(stream, [*world.servers]):
        process.kill()


def kill_worker(world: World, stream: random.Random) -> None:
    """kill -9 of a worker, sometimes with its watchdog."""

    def kill(process: WorkerProcess) -> None:
        if stream.random() < 0.4:
            process.watchdog.kill()
        process.kill()

    _to_worker(world, stream, kill)


def kill_watchdog(world: World, stream: random.Random) -> None:
    """kill -9 of a watchdog. Its worker starts another."""

    def kill(process: WorkerProcess) -> None:
        world.note("world", "kills the watchdog of", process.name)
        process.watchdog.kill()
        world.clock.call(None, stream.choice((1.0, 3.0, 20.0)), process.revive_watchdog)

    _to_worker(world, stream, kill)


def drain_server(world: World, stream: random.Random) -> None:
    """SIGTERM to a server."""
    if process := _choose(stream, [*world.servers]):
        process.terminate()


def drain_worker(world: World, stream: random.Random) -> None:
    """SIGTERM to a worker."""
    _to_worker(world, stream, lambda process: process.terminate())


def freeze_server(world: World, stream: random.Random) -> None:
    """SIGSTOP to a server, and SIGCONT some time later."""
    _freeze(world, stream, _choose(stream, [*world.servers]))


def freeze_worker(world: World, stream: random.Random) -> None:
    """SIGSTOP to a worker, often for longer than the lease."""
    _to_worker(world, stream, lambda process: _freeze(world, stream, process))


def stall_worker(world: World, stream: random.Random) -> None:
    """A handler blocks a worker's reactor, at times until the watchdog ends the worker."""

    def stall(process: WorkerProcess) -> None:
        process.stall()
        if process.stalled:
            seconds = stream.choice((0.5, world.plan.stall / 2, world.plan.lease + 5.0, world.plan.stall * 3))
            world.clock.call(None, seconds, process.end_stall, process.stalled_since)
            _lose_heartbeats(world, stream, process, seconds)

    _to_worker(world, stream, stall)


def _freeze(world: World, stream: random.Random, process: Process | None) -> None:
    if process is None or process.paused:
        return
    process.freeze()
    seconds = stream.choice((0.5, world.plan.lease / 2, world.plan.lease + 6.0, world.plan.lease + 6.0))
    world.clock.call(None, seconds, process.thaw)
    _lose_heartbeats(world, stream, process, seconds)


def _lose_heartbeats(world: World, stream: random.Random, process: Process, seconds: float) -> None:
    heartbeat = stream.uniform(1.0, 10.0)
    if heartbeat < seconds:
        # the broker gets no heartbeats and closes the connection
        world.clock.call(None, heartbeat, process.broker.lose)


def stop_database(world: World, stream: random.Random) -> None:
    """The database is down for some seconds."""
    if world.database.up:
        world.note("world", "stops", "the database")
        world.database.stop(lost=stream.choice((0.0, 0.5, 1.0)))
        world.clock.call(None, stream.choice((0.2, 2.0, 6.0, 12.0)), world.database.start)


def crash_database(world: World, stream: random.Random) -> None:
    """The database crashes just after a commit that does not wait for the disk."""

    def soon() -> None:
        world.database.on_unflushed = lambda: None
        world.clock.call(None, stream.choice((0.0, 0.01, 0.1)), crash)

    def crash() -> None:
        if world.rates and world.database.up:
            world.note("world", "crashes", "the database")
            world.database.stop(lost=stream.choice((0.5, 1.0, 1.0)))
            world.clock.call(None, stream.choice((0.2, 2.0, 6.0)), world.database.start)

    world.database.on_unflushed = soon


def cut_from_database(world: World, stream: random.Random) -> None:
    """A process cannot reach the database for some seconds."""
    if process := _choose(stream, [*world.servers, *world.workers]):
        world.note("world", "cuts off from the database", process.name)
        # the watchdog has a connection of its own, by the same network
        cut = process.cut if stream.random() < 0.7 else process.store.cut
        cut(True)
        seconds = stream.choice((0.2, 2.0, 6.0, 12.0, world.plan.lease * 2))
        world.clock.call(None, seconds, cut, False)


def close_connections(world: World, stream: random.Random) -> None:
    """The database closes the connections of a living process, and may do so several times."""
    if process := _choose(stream, [*world.servers, *world.workers]):
        for n in range(stream.choice((1, 1, 5))):
            world.clock.call(None, n * stream.uniform(0, 2.0), _close_connections, world, process)


def _close_connections(world: World, process: Process) -> None:
    if not process.dead:
        world.note("world", "closes the connections of", process.name)
        process.disconnect()


def lock_tasks(world: World, stream: random.Random) -> None:
    """Somebody locks the table of the tasks for some seconds."""
    seconds = stream.choice((1.0, 5.0, world.plan.lease + 5.0))
    world.note("world", "locks", f"the tasks for {seconds:g} s")
    world.database.locked_until = max(world.database.locked_until, world.clock.seconds() + seconds)


def stop_broker(world: World, stream: random.Random) -> None:
    """The broker is down for some seconds."""
    if world.broker.up:
        world.note("world", "stops", "the broker")
        world.broker.stop()
        world.clock.call(None, stream.choice((0.2, 2.0, 6.0, 12.0)), world.broker.start)


def cut_from_broker(world: World, stream: random.Random) -> None:
    """A process cannot reach the broker for some seconds."""
    if process := _choose(stream, [*world.servers, *world.workers]):
        world.note("world", "cuts off from the broker", process.name)
        process.broker.cut(True)
        world.clock.call(None, stream.choice((0.0, 2.0, 6.0)), process.broker.cut, False)


def lose_queues(world: World, stream: random.Random) -> None:
    """Somebody deletes the queue of a worker."""
    if process := _choose(stream, [*world.workers]):
        for receiver in process.broker.receivers:
            world.note("world", "deletes the queue of", receiver.worker)
            receiver.lose()


def eat_messages(world: World, stream: random.Random) -> None:
    """A policy of the operator removes all messages for some seconds."""
    seconds = stream.choice((2.0, 10.0))
    world.note("world", "eats", f"all messages for {seconds:g} s")
    world.broker.eats_until = max(world.broker.eats_until, world.clock.seconds() + seconds)


def cut_connection(world: World, stream: random.Random) -> None:
    """A client's connection breaks."""
    if connections := [c.connection for c in world.clients if c.connection is not None and not c.connection.over]:
        stream.choice(connections).transport.cut()


def refuse_changes(world: World, stream: random.Random) -> None:
    """The database takes no changes for some seconds, and answers what only reads."""
    seconds = stream.choice((1.0, world.plan.lease + 5.0))
    world.note("world", "refuses", f"changes for {seconds:g} s")
    world.database.refuse_changes(seconds)
    world.clock.call(None, seconds, world.database.take_changes, False)

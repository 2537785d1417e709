"""The injected faults. Each public function but begin() is a kind of fault, and ends by itself after some seconds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World


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


def kill_server(world: World, stream: random.Random) -> None:
    """kill -9 of a server."""
    if process := _choose(stream, [*world.servers]):
        process.kill()


def kill_worker(world: World, stream: random.Random) -> None:
    """kill -9 of a worker."""
    if process := _choose(stream, [*world.workers]):
        process.kill()


def drain_server(world: World, stream: random.Random) -> None:
    """SIGTERM to a server."""
    if process := _choose(stream, [*world.servers]):
        process.terminate()


def drain_worker(world: World, stream: random.Random) -> None:
    """SIGTERM to a worker."""
    if process := _choose(stream, [*world.workers]):
        process.terminate()


def freeze_server(world: World, stream: random.Random) -> None:
    """SIGSTOP to a server, and SIGCONT some time later."""
    _freeze(world, stream, _choose(stream, [*world.servers]))


def freeze_worker(world: World, stream: random.Random) -> None:
    """SIGSTOP to a worker, often for longer than its leases."""
    _freeze(world, stream, _choose(stream, [*world.workers]))


def _freeze(world: World, stream: random.Random, process: Process | None) -> None:
    if process is None or process.paused:
        return
    process.freeze()
    seconds = stream.choice((0.5, world.plan.lease / 2, world.plan.lease * 2, world.plan.lease * 3))
    world.clock.call(None, seconds, process.thaw)
    heartbeat = stream.uniform(1.0, 10.0)
    if heartbeat < seconds:
        # the broker gets no heartbeats, closes the connection and gives the messages to others
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
        process.store.cut(True)
        world.clock.call(None, stream.choice((0.2, 2.0, 6.0, 12.0)), process.store.cut, False)


def stop_broker(world: World, stream: random.Random) -> None:
    """The broker is down for some seconds, and may lose its messages."""
    if world.broker.up:
        world.note("world", "stops", "the broker")
        world.broker.stop()
        world.clock.call(None, stream.choice((0.2, 2.0, 6.0, 12.0)), world.broker.start, stream.random() < 0.3)


def cut_from_broker(world: World, stream: random.Random) -> None:
    """A process cannot reach the broker for some seconds."""
    if process := _choose(stream, [*world.servers, *world.workers]):
        world.note("world", "cuts off from the broker", process.name)
        process.broker.cut(True)
        world.clock.call(None, stream.choice((0.0, 2.0, 6.0)), process.broker.cut, False)


def lose_channel(world: World, stream: random.Random) -> None:
    """The channels of a worker's consumers are closed."""
    if process := _choose(stream, [*world.workers]):
        for consumer in process.broker.consumers:
            world.note("world", "closes the channel of", consumer.name)
            consumer.lose()


def purge_queue(world: World, stream: random.Random) -> None:
    """All queues are emptied."""
    world.note("world", "purges", "the queues")
    world.broker.purge()


def cut_connection(world: World, stream: random.Random) -> None:
    """A client's connection breaks."""
    if connections := [c.connection for c in world.clients if c.connection is not None and not c.connection.over]:
        stream.choice(connections).transport.cut()

"""The messages and frames that taskd reads and writes without pika."""

from __future__ import annotations

import struct
from typing import Any

from pika import frame, spec
from twisted.trial.unittest import SynchronousTestCase

from taskd.broker.rabbitmq.consumer import parse_body
from taskd.broker.rabbitmq.frames import BadFrame, FrameReader, PublishFrames
from taskd.ports.scheduling import Dispatch


class ParseBodyTests(SynchronousTestCase):
    """Which bodies are messages of taskd."""

    def test_messages_of_taskd(self) -> None:
        for body in (b"1 1", b"0 0", b"9223372036854775807 2147483647", b"007 1"):
            self.assertEqual(parse_body(body), Dispatch(*map(int, body.split())))

    def test_foreign_messages(self) -> None:
        incomplete = [b"", b" ", b"1", b"1 ", b" 1"]
        wrong_separators = [b"1  1", b"1 1 ", b" 1 1", b"1 2 3", b"1\n1", b"1 1\n"]
        no_digits = [b"-1 1", b"1 -1", b"+1 1", b"1_0 1", b"1.0 1", b"a b", "\u0661 1".encode()]
        too_large = [b"9223372036854775808 1", b"1 2147483648", b"9" * 5000 + b" 1", b"1 " + b"0" * 100]
        for body in incomplete + wrong_separators + no_digits + too_large:
            self.assertIsNone(parse_body(body), body)


class FrameTests(SynchronousTestCase):
    """Frames are read and written exactly as pika does it."""

    def content(self, channel: int, method: Any, body: bytes, properties: Any = None, split: int = 0) -> bytes:
        header = frame.Header(channel, len(body), properties or spec.BasicProperties())
        pieces = [body[:split], body[split:]] if split else [body] if body else []
        frames = [frame.Method(channel, method), header, *(frame.Body(channel, piece) for piece in pieces)]
        return b"".join(f.marshal() for f in frames)

    def deliver(self, channel: int, tag: int, body: bytes, **options: Any) -> bytes:
        redelivered = options.pop("redelivered", False)
        method = spec.Basic.Deliver("ctag-ñ", tag, redelivered, "exchange", "k" * 255)
        return self.content(channel, method, body, **options)

    def test_publish(self) -> None:
        frames = PublishFrames(7, "queue ñ")
        bodies = [b"1 1", b"12345 1", b"1 1", b"x" * 1000]
        method = spec.Basic.Publish(exchange="", routing_key="queue ñ", mandatory=True)
        expected = [self.content(7, method, body, spec.BasicProperties(delivery_mode=2)) for body in bodies]
        self.assertEqual(frames.encode(bodies), b"".join(expected))
        self.assertEqual(frames.encode([]), b"")

    def test_read_in_any_pieces(self) -> None:
        heartbeat = frame.Heartbeat().marshal()
        ack = frame.Method(1, spec.Basic.Ack(3, True)).marshal()
        large = spec.BasicProperties(headers={"x": "y" * 300}, delivery_mode=2)
        # for pika: no handler, no body, a body in two frames, a frame of another channel in between
        for_pika = [
            heartbeat,
            self.deliver(2, 1, b"not ours"),
            self.deliver(1, 12, b""),
            ack,
            self.deliver(1, 13, b"two frames", split=3),
            frame.Method(1, spec.Basic.Deliver("c", 14, False, "", "")).marshal() + heartbeat,
            frame.Header(1, 1, spec.BasicProperties()).marshal(),
            frame.Body(1, b"x").marshal(),
        ]
        stream = b"".join(
            [
                self.deliver(1, 1, b"1 1"),
                for_pika[0],
                self.deliver(1, 2**64 - 1, b"2 1", redelivered=True),
                self.deliver(1, 3, b"\xce" * 1000, properties=large),
                b"".join(for_pika[1:4]),
                self.deliver(1, 4, b"4"),
                b"".join(for_pika[4:]),
                self.deliver(1, 5, b"5"),
            ]
        )
        expected = [(1, False, b"1 1"), (2**64 - 1, True, b"2 1"), (3, False, b"\xce" * 1000), (4, False, b"4")]
        for size in (1, 2, 3, 7, 8, 30, 1000, len(stream)):
            taken: list[tuple[int, bool, bytes]] = []
            other: list[bytes] = []
            reader = FrameReader(other.append)
            reader.handlers[1] = lambda *message: taken.append(message)  # noqa: B023
            for at in range(0, len(stream), size):
                reader.feed(stream[at : at + size])
            self.assertEqual(taken, [*expected, (5, False, b"5")])
            self.assertEqual(b"".join(other), b"".join(for_pika))

    def test_a_handler_may_remove_itself(self) -> None:
        taken: list[int] = []
        other: list[bytes] = []
        reader = FrameReader(other.append)

        def take(tag: int, redelivered: bool, body: bytes) -> None:
            taken.append(tag)
            del reader.handlers[1]

        reader.handlers[1] = take
        rest = self.deliver(1, 2, b"2") + self.deliver(1, 3, b"3")
        reader.feed(self.deliver(1, 1, b"1") + rest)
        self.assertEqual((taken, b"".join(other)), ([1], rest))

    def test_pika_may_remove_a_handler(self) -> None:
        other: list[bytes] = []

        def read(data: bytes) -> None:
            other.append(data)
            reader.handlers.clear()

        reader = FrameReader(read)
        reader.handlers[1] = lambda *message: self.fail("the handler was removed")
        stream = frame.Heartbeat().marshal() + self.deliver(1, 1, b"1")
        reader.feed(stream)
        self.assertEqual(b"".join(other), stream)

    def test_frame_above_the_size_limit(self) -> None:
        reader = FrameReader(lambda data: None)
        with self.assertRaises(BadFrame):
            reader.feed(struct.pack(">BHI", 1, 1, 2**30) + b"x")

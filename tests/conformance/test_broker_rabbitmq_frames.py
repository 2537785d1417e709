"""The frames that taskd reads and writes without pika."""

from __future__ import annotations

import struct
from typing import Any

from pika import frame, spec
from twisted.trial.unittest import SynchronousTestCase

from taskd.broker.rabbitmq.frames import BadFrame, FrameReader, PublishFrames


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
        for key, body in (("worker ñ", b"look"), ("", b"x" * 1000)):
            method = spec.Basic.Publish(exchange="hints ñ", routing_key=key)
            expected = self.content(7, method, body, spec.BasicProperties(delivery_mode=1))
            self.assertEqual(PublishFrames(7, "hints ñ", key).of(body), expected)

    def test_publish_in_several_frames(self) -> None:
        publish = PublishFrames(7, "e", "k", max_frame=108)
        for size, pieces in ((0, []), (1, [1]), (100, [100]), (101, [100, 1]), (250, [100, 100, 50])):
            body = bytes(range(size))
            method = frame.Method(7, spec.Basic.Publish(exchange="e", routing_key="k")).marshal()
            header = frame.Header(7, size, spec.BasicProperties(delivery_mode=1)).marshal()
            starts = [sum(pieces[:n]) for n in range(len(pieces))]
            expected = [frame.Body(7, body[s : s + n]).marshal() for s, n in zip(starts, pieces, strict=True)]
            self.assertEqual(publish.of(body), method + header + b"".join(expected))

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

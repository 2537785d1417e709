"""Accounts in PostgreSQL: several servers at the same moment, and connections that are lost after a commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from taskd.model.errors import AuthRequired, Forbidden, LastAdmin
from taskd.model.users import Role
from taskd.ports.accounts import MAX_SESSIONS, Entry, NewSession
from taskd.store.postgres.accounts import ADMINS_LOCK
from tests.conformance.postgres import Hooks, together, until
from tests.conformance.store.accounts import HASHES, IDLE, AccountCase


class Concurrent(Hooks, AccountCase):
    """Changes that meet."""

    async def results(self, *calls: Awaitable[Any]) -> list[Any]:
        """What the calls return or raise, when they run at the same time."""
        deferreds: list[Deferred[Any]] = [Deferred.fromCoroutine(call) for call in calls]  # type: ignore[arg-type]
        outcomes = await DeferredList(deferreds, consumeErrors=True)
        return [result if good else result.value for good, result in outcomes]

    async def test_two_admins_who_demote_each_other_leave_one(self) -> None:
        other = await self.make()
        for n in range(10):
            a, b = await self.admin(f"a{n}"), await self.admin(f"b{n}")
            calls: list[Callable[[Any, Any], Awaitable[Any]]] = [
                lambda store, user: store.set_role(user.username, Role.USER),
                lambda store, user: store.set_disabled(user.username, True),
                lambda store, user: store.delete_user(user.id),
            ]
            results = await self.results(calls[n % 3](self.store, a), calls[(n + n // 3) % 3](other, b))
            self.assertEqual([type(r) for r in results].count(LastAdmin), 1, results)
            self.sql("UPDATE users SET role = 'user'")

    async def test_the_second_change_sees_what_the_first_one_did(self) -> None:
        await self.admin("a")
        await self.admin("b")
        holder = self.transaction("SELECT pg_advisory_xact_lock(%s)", ADMINS_LOCK)
        demoted = Deferred.fromCoroutine(self.store.set_role("b", Role.USER))
        await until(lambda: self.blocked() == 1)
        holder.cursor().execute("UPDATE users SET role = 'user' WHERE username = 'a'")
        holder.commit()
        [result] = (await DeferredList([demoted], consumeErrors=True))[0][1:]
        self.assertIsInstance(result.value, LastAdmin)

    async def test_the_last_use_of_an_invitation_is_spent_once(self) -> None:
        other = await self.make()
        for n in range(10):
            await self.store.create_invitation(HASHES[1] + bytes([n]), 1, 60, Entry("create_invitation"))
            results = await self.results(
                *(
                    store.create_user(f"u{n}-{i}", f"u{n}-{i}", "x", invitation=HASHES[1] + bytes([n]))
                    for i, store in enumerate((self.store, other, self.store))
                )
            )
            self.assertEqual([type(r) for r in results].count(Forbidden), 2, results)
        self.assertEqual(self.sql("SELECT count(*) FROM users WHERE username LIKE 'u%%'"), [(10,)])

    async def test_logins_at_the_same_moment_keep_to_the_limit(self) -> None:
        other = await self.make()
        hashes = [n.to_bytes(32, "big") for n in range(1000, 1000 + MAX_SESSIONS + 20)]
        for token_hash in hashes[:MAX_SESSIONS]:
            await self.opened(token_hash)
        await together(
            store.open_session(self.ana.id, NewSession(token_hash, 60))
            for token_hash, store in zip(hashes[MAX_SESSIONS:], [self.store, other] * 10, strict=True)
        )
        self.assertEqual(len(await self.valid(*hashes)), MAX_SESSIONS)

    async def test_no_session_survives_what_ends_them(self) -> None:
        """A login that began before a change and is committed after it."""
        for change in (
            lambda: self.store.set_password(self.ana.id, "$2b$hash", "$2b$new", None),
            lambda: self.store.set_code("ana", b"code", 60),
            lambda: self.store.end_sessions(self.ana.id, None),
            lambda: self.store.set_disabled("ana", True),
        ):
            login = self.transaction("SELECT FROM users WHERE id = %s FOR NO KEY UPDATE", self.ana.id)
            login.cursor().execute(
                "INSERT INTO sessions (token_hash, user_id, expires_at) VALUES ('x', %s, now() + interval '1 day')",
                (self.ana.id,),
            )
            ended = Deferred.fromCoroutine(change())
            await until(lambda: self.blocked() == 1)
            login.commit()
            await ended
            self.assertEqual(self.sql("SELECT count(*) FROM sessions"), [(0,)])
        with self.assertRaises(AuthRequired):
            await self.opened(HASHES[0])

    async def test_a_login_waits_for_no_other_user(self) -> None:
        holder = self.transaction("SELECT FROM users WHERE id = %s FOR NO KEY UPDATE", self.ben.id)
        await self.opened(HASHES[0])
        self.assertEqual(await self.valid(HASHES[0]), HASHES[:1])
        holder.rollback()

    async def test_a_session_that_is_in_use_is_found_without_a_change(self) -> None:
        await self.opened(HASHES[0])
        holder = self.transaction("SELECT FROM sessions FOR UPDATE")
        before = self.sql("SELECT xmin::text, ctid::text FROM sessions")
        self.assertEqual(await self.valid(HASHES[0]), HASHES[:1])
        self.assertEqual(self.sql("SELECT xmin::text, ctid::text FROM sessions"), before)
        holder.rollback()
        # and nobody waits when the use must be noted
        await self.age_accounts(7200)
        holder = self.transaction("SELECT FROM sessions FOR UPDATE")
        self.assertEqual(await self.valid(HASHES[0]), HASHES[:1])
        holder.rollback()
        self.assertEqual(len(await self.store.find_sessions(HASHES, IDLE)), 1)
        self.assertEqual(self.sql("SELECT count(*) FROM sessions WHERE used_at > now() - interval '1 minute'"), [(1,)])


class Repeated(Hooks, AccountCase):
    """A connection is cut after the commit: the call runs again, and neither changes nor notes anything twice."""

    async def ambiguous(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """The answer of ``call`` when the connection is cut after its commit."""
        if not hasattr(self, "cut"):
            self.cut, self.proxy = await self.through_proxy()
        await self.cut.find_user("ana")
        self.proxy.cut_after_commit()
        answer = await call(self.cut)
        self.assertIsNone(self.proxy.fate, "nothing was cut")
        return answer

    async def test_every_change_is_made_and_noted_once(self) -> None:
        await self.admin()
        await self.opened(HASHES[2])
        [session] = await self.store.list_sessions(self.ana.id, IDLE)
        entry = Entry("changed", 7, "root")
        ana, zoe = self.ana.id, self.ben.id + 2
        calls: list[tuple[Callable[[Any], Awaitable[Any]], Callable[[Any], bool]]] = [
            (lambda s: s.create_user("Zoe", "zoe", "x", entry), lambda user: user.id == zoe),
            (lambda s: s.set_role("ana", Role.OPERATOR, entry), lambda user: user.role is Role.OPERATOR),
            (lambda s: s.set_weight("ana", 3, entry), lambda found: found is True),
            (lambda s: s.end_session(ana, session.id, entry), lambda found: found is True),
            (lambda s: s.set_password(ana, "$2b$hash", "$2b$new", None, entry), lambda good: good is True),
            (lambda s: s.set_code("ana", b"code", 60, entry), lambda user: user.id == ana),
            (lambda s: s.use_code(ana, b"code", "$2b$newer", entry), lambda good: good is True),
            (lambda s: s.open_session(ana, NewSession(HASHES[0], 60), entry), lambda none: none is None),
            (lambda s: s.close_session(HASHES[0], entry), lambda none: none is None),
            (lambda s: s.create_invitation(HASHES[1], 1, 60, entry), lambda number: number == 1),
            (lambda s: s.end_invitation(1, entry), lambda found: found is True),
            (lambda s: s.set_disabled("ana", True, entry), lambda user: user.disabled),
            (lambda s: s.delete_user(ana, entry), lambda found: found is True),
            (lambda s: s.audit([entry]), lambda none: none is None),
        ]
        for n, (call, is_right) in enumerate(calls, 1):
            self.assertTrue(is_right(await self.ambiguous(call)), n)
            self.assertEqual(len(await self.audited(action="changed")), n)
        self.assertIsNone(await self.store.find_user("ana"))

    async def test_an_entry_is_added_once_when_its_own_answer_is_lost(self) -> None:
        await self.ambiguous(lambda store: store.find_user("ana"))
        sent = []
        self.proxy.before = lambda: sent.append(1) or (len(sent) == 2 and self.proxy.cut_after_commit())  # type: ignore
        await self.cut.audit([Entry("once")])
        self.assertGreater(len(sent), 2, "nothing was cut")
        self.assertEqual(await self.audited(), [Entry("once")])


del Hooks, AccountCase

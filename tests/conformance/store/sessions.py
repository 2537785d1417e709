"""The suite of IAccountStore: sessions and API tokens."""

from __future__ import annotations

from taskd.model.errors import AuthRequired
from taskd.ports.accounts import MAX_SESSIONS, Entry, NewSession, Session
from tests.conformance.store.accounts import HASHES, IDLE, AccountCase

HOUR = 3600.0


class SessionTests(AccountCase):
    """Sessions and API tokens."""

    async def find(self, token_hash: bytes, idle: float = IDLE) -> Session:
        found = await self.store.find_sessions([token_hash], idle)
        session: Session = found[token_hash]
        return session

    async def test_a_session_is_found_until_it_is_closed(self) -> None:
        self.assertEqual(await self.valid(), [])
        self.assertEqual(await self.valid(*HASHES), [])
        session = NewSession(HASHES[0], 100, "192.0.2.1")
        for _ in range(2):
            await self.store.open_session(self.ana.id, session, Entry("login", address="192.0.2.1"))
        found = await self.find(HASHES[0])
        self.assertEqual((found.user, found.token_hash, found.address), (self.ana, HASHES[0], "192.0.2.1"))
        self.assertEqual((found.name, found.ending, found.scopes), (None, None, None))
        self.assertEqual((found.expires_at - found.created_at).total_seconds(), 100)
        self.assertEqual(found.used_at, found.created_at)
        for _ in range(2):
            await self.store.close_session(HASHES[0], Entry("logout"))
        self.assertEqual(await self.valid(HASHES[0]), [])
        entries = await self.audited()
        self.assertEqual([(e.action, e.subject_id, e.subject) for e in entries], [
            ("login", self.ana.id, "ana"),
            ("logout", self.ana.id, "ana"),
        ])  # fmt: skip
        self.assertEqual(entries[0].address, "192.0.2.1")

    async def test_a_session_needs_what_was_checked_for_it(self) -> None:
        """The password may have changed since, and the session that asks may have ended."""
        account = await self.store.find_user("ana")
        checked = NewSession(HASHES[0], 100, password=account.password)
        await self.store.open_session(self.ana.id, checked)
        asked = NewSession(HASHES[1], 100, name="ci", asked_by=HASHES[0])
        await self.store.open_session(self.ana.id, asked)
        self.assertEqual(sorted(await self.valid(*HASHES)), sorted(HASHES[:2]))
        self.assertTrue(await self.store.set_password(self.ana.id, account.password, "$2b$new", None))
        self.assertEqual(await self.valid(*HASHES), [])
        for late in (checked, asked):
            with self.assertRaises(AuthRequired):
                await self.store.open_session(self.ana.id, late, Entry("login"))
        await self.opened(HASHES[2], self.ben)
        with self.assertRaises(AuthRequired):
            await self.store.open_session(self.ana.id, NewSession(HASHES[1], 100, asked_by=HASHES[2]))
        self.assertEqual(await self.valid(*HASHES), [HASHES[2]])
        self.assertEqual(await self.audited(), [])

    async def test_an_api_token_has_a_name_and_scopes(self) -> None:
        for n, scopes in enumerate((None, (), ("read", 'it\'s "x"'))):
            await self.opened(HASHES[n], name=f"ci {n} ñ", ending="wxyz", scopes=scopes)
            found = await self.find(HASHES[n])
            self.assertEqual((found.name, found.ending, found.scopes), (f"ci {n} ñ", "wxyz", scopes))

    async def test_many_sessions_are_found_in_one_call(self) -> None:
        hashes = [n.to_bytes(32, "big") for n in range(90)]
        for n, token_hash in enumerate(hashes):
            await self.opened(token_hash, self.ben if n % 2 else self.ana)
        found = await self.store.find_sessions([*hashes, *HASHES, hashes[0]], IDLE)
        self.assertEqual(set(found), set(hashes))
        for token_hash, session in found.items():
            self.assertEqual((session.token_hash, session.user), (token_hash, (self.ana, self.ben)[token_hash[-1] % 2]))

    async def test_a_session_expires(self) -> None:
        await self.opened(HASHES[0], seconds=100)
        await self.opened(HASHES[1], seconds=100, name="ci")
        await self.opened(HASHES[2], seconds=200)
        await self.age_accounts(101)
        self.assertEqual(await self.valid(*HASHES), [HASHES[2]])
        self.assertEqual([s.token_hash for s in await self.store.list_sessions(self.ana.id, IDLE)], [HASHES[2]])

    async def test_a_login_ends_when_it_is_not_used(self) -> None:
        await self.opened(HASHES[0], seconds=1e6)
        await self.opened(HASHES[1], seconds=1e6, name="ci")
        await self.age_accounts(90)
        self.assertEqual(await self.valid(*HASHES, idle=100), [HASHES[0], HASHES[1]])
        await self.age_accounts(90)
        self.assertEqual(await self.valid(*HASHES, idle=100), [HASHES[0], HASHES[1]])
        await self.age_accounts(101)
        self.assertEqual(await self.valid(*HASHES, idle=100), [HASHES[1]])
        self.assertEqual([s.name for s in await self.store.list_sessions(self.ana.id, 100)], ["ci"])

    async def test_the_last_use_is_noted_once_an_hour(self) -> None:
        await self.opened(HASHES[0], seconds=1e6)
        used = (await self.find(HASHES[0])).used_at
        await self.age_accounts(HOUR - 60)
        self.assertLess((await self.find(HASHES[0])).used_at, used)
        self.assertLess((await self.find(HASHES[0])).used_at, used)
        await self.age_accounts(120)
        await self.find(HASHES[0])
        self.assertGreaterEqual((await self.find(HASHES[0])).used_at, used)

    async def test_sessions_are_listed_for_their_owner(self) -> None:
        await self.opened(HASHES[0])
        await self.opened(HASHES[1], name="ci", ending="wxyz")
        await self.opened(HASHES[2], self.ben)
        listed = await self.store.list_sessions(self.ana.id, IDLE)
        self.assertEqual([s.token_hash for s in listed], [HASHES[1], HASHES[0]])
        self.assertEqual(listed, [await self.find(HASHES[1]), await self.find(HASHES[0])])

    async def test_one_session_is_ended_by_its_owner_only(self) -> None:
        await self.opened(HASHES[0])
        await self.opened(HASHES[1])
        session_id = (await self.find(HASHES[0])).id
        for user, number in ((self.ben, session_id), (self.ana, 2**70), (self.ana, 0), (self.ana, -1)):
            self.assertFalse(await self.store.end_session(user.id, number, Entry("end_session")))
        self.assertTrue(await self.store.end_session(self.ana.id, session_id, Entry("end_session")))
        self.assertFalse(await self.store.end_session(self.ana.id, session_id, Entry("end_session")))
        self.assertEqual(await self.valid(*HASHES), [HASHES[1]])
        self.assertEqual(await self.audited(), [Entry("end_session", subject_id=self.ana.id, subject="ana")])

    async def test_all_sessions_but_one_are_ended(self) -> None:
        for token_hash in HASHES[:3]:
            await self.opened(token_hash)
        await self.opened(HASHES[3], name="ci")
        await self.opened(HASHES[4], self.ben)
        self.assertEqual(await self.store.end_sessions(self.ana.id, HASHES[1], Entry("end_sessions")), 3)
        self.assertEqual(await self.valid(*HASHES), [HASHES[1], HASHES[4]])
        self.assertEqual(await self.store.end_sessions(self.ana.id, HASHES[1], Entry("end_sessions")), 0)
        self.assertEqual(await self.store.end_sessions(self.ana.id, None, Entry("end_sessions")), 1)
        self.assertEqual(await self.valid(*HASHES), [HASHES[4]])
        self.assertEqual([e.subject for e in await self.audited()], ["ana", "ana"])

    async def test_the_oldest_of_too_many_go(self) -> None:
        hashes = [n.to_bytes(32, "big") for n in range(1000, 1000 + MAX_SESSIONS + 2)]
        await self.opened(HASHES[0], self.ben)
        await self.opened(HASHES[1], name="ci")
        for token_hash in hashes:
            await self.opened(token_hash)
        self.assertEqual(await self.valid(*hashes, HASHES[0], HASHES[1]), sorted([*hashes[2:], HASHES[0], HASHES[1]]))
        # a second run of a login neither adds a session nor drops one
        await self.opened(hashes[-1])
        self.assertEqual(len(await self.valid(*hashes)), MAX_SESSIONS)

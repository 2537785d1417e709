"""The suite of IAccountStore: second factors and recovery codes."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from taskd.model.errors import AuthRequired, TotpRequired, WrongCode
from taskd.ports.accounts import GUESSED, NO_GUESS, Entry, Factor, NewSession
from tests.conformance.store.accounts import HASHES, IDLE, AccountCase

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
CODES = [bytes([100 + n] * 32) for n in range(10)]


class TotpTests(AccountCase):
    """Second factors."""

    async def confirmed(self, step: int = 10, session: bytes = HASHES[7]) -> None:
        """Ana has a second factor, which this session has confirmed."""
        await self.opened(session)
        self.assertTrue(await self.store.begin_totp(self.ana.id, SECRET))
        self.assertTrue(await self.store.confirm_totp(self.ana.id, Factor(SECRET, step), CODES, session))

    async def login(self, token_hash: bytes, factor: Factor | None, **fields: Any) -> None:
        new = NewSession(token_hash, 100, password="$2b$hash", factor=factor, **fields)
        await self.store.open_session(self.ana.id, new, Entry("login"))

    async def shown(self, *token_hashes: bytes) -> list[bool]:
        """Which of the sessions have shown the second factor."""
        found = await self.store.find_sessions(token_hashes, IDLE)
        return [found[token_hash].totp for token_hash in token_hashes]

    async def test_it_counts_once_it_is_confirmed(self) -> None:
        await self.opened(HASHES[7])
        account = await self.store.find_user("ana")
        self.assertEqual((account.user.totp, account.totp), (False, None))
        for secret in ("OTHER", SECRET):
            self.assertTrue(await self.store.begin_totp(self.ana.id, secret))
        account = await self.store.find_user("ana")
        self.assertEqual((account.user.totp, account.totp), (False, SECRET))
        await self.login(HASHES[0], None)
        confirm, entry = self.store.confirm_totp, Entry("totp_confirm")
        self.assertFalse(await confirm(self.ana.id, Factor("OTHER", 10), CODES, HASHES[7], entry))
        self.assertFalse(await confirm(self.ana.id, Factor(SECRET, 10), CODES, HASHES[6], entry))
        self.assertFalse(await confirm(self.ben.id, Factor(SECRET, 10), CODES, HASHES[7], entry))
        for _ in range(2):
            self.assertTrue(await confirm(self.ana.id, Factor(SECRET, 10), CODES, HASHES[7], entry))
        account = await self.store.find_user("ana")
        self.assertEqual((account.user.totp, account.totp), (True, SECRET))
        self.assertIs((await self.store.list_users("", 10))[0].user.totp, True)
        self.assertIs((await self.store.set_disabled("ana", False)).totp, True)
        self.assertFalse(await self.store.begin_totp(self.ana.id, "OTHER"))
        self.assertFalse(await self.store.begin_totp(self.ben.id + 1000, "OTHER"))
        self.assertEqual([e.subject for e in await self.audited(action="totp_confirm")], ["ana"])
        self.assertEqual(await self.shown(HASHES[7], HASHES[0]), [True, False])
        found = await self.store.find_sessions([HASHES[0]], IDLE)
        self.assertIs(found[HASHES[0]].user.totp, True)

    async def test_a_login_with_the_password_needs_it(self) -> None:
        await self.login(HASHES[0], None)
        await self.confirmed()
        with self.assertRaises(TotpRequired):
            await self.login(HASHES[1], None)
        # the same call again is no other login
        await self.login(HASHES[0], None)
        await self.login(HASHES[1], Factor(SECRET, 11))
        self.assertEqual(await self.shown(HASHES[1]), [True])
        self.assertEqual(len(await self.audited(action="login")), 2)

    async def test_a_step_is_accepted_once_and_no_earlier_one_after_it(self) -> None:
        await self.confirmed(step=10)
        steps = ((9, False), (10, False), (12, True), (11, False), (12, False), (13, True))
        for token_hash, (step, good) in zip(HASHES, steps, strict=False):
            if good:
                # a repeated call is answered as the first one
                for _ in range(2):
                    await self.login(token_hash, Factor(SECRET, step))
            else:
                with self.assertRaises(WrongCode):
                    await self.login(token_hash, Factor(SECRET, step))
        self.assertEqual(len(await self.audited(action="login")), 2)

    async def test_a_recovery_code_is_accepted_once(self) -> None:
        await self.confirmed()
        for _ in range(2):
            await self.login(HASHES[0], Factor(SECRET, recovery=CODES[0]))
        for code in (CODES[0], HASHES[0]):
            with self.assertRaises(WrongCode):
                await self.login(HASHES[1], Factor(SECRET, recovery=code))
        await self.login(HASHES[1], Factor(SECRET, recovery=CODES[1]))
        self.assertEqual(await self.shown(*HASHES[:2]), [True, True])

    async def test_it_is_that_of_the_user_and_of_now(self) -> None:
        await self.confirmed()
        for factor in (Factor("OTHER", 20), Factor("OTHER", recovery=CODES[0])):
            with self.assertRaises(WrongCode):
                await self.login(HASHES[0], factor)
        with self.assertRaises(WrongCode):
            await self.store.open_session(self.ben.id, NewSession(HASHES[0], 100, factor=Factor(SECRET, 20)))
        with self.assertRaises(AuthRequired):
            new = NewSession(HASHES[0], 100, password="$2b$other", factor=Factor(SECRET, 20))
            await self.store.open_session(self.ana.id, new)
        self.assertEqual(await self.valid(HASHES[0]), [])
        # nothing of that has used up a step
        await self.login(HASHES[0], Factor(SECRET, 11))

    async def test_of_many_at_the_same_time_one_gets_in(self) -> None:
        """Each call has a connection of its own, as if it came from another server."""
        await self.confirmed()
        for factor in (Factor(SECRET, 11), Factor(SECRET, recovery=CODES[0])):
            name = b"s" if factor.recovery is None else b"r"
            logins = []
            for n in range(6):
                new = NewSession(name * 31 + bytes([n]), 100, password="$2b$hash", factor=factor)
                logins.append(Deferred.fromCoroutine(_awaited(self.store.open_session(self.ana.id, new))))
            outcomes: Any = await DeferredList(logins, consumeErrors=True)
            self.assertEqual(sum(success for success, _ in outcomes), 1)
            for success, failure in outcomes:
                if not success:
                    failure.trap(WrongCode)

    async def test_a_token_is_like_the_session_that_asks(self) -> None:
        await self.opened(HASHES[0])
        await self.confirmed(session=HASHES[1])
        for n in range(2):
            await self.opened(HASHES[2 + n], name="n", asked_by=HASHES[n])
        self.assertEqual(await self.shown(*HASHES[:4]), [False, True, False, True])

    async def test_it_ends_with_a_code(self) -> None:
        await self.confirmed()
        entry = Entry("totp_off")
        for factor in (Factor(SECRET, 10), Factor("OTHER", 11), Factor(SECRET, recovery=HASHES[0])):
            self.assertFalse(await self.store.end_totp(self.ana.id, factor, entry))
        self.assertTrue((await self.store.find_user("ana")).user.totp)
        self.assertTrue(await self.store.end_totp(self.ana.id, Factor(SECRET, 11), entry))
        account = await self.store.find_user("ana")
        self.assertEqual((account.user.totp, account.totp), (False, None))
        self.assertEqual(await self.shown(HASHES[7]), [False])
        await self.login(HASHES[0], None)
        self.assertEqual([e.subject for e in await self.audited(action="totp_off")], ["ana"])
        # what belonged to it does not come back with the next one
        self.assertTrue(await self.store.begin_totp(self.ana.id, SECRET))
        self.assertTrue(await self.store.confirm_totp(self.ana.id, Factor(SECRET, 5), CODES[5:], HASHES[0]))
        self.assertEqual(await self.shown(HASHES[7], HASHES[0]), [False, True])
        with self.assertRaises(WrongCode):
            await self.login(HASHES[1], Factor(SECRET, recovery=CODES[0]))
        self.assertTrue(await self.store.end_totp(self.ana.id, Factor(SECRET, recovery=CODES[5])))

    async def test_a_reset(self) -> None:
        await self.confirmed()
        for _ in range(2):
            self.assertEqual(await self.store.reset_totp("ana", Entry("reset_totp", actor="root")), self.ana)
        self.assertEqual(await self.shown(HASHES[7]), [False])
        await self.login(HASHES[0], None)
        self.assertTrue(await self.store.begin_totp(self.ana.id, SECRET))
        await self.store.reset_totp("ana", Entry("reset_totp", actor="root"))
        self.assertIsNone((await self.store.find_user("ana")).totp)
        self.assertIsNone(await self.store.reset_totp("nobody", Entry("reset_totp")))
        found = [(e.actor, e.subject_id, e.subject) for e in await self.audited(action="reset_totp")]
        self.assertEqual(found, [("root", self.ana.id, "ana")] * 2)

    async def test_passwords_leave_it_on(self) -> None:
        await self.confirmed()
        self.assertTrue(await self.store.set_password(self.ana.id, "$2b$hash", "$2b$new", None))
        await self.store.set_code("ana", b"code", 100)
        self.assertTrue(await self.store.use_code(self.ana.id, b"code", "$2b$hash"))
        with self.assertRaises(TotpRequired):
            await self.login(HASHES[0], None)
        await self.login(HASHES[0], Factor(SECRET, recovery=CODES[0]))

    async def test_it_goes_with_the_account(self) -> None:
        await self.confirmed()
        self.assertTrue(await self.store.delete_user(self.ana.id))
        again = await self.store.create_user("Ana", "ana", "$2b$hash")
        self.assertEqual((again.totp, (await self.store.find_user("ana")).totp), (False, None))
        self.assertFalse(await self.store.begin_totp(self.ana.id, SECRET))
        self.assertFalse(await self.store.end_totp(self.ana.id, Factor(SECRET, recovery=CODES[0])))

    async def test_which_refusals_are_guesses(self) -> None:
        outcomes = ("ok", "forbidden", "wrong_code", *NO_GUESS)
        await self.store.audit([
            Entry(action, subject="ana", outcome=outcome, number=2)
            for action in (*GUESSED, "register")
            for outcome in outcomes
        ])  # fmt: skip
        self.assertEqual(await self.store.count_refusals(["ana", "ben"], 100), [2 * 2 * len(GUESSED), 0])


async def _awaited(awaitable: Any) -> None:
    await awaitable

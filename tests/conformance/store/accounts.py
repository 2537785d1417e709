"""The suite of IAccountStore: users, their rights, passwords and codes, and their deletion."""

from __future__ import annotations

from typing import Any

from taskd.model.errors import AuthRequired, Conflict, Forbidden, LastAdmin, UsernameInUse
from taskd.model.states import State
from taskd.model.users import Role, User
from taskd.ports.accounts import DEVICE_SECONDS, SETTLE_SECONDS, Entry, NewSession
from taskd.store.audit import SWEPT
from tests.conformance.store.case import TEXTS, StoreCase

IDLE = 7 * 86_400.0
HASHES = [bytes([n] * 32) for n in range(8)]


class AccountCase(StoreCase):
    """Short methods for the tests of accounts."""

    async def opened(self, token_hash: bytes, user: User | None = None, **fields: Any) -> None:
        """A session of ana's, or of another user, for a day."""
        await self.store.open_session((user or self.ana).id, NewSession(token_hash, **{"seconds": 86_400.0, **fields}))

    async def valid(self, *token_hashes: bytes, idle: float = IDLE) -> list[bytes]:
        """Those of the sessions that are valid now."""
        return sorted(await self.store.find_sessions(token_hashes, idle))

    async def audited(self, **query: Any) -> list[Entry]:
        """The entries of the audit, the oldest first."""
        return [row.entry for row in reversed(await self.store.list_audit(None, 100, **query))]

    async def admin(self, name: str = "root") -> User:
        """A new admin."""
        user: User = await self.store.create_user(name, name, "$2b$root", role=Role.ADMIN)
        return user


class AccountTests(AccountCase):
    """Users."""

    async def test_user_is_found_by_key(self) -> None:
        account = await self.store.find_user("ana")
        self.assertEqual((account.user, account.password), (User(self.ana.id, "Ana"), "$2b$hash"))
        self.assertEqual((account.code, account.known), (None, False))
        self.assertIsNone(await self.store.find_user("nobody"))

    async def test_many_are_found_at_once_in_their_order(self) -> None:
        await self.store.open_session(self.ana.id, NewSession(b"a", 100, network="192.0.2.1"))
        asked = [("nobody", ""), ("ana", "192.0.2.1"), ("ben", "192.0.2.1"), ("ana", "192.0.2.2"), ("", "")]
        found = [account and (account.user.id, account.known) for account in await self.store.find_users(asked)]
        self.assertEqual(found, [None, (self.ana.id, True), (self.ben.id, False), (self.ana.id, False), None])

    async def test_key_is_unique(self) -> None:
        with self.assertRaises(UsernameInUse):
            await self.store.create_user("ANA", "ana", "$2b$other", Entry("register"))
        self.assertEqual((await self.store.find_user("ana")).user.username, "Ana")
        self.assertEqual(await self.audited(), [])

    async def test_registration_repeated_is_the_same_user(self) -> None:
        # an equal bcrypt hash, salt included, can only come from the same registration
        zoe = await self.store.create_user("Zoe", "zoe", "$2b$zoe", Entry("register"))
        self.assertEqual(await self.store.create_user("Zoe", "zoe", "$2b$zoe", Entry("register")), zoe)
        self.assertEqual(await self.audited(), [Entry("register", subject_id=zoe.id, subject="zoe")])

    async def test_users_without_a_password_are_not_the_same(self) -> None:
        await self.store.create_user("Zoe", "zoe", "")
        with self.assertRaises(UsernameInUse):
            await self.store.create_user("Zoe", "zoe", "")

    async def test_names_are_stored_unchanged(self) -> None:
        for i, text in enumerate(TEXTS):
            user = await self.store.create_user(text[:64], f"{i}{text}"[:64], "x")
            self.assertEqual((await self.store.find_user(f"{i}{text}"[:64])).user, user)

    async def test_users_are_listed_by_key(self) -> None:
        await self.admin("_root")
        await self.store.create_user("Ñandú", "ñandú", "x")
        await self.store.set_weight("ben", 2.5)
        await self.store.set_code("ben", b"code", 60)
        await self.opened(HASHES[0])
        rows = await self.store.list_users("", 10)
        self.assertEqual([row.user.username for row in rows], ["_root", "Ana", "Ben", "Ñandú"])
        root, ana, ben, _ = rows
        self.assertEqual((root.user.role, ana.user, ben.user), (Role.ADMIN, self.ana, self.ben))
        self.assertEqual((ana.weight, ben.weight, ana.has_code, ben.has_code), (1, 2.5, False, True))
        self.assertEqual((ana.used_at, ben.used_at), (ana.used_at and rows[1].used_at, None))
        self.assertLessEqual(ana.created_at, ana.used_at)
        pages = [row.user.username for row in await self.store.list_users("ana", 1)]
        self.assertEqual(pages, ["Ben"])
        await self.age_accounts(61)
        self.assertEqual([row.has_code for row in await self.store.list_users("ana", 1)], [False])

    # -- rights

    async def test_a_role_is_set_once(self) -> None:
        for _ in range(2):
            user = await self.store.set_role("ana", Role.OPERATOR, Entry("set_role", details="operator"))
            self.assertEqual(user, User(self.ana.id, "Ana", Role.OPERATOR))
        self.assertEqual((await self.store.find_user("ana")).user, user)
        expected = Entry("set_role", subject_id=self.ana.id, subject="ana", details="operator")
        self.assertEqual(await self.audited(), [expected])
        self.assertIsNone(await self.store.set_role("nobody", Role.ADMIN, Entry("set_role")))
        self.assertEqual(len(await self.audited()), 1)

    async def test_one_admin_who_can_act_is_left(self) -> None:
        root, entry = await self.admin(), Entry("changed")
        other = await self.admin("other")
        await self.store.set_disabled("other", True)
        for change in (
            lambda: self.store.set_role("root", Role.OPERATOR, entry),
            lambda: self.store.set_disabled("root", True, entry),
            lambda: self.store.delete_user(root.id, entry),
        ):
            with self.assertRaisesRegex(LastAdmin, "root is the last admin"):
                await change()
        self.assertEqual(await self.audited(), [])
        self.assertEqual((await self.store.find_user("root")).user, root)
        # the other one cannot act, so nobody misses them
        self.assertEqual((await self.store.set_role("other", Role.USER)).role, Role.USER)
        await self.store.set_role("other", Role.ADMIN)
        await self.store.set_disabled("other", False)
        self.assertTrue(await self.store.delete_user(root.id))
        with self.assertRaises(LastAdmin):
            await self.store.delete_user(other.id)

    async def test_a_disabled_user_has_no_sessions(self) -> None:
        await self.opened(HASHES[0])
        await self.opened(HASHES[1], name="ci")
        await self.opened(HASHES[2], self.ben)
        for _ in range(2):
            user = await self.store.set_disabled("ana", True, Entry("disable"))
            self.assertEqual(user, User(self.ana.id, "Ana", disabled=True))
        self.assertEqual(await self.valid(*HASHES), [HASHES[2]])
        with self.assertRaisesRegex(AuthRequired, "not valid any more"):
            await self.opened(HASHES[0])
        for _ in range(2):
            self.assertEqual(await self.store.set_disabled("ana", False, Entry("enable")), self.ana)
        self.assertEqual(await self.valid(*HASHES), [HASHES[2]])
        self.assertEqual([entry.action for entry in await self.audited()], ["disable", "enable"])
        self.assertIsNone(await self.store.set_disabled("nobody", True))

    async def test_a_weight_is_set_for_a_user_that_exists(self) -> None:
        for _ in range(2):
            self.assertTrue(await self.store.set_weight("ana", 2.5, Entry("set_weight")))
        self.assertFalse(await self.store.set_weight("nobody", 1, Entry("set_weight")))
        self.assertEqual(await self.audited(), [Entry("set_weight", subject_id=self.ana.id, subject="ana")])
        # what it does is checked with the turns of a pool

    # -- passwords and codes

    async def test_a_password_is_replaced_once(self) -> None:
        await self.opened(HASHES[0])
        await self.opened(HASHES[1])
        await self.opened(HASHES[2], name="ci")
        entry = Entry("set_password", self.ana.id, "Ana")
        args = self.ana.id, "$2b$hash", "$2b$new", HASHES[1], entry
        self.assertTrue(await self.store.set_password(*args))
        self.assertEqual(await self.valid(*HASHES), [HASHES[1]])
        await self.opened(HASHES[3])
        self.assertTrue(await self.store.set_password(*args))
        self.assertEqual(await self.valid(*HASHES), [HASHES[1], HASHES[3]])
        self.assertEqual((await self.store.find_user("ana")).password, "$2b$new")
        self.assertEqual(await self.audited(), [Entry("set_password", self.ana.id, "Ana", self.ana.id, "ana")])
        self.assertFalse(await self.store.set_password(self.ana.id, "$2b$hash", "$2b$late", None, entry))
        self.assertFalse(await self.store.set_password(99, "", "$2b$late", None, entry))
        self.assertEqual((await self.store.find_user("ana")).password, "$2b$new")
        self.assertEqual(len(await self.audited()), 1)

    async def test_a_password_ends_a_code(self) -> None:
        await self.store.set_code("ana", b"code", 60)
        self.assertTrue(await self.store.set_password(self.ana.id, "", "$2b$new", None))
        self.assertFalse(await self.store.use_code(self.ana.id, b"code", "$2b$other"))
        self.assertIsNone((await self.store.find_user("ana")).code)

    async def test_a_code_is_used_once(self) -> None:
        await self.opened(HASHES[0])
        await self.opened(HASHES[1], name="ci")
        for _ in range(2):
            self.assertEqual(await self.store.set_code("ana", b"code", 60, Entry("reset")), self.ana)
        self.assertEqual(await self.valid(*HASHES), [])
        account = await self.store.find_user("ana")
        self.assertEqual((account.password, account.code), ("", b"code"))
        self.assertFalse(await self.store.use_code(self.ana.id, b"guess", "$2b$new", Entry("use")))
        for _ in range(2):
            self.assertTrue(await self.store.use_code(self.ana.id, b"code", "$2b$new", Entry("use")))
        account = await self.store.find_user("ana")
        self.assertEqual((account.password, account.code), ("$2b$new", None))
        self.assertFalse(await self.store.use_code(self.ana.id, b"code", "$2b$other", Entry("use")))
        self.assertEqual([entry.action for entry in await self.audited()], ["reset", "use"])
        self.assertIsNone(await self.store.set_code("nobody", b"code", 60, Entry("reset")))
        self.assertFalse(await self.store.use_code(99, b"code", "$2b$new", Entry("use")))

    async def test_a_code_expires(self) -> None:
        await self.store.set_code("ana", b"code", 60)
        await self.age_accounts(59)
        self.assertEqual((await self.store.find_user("ana")).code, b"code")
        await self.age_accounts(2)
        self.assertIsNone((await self.store.find_user("ana")).code)
        self.assertFalse(await self.store.use_code(self.ana.id, b"code", "$2b$new", Entry("use")))
        self.assertEqual(await self.audited(), [])

    async def test_a_hash_of_the_same_password_ends_nothing(self) -> None:
        await self.opened(HASHES[0])
        await self.opened(HASHES[1], name="ci")
        for _ in range(2):
            self.assertTrue(await self.store.replace_hash(self.ana.id, "$2b$hash", "$2b$new"))
        self.assertEqual((await self.store.find_user("ana")).password, "$2b$new")
        self.assertEqual(await self.valid(*HASHES), HASHES[:2])
        self.assertFalse(await self.store.replace_hash(self.ana.id, "$2b$hash", "$2b$late"))
        self.assertFalse(await self.store.replace_hash(99, "", "$2b$late"))
        self.assertEqual((await self.store.find_user("ana")).password, "$2b$new")
        self.assertEqual(await self.audited(), [])

    async def test_a_hash_does_not_come_back_after_a_reset(self) -> None:
        await self.store.set_code("ana", b"code", 60)
        self.assertFalse(await self.store.replace_hash(self.ana.id, "$2b$hash", "$2b$new"))
        account = await self.store.find_user("ana")
        self.assertEqual((account.password, account.code), ("", b"code"))

    async def test_the_highest_cost_of_a_hash(self) -> None:
        self.assertEqual(await self.store.highest_rounds(), 0)
        for name, rounds in (("u1", "05"), ("u2", "13"), ("u3", "04")):
            await self.store.create_user(name, name, f"$2b${rounds}${'x' * 53}")
        await self.store.create_user("u4", "u4", "!$2b$99$")
        self.assertEqual(await self.store.highest_rounds(), 13)
        await self.store.set_code("u2", b"code", 60)
        self.assertEqual(await self.store.highest_rounds(), 5)

    # -- users of the machine

    async def test_a_user_of_the_machine_is_created_once(self) -> None:
        for _ in range(2):
            zoe = await self.store.create_local("Zoe", "zoe", 1001, Entry("register", details="local uid 1001"))
        self.assertEqual(await self.store.find_local(1001), zoe)
        self.assertEqual((await self.store.find_user("zoe")).password, "")
        expected = Entry("register", subject_id=zoe.id, subject="zoe", details="local uid 1001")
        self.assertEqual(await self.audited(), [expected])
        self.assertIsNone(await self.store.find_local(1002))
        # the uid is the user, whatever its name has become
        self.assertEqual(await self.store.create_local("Eva", "eva", 1001), zoe)
        self.assertIsNone(await self.store.find_user("eva"))

    async def test_a_user_of_the_machine_does_not_take_over_a_name(self) -> None:
        with self.assertRaisesRegex(UsernameInUse, "ANA is taken"):
            await self.store.create_local("ANA", "ana", 1001, Entry("register"))
        with self.assertRaises(UsernameInUse):
            await self.store.create_user("zoe", "zoe", "$2b$x")
            await self.store.create_local("zoe", "zoe", 1001)
        self.assertIsNone(await self.store.find_local(1001))
        self.assertEqual(await self.audited(), [])

    async def test_a_name_of_the_machine_is_not_registered_again(self) -> None:
        zoe = await self.store.create_local("zoe", "zoe", 1001)
        for password in ("$2b$x", ""):
            with self.assertRaises(UsernameInUse):
                await self.store.create_user("zoe", "zoe", password)
        self.assertEqual(await self.store.find_local(1001), zoe)

    async def test_an_account_is_bound_to_a_uid(self) -> None:
        entry = Entry("bind_local", actor="taskadmin", details="local uid 1001")
        await self.opened(HASHES[0])
        for _ in range(2):
            self.assertEqual(await self.store.bind_local("ana", 1001, entry), self.ana)
        self.assertEqual(await self.store.find_local(1001), self.ana)
        self.assertEqual(await self.valid(*HASHES), [HASHES[0]], "it had no uid before")
        self.assertEqual(
            await self.audited(),
            [Entry("bind_local", 0, "taskadmin", self.ana.id, "ana", details="local uid 1001")],
        )
        with self.assertRaisesRegex(Conflict, "1001 is bound to Ana"):
            await self.store.bind_local("ben", 1001, entry)
        self.assertIsNone(await self.store.bind_local("nobody", 1002, entry))
        self.assertEqual(len(await self.audited()), 1)

    async def test_another_uid_ends_what_the_old_one_had(self) -> None:
        await self.store.bind_local("ana", 1001)
        for uid in (1002, None):
            await self.opened(HASHES[0])
            await self.opened(HASHES[1], name="ci")
            await self.opened(HASHES[2], self.ben)
            self.assertEqual(await self.store.bind_local("ana", uid), self.ana)
            self.assertEqual(await self.valid(*HASHES), [HASHES[2]])
        self.assertIsNone(await self.store.find_local(1002))
        self.assertEqual(await self.store.bind_local("ben", 1001), self.ben)

    async def test_a_local_session_needs_the_uid_still(self) -> None:
        await self.store.bind_local("ana", 1001)
        await self.opened(HASHES[0], local_uid=1001)
        self.assertEqual(await self.valid(*HASHES), [HASHES[0]])
        for uid in (1002, None):
            await self.store.bind_local("ana", uid)
            with self.assertRaises(AuthRequired):
                await self.opened(HASHES[1], local_uid=1001)
        self.assertEqual(await self.valid(*HASHES), [])

    async def test_a_deleted_account_frees_its_uid(self) -> None:
        zoe = await self.store.create_local("zoe", "zoe", 1001)
        self.assertTrue(await self.store.delete_user(zoe.id))
        self.assertIsNone(await self.store.find_local(1001))
        again = await self.store.create_local("zoe", "zoe", 1001)
        self.assertNotEqual(again.id, zoe.id)

    # -- invitations

    async def test_an_invitation_is_spent_as_often_as_it_may(self) -> None:
        entry = Entry("create_invitation", 7, "root")
        for _ in range(2):
            self.assertEqual(await self.store.create_invitation(b"invited", 2, 60, entry), 1)
        self.assertEqual(await self.audited(), [entry])
        for n in (0, 1, 1):
            await self.store.create_user(f"u{n}", f"u{n}", "$2b$x", Entry("register"), invitation=b"invited")
        self.assertFalse(await self.store.is_invited(b"invited"))
        with self.assertRaises(Forbidden) as caught:
            await self.store.create_user("u3", "u3", "$2b$x", Entry("register"), invitation=b"invited")
        self.assertEqual(caught.exception.field, "invitation")
        self.assertIsNone(await self.store.find_user("u3"))
        self.assertEqual(len(await self.audited(action="register")), 2)
        # a repeated registration is known, although the invitation is spent
        await self.store.create_user("u1", "u1", "$2b$x", invitation=b"invited")

    async def test_a_taken_name_spends_no_invitation(self) -> None:
        await self.store.create_invitation(b"invited", 1, 60, Entry("create_invitation"))
        with self.assertRaises(UsernameInUse):
            await self.store.create_user("Ana", "ana", "$2b$other", invitation=b"invited")
        self.assertTrue(await self.store.is_invited(b"invited"))

    async def test_invitations_expire_and_can_be_ended(self) -> None:
        entry = Entry("create_invitation", 7, "root")
        first = await self.store.create_invitation(b"first", 1, 60, entry)
        second = await self.store.create_invitation(b"second", 5, 600, entry)
        listed = await self.store.list_invitations()
        self.assertEqual([(i.id, i.uses_left, i.created_by) for i in listed], [(second, 5, "root"), (first, 1, "root")])
        self.assertEqual((listed[0].expires_at - listed[0].created_at).total_seconds(), 600)
        await self.age_accounts(61)
        self.assertEqual([i.id for i in await self.store.list_invitations()], [second])
        self.assertFalse(await self.store.is_invited(b"first"))
        with self.assertRaises(Forbidden):
            await self.store.create_user("Zoe", "zoe", "x", invitation=b"first")
        self.assertTrue(await self.store.end_invitation(second, Entry("end_invitation")))
        for unknown in (second, 2**70, -1):
            self.assertFalse(await self.store.end_invitation(unknown, Entry("end_invitation")))
        self.assertEqual(await self.store.list_invitations(), [])
        self.assertEqual(len(await self.audited(action="end_invitation")), 1)

    # -- deletion

    async def test_a_deleted_user_is_gone_and_the_name_is_free(self) -> None:
        await self.opened(HASHES[0], network="192.0.2.1")
        await self.store.set_code("ben", b"code", 60)
        for user in (self.ana, self.ben):
            self.assertTrue(await self.store.delete_user(user.id, Entry("delete_user", 7, "root")))
            self.assertFalse(await self.store.delete_user(user.id, Entry("delete_user", 7, "root")))
            with self.assertRaises(AuthRequired):
                await self.opened(HASHES[1], user)
            self.assertFalse(await self.store.set_password(user.id, "", "$2b$new", None))
            self.assertFalse(await self.store.use_code(user.id, b"code", "$2b$new"))
        self.assertEqual(await self.valid(*HASHES), [])
        self.assertEqual(await self.store.list_users("", 10), [])
        for key in ("ana", f" {self.ana.id}", ""):
            self.assertIsNone(await self.store.find_user(key))
            self.assertIsNone(await self.store.set_role(key, Role.ADMIN))
            self.assertIsNone(await self.store.set_disabled(key, False))
            self.assertIsNone(await self.store.set_code(key, b"code", 60))
            self.assertFalse(await self.store.set_weight(key, 2))
        entries = await self.audited()
        self.assertEqual([(e.subject_id, e.subject) for e in entries], [(self.ana.id, "ana"), (self.ben.id, "ben")])
        again = await self.store.create_user("Ana", "ana", "$2b$again")
        self.assertGreater(again.id, self.ben.id)
        self.assertFalse((await self.store.find_user("ana", "192.0.2.1")).known)

    async def test_tasks_of_a_deleted_user_are_cancelled_and_deleted(self) -> None:
        await self.serve()
        [waiting] = await self.create()
        running = await self.in_state(State.RUNNING)
        done = await self.in_state(State.COMPLETED)
        failed = await self.in_state(State.FAILED)
        [bens] = await self.create(1, self.ben)
        self.assertEqual(list(await self.store.cancel_deleted(self.ana.id, 10)), [])
        self.assertEqual(await self.store.deleted_users(), [])
        await self.store.delete_user(self.ana.id)
        self.assertEqual(await self.store.deleted_users(), [self.ana.id])
        self.assertEqual([t.id for t in await self.store.cancel_deleted(self.ana.id, 1)], [waiting.id])
        [cancelled] = await self.store.cancel_deleted(self.ana.id, 10)
        self.assertEqual((cancelled.id, cancelled.state, cancelled.worker), (running.id, State.CANCELLED, "w"))
        self.assertEqual(cancelled.version, running.version + 1)
        self.assertEqual(list(await self.store.cancel_deleted(self.ana.id, 10)), [])
        self.assertFalse(await self.store.purge_deleted(self.ana.id, 1))
        self.assertFalse(await self.store.purge_deleted(self.ana.id, 10))
        # what a worker still holds stays until it has dropped it
        found = await self.store.find_tasks([waiting.id, running.id, done.id, failed.id, bens.id])
        self.assertEqual({task.id for task in found}, {running.id, bens.id})
        await self.release([cancelled])
        self.assertTrue(await self.store.purge_deleted(self.ana.id, 10))
        self.assertEqual(await self.count_rows(), (1, 0, 0))
        self.assertEqual(await self.store.deleted_users(), [])
        self.assertFalse(await self.store.purge_deleted(self.ben.id, 10))
        self.assertEqual((await self.count_rows())[0], 1)

    async def test_a_creation_that_was_under_way_is_found(self) -> None:
        [late] = await self.new()
        await self.store.delete_user(self.ana.id)
        self.assertTrue(await self.store.purge_deleted(self.ana.id, 10))
        self.assertEqual(await self.store.deleted_users(), [])
        await self.store.create_tasks([late])
        self.assertEqual(await self.store.deleted_users(), [self.ana.id])
        await self.store.cancel_deleted(self.ana.id, 10)
        self.assertTrue(await self.store.purge_deleted(self.ana.id, 10))
        self.assertEqual(await self.store.deleted_users(), [])
        # once nothing can be under way any more, this is noted for ever
        await self.age_accounts(SETTLE_SECONDS + 1)
        self.assertEqual(await self.store.deleted_users(), [self.ana.id])
        self.assertTrue(await self.store.purge_deleted(self.ana.id, 10))
        await self.age_accounts(SETTLE_SECONDS)
        self.assertEqual(await self.store.deleted_users(), [])

    # -- known networks

    async def test_a_network_is_known_for_some_time_after_a_login(self) -> None:
        await self.opened(HASHES[0], network="192.0.2.1")
        for network, known in (("192.0.2.1", True), ("192.0.2.2", False), ("", False)):
            self.assertEqual((await self.store.find_user("ana", network)).known, known)
        self.assertFalse((await self.store.find_user("ben", "192.0.2.1")).known)
        await self.age_accounts(DEVICE_SECONDS - 10)
        await self.opened(HASHES[1], network="192.0.2.1")
        await self.age_accounts(20)
        self.assertTrue((await self.store.find_user("ana", "192.0.2.1")).known)
        await self.age_accounts(DEVICE_SECONDS)
        self.assertFalse((await self.store.find_user("ana", "192.0.2.1")).known)

    # -- the audit

    async def test_entries_are_stored_as_they_are(self) -> None:
        entries = [
            Entry("login", 3, "Ana", 4, "ben", "192.0.2.1", "wrong_credentials", 17, "details"),
            Entry("login", subject="nobody", outcome="no_user"),
        ]
        await self.store.audit(entries)
        await self.store.audit([])
        self.assertEqual(await self.audited(), entries)
        rows = await self.store.list_audit(None, 10)
        self.assertGreater(rows[0].id, rows[1].id)
        self.assertLess(abs((self.store.now() - rows[0].at).total_seconds()), 60)

    async def test_entries_may_have_any_text(self) -> None:
        await self.store.audit([Entry("login", actor=text, subject=text, details=text) for text in TEXTS])
        self.assertEqual([entry.subject for entry in await self.audited()], TEXTS)
        await self.store.audit([Entry("login", subject="nul \0 lone \ud800", details="\0")])
        self.assertEqual((await self.audited())[-1], Entry("login", subject="nul  lone ?", details=""))

    async def test_the_audit_is_listed_in_pages_and_by_user_and_action(self) -> None:
        entries = [
            Entry("login", subject="ana"),
            Entry("set_role", self.ana.id, "Ana", self.ben.id, "ben"),
            Entry("login", subject="ben"),
            Entry("login", self.ana.id, "Ana", self.ana.id, "ana"),
        ]
        await self.store.audit(entries)
        first, *rest = await self.store.list_audit(None, 2)
        self.assertEqual((first.entry, [row.entry for row in rest]), (entries[3], [entries[2]]))
        self.assertEqual([r.entry for r in await self.store.list_audit(rest[0].id, 9)], [entries[1], entries[0]])
        self.assertEqual(len(await self.store.list_audit(2**70, 9)), 4)
        self.assertEqual(await self.audited(subject="ana"), [entries[0], entries[1], entries[3]])
        self.assertEqual(await self.audited(subject="ben"), [entries[1], entries[2]])
        self.assertEqual(await self.audited(action="set_role"), [entries[1]])
        self.assertEqual(await self.audited(subject="ana", action="login"), [entries[0], entries[3]])
        self.assertEqual(await self.audited(subject="nobody"), [])
        [newest] = await self.store.list_audit(None, 1, "ana")
        self.assertEqual(newest.entry, entries[3])

    async def test_refused_logins_are_counted(self) -> None:
        def refused(number: int, **fields: Any) -> Entry:
            return Entry("login", **{"subject": "ana", "outcome": "wrong_credentials", "number": number, **fields})

        await self.store.audit([refused(100)])
        await self.age_accounts(61)
        await self.store.audit(
            [refused(3), refused(4, outcome="rate_limited"), refused(20, subject="ben"), refused(30, outcome="ok")]
        )
        await self.store.audit([Entry("register", subject="ana", outcome="in_use", number=50)])
        self.assertEqual(await self.store.count_refusals(["ana", "nobody", "ana"], 60), [3, 0, 3])
        self.assertEqual(await self.store.count_refusals(["ana"], 120), [103])

    async def test_what_is_past_is_swept(self) -> None:
        await self.opened(HASHES[0])
        await self.opened(HASHES[1], seconds=100 * 86_400)
        await self.opened(HASHES[2], seconds=100 * 86_400, name="ci")
        await self.store.create_invitation(b"spent", 1, 9 * 86_400, Entry("create_invitation"))
        await self.store.create_user("Zoe", "zoe", "x", invitation=b"spent")
        await self.store.create_invitation(b"valid", 1, 9 * 86_400, Entry("create_invitation"))
        await self.age_accounts(2 * 86_400)
        self.assertFalse(await self.store.sweep_accounts(3, IDLE))
        self.assertEqual(len(await self.audited()), 2)
        self.assertEqual(await self.valid(*HASHES), [HASHES[1], HASHES[2]])
        # the login was used just now, and the token always lives until its end
        await self.age_accounts(8 * 86_400)
        self.assertFalse(await self.store.sweep_accounts(3, IDLE))
        self.assertEqual(await self.valid(*HASHES, idle=1e9), [HASHES[2]])
        self.assertEqual(await self.audited(), [])
        self.assertEqual(await self.store.list_invitations(), [])

    async def test_a_day_of_the_audit_stays_whatever_is_asked(self) -> None:
        await self.store.audit([Entry("old")])
        await self.age_accounts(86_500)
        await self.store.audit([Entry("new")])
        await self.store.sweep_accounts(0, IDLE)
        self.assertEqual([entry.action for entry in await self.audited()], ["new"])

    async def test_a_sweep_says_when_there_is_more(self) -> None:
        await self.store.audit([Entry("old", subject=str(n)) for n in range(SWEPT + 1)])
        await self.age_accounts(86_500)
        self.assertTrue(await self.store.sweep_accounts(1, IDLE))
        self.assertFalse(await self.store.sweep_accounts(1, IDLE))
        self.assertEqual(await self.audited(), [])

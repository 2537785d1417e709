"""The suite of IAccountStore."""

from __future__ import annotations

from taskd.model.errors import UsernameInUse
from taskd.model.users import User
from tests.conformance.store.case import TEXTS, StoreCase


class AccountTests(StoreCase):
    """The suite of IAccountStore."""

    async def test_user_is_found_by_key(self) -> None:
        account = await self.store.find_user("ana")
        self.assertEqual((account.user, account.password), (User(self.ana.id, "Ana"), "$2b$hash"))
        self.assertIsNone(await self.store.find_user("nobody"))

    async def test_key_is_unique(self) -> None:
        with self.assertRaises(UsernameInUse):
            await self.store.create_user("ANA", "ana", "$2b$other")
        self.assertEqual((await self.store.find_user("ana")).user.username, "Ana")

    async def test_registration_repeated_is_the_same_user(self) -> None:
        # an equal bcrypt hash, salt included, can only come from the same registration
        self.assertEqual(await self.store.create_user("Ana", "ana", "$2b$hash"), self.ana)

    async def test_names_are_stored_unchanged(self) -> None:
        for i, text in enumerate(TEXTS):
            user = await self.store.create_user(text[:64], f"{i}{text}"[:64], "x")
            self.assertEqual((await self.store.find_user(f"{i}{text}"[:64])).user, user)

    async def test_session_is_found_until_it_is_closed(self) -> None:
        token = bytes(range(32))
        self.assertIsNone(await self.store.find_session(token))
        await self.store.open_session(self.ana.id, token, 100)
        await self.store.open_session(self.ana.id, token, 100)
        self.assertEqual(await self.store.find_session(token), self.ana)
        await self.store.close_session(token)
        await self.store.close_session(token)
        self.assertIsNone(await self.store.find_session(token))

    async def test_session_expires(self) -> None:
        await self.store.open_session(self.ana.id, b"old", 0)
        await self.store.open_session(self.ana.id, b"new", 100)
        self.assertIsNone(await self.store.find_session(b"old"))
        self.assertEqual(await self.store.find_session(b"new"), self.ana)

    async def test_a_weight_is_set_for_a_user_that_exists(self) -> None:
        self.assertTrue(await self.store.set_weight("ana", 2.5))
        self.assertTrue(await self.store.set_weight("ana", 2.5))
        self.assertFalse(await self.store.set_weight("nobody", 1))
        # what it does is checked with the turns of a pool

"""taskd.model: user names, passwords, task texts, JSON values, and the states and views that users see."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from taskd.model import common_passwords
from taskd.model.errors import BadRequest, TooLarge
from taskd.model.json_text import encode_json
from taskd.model.limits import LISTED_RESULT_BYTES, MAX_JSON_DEPTH, MAX_KIND_CHARS, MAX_TASK_CHARS
from taskd.model.states import MOVES, SHOWN_STATES, STATUS_OF, STATUSES, TERMINAL, State
from taskd.model.task_checks import check_kind, check_task_text
from taskd.model.tasks import Task, shown_state
from taskd.model.users import check_new_password, check_new_username, normalize_username, password_bytes
from taskd.protocol.views import view

NOON = datetime(2025, 3, 1, 12, tzinfo=timezone.utc)


def key(name: str) -> str:
    return normalize_username(name)[1]


class TestUsernames:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Ana", "ana"),
            ("straße", "STRASSE"),
            ("ﬁne", "FINE"),
            ("\u212aelvin", "kelvin"),
            ("İzmir", "i̇zmir"),
            ("\uff41na", "ana"),
            ("Jose\u0301", "josé"),
            ("ΑΣ", "ας"),
            ("\u1fb7", "\u1fbc\u0342"),
        ],
    )
    def test_names_that_look_the_same_have_the_same_key(self, one: str, other: str) -> None:
        assert key(one) == key(other)

    @pytest.mark.parametrize(("one", "other"), [("ana", "aña"), ("I", "İ"), ("a b", "a  b"), ("0", "o")])
    def test_other_names_have_different_keys(self, one: str, other: str) -> None:
        assert key(one) != key(other)

    def test_the_shown_name_is_normalised_and_keeps_its_letter_case(self) -> None:
        assert normalize_username("Jose\u0301 ﬁ") == ("José fi", "josé fi")

    @pytest.mark.parametrize(
        "name",
        [
            "a\0b",
            "a\nb",
            "a\x7fb",
            "\u202eana",
            "a\u200bb",
            "a\u2066b",
            "a\ufeffb",
            "a\u2028b",
            "a\u2029b",
            "\ud800",
            "a\U000e0041b",
            "a\u0378b",
            # letters and marks that are invisible
            "\u3164",
            "ana\ufe0f",
            "a\u034fna",
            "\u2800",
            "\u115f",
            "ana\U000e0100",
            "a\u180bb",
            "\uffa0",
        ],
    )
    def test_control_and_invisible_characters_are_refused(self, name: str) -> None:
        with pytest.raises(BadRequest, match="control or invisible") as refused:
            normalize_username(name)
        assert refused.value.field == "username"

    @pytest.mark.parametrize("name", [" ana", "ana ", "\u00a0ana", "ana\u3000", " "])
    def test_white_space_around_a_name_is_refused(self, name: str) -> None:
        with pytest.raises(BadRequest, match="white space"):
            normalize_username(name)

    @pytest.mark.parametrize(
        ("name", "fits"),
        [
            ("", False),
            ("a", True),
            ("a" * 64, True),
            ("a" * 65, False),
            ("e\u0301" * 64, True),  # 128 characters that normalise to 64
            ("ﬃ" * 22, False),  # 22 characters that normalise to 66
            ("\u1100\u1161\u11a8" * 64, True),  # 192 characters that normalise to 64
            ("🦀" * 64, True),
        ],
    )
    def test_a_name_may_have_64_characters_after_normalisation(self, name: str, fits: bool) -> None:
        if fits:
            assert 1 <= len(normalize_username(name)[0]) <= 64
        else:
            with pytest.raises(BadRequest, match="1 to 64 characters"):
                normalize_username(name)

    def test_a_very_long_name_is_refused_before_it_is_normalised(self) -> None:
        """Normalising so many marks would take seconds."""
        before = time.process_time()
        with pytest.raises(BadRequest, match="1 to 64 characters"):
            normalize_username("a" + "\u0301" * 20_000 + "\u0316" * 20_000)
        assert time.process_time() - before < 0.1

    def test_the_key_of_a_key_is_the_same_key(self) -> None:
        for code in range(0, sys.maxunicode + 1, 37):
            try:
                folded = key(f"a{chr(code)}b")
            except BadRequest:
                continue
            assert key(folded) == folded, hex(code)


class TestPasswords:
    @pytest.mark.parametrize("password", ["y" * 7 + "x", "x" * 72, "ñ" * 4, "ñ" * 36, "🦀🦀", "🦀" * 18, " " * 7 + "x"])
    def test_a_password_may_have_8_to_72_bytes(self, password: str) -> None:
        assert check_new_password(password) == password.encode()

    @pytest.mark.parametrize("password", ["", "x" * 7, "x" * 73, "ñ" * 3 + "x", "ñ" * 36 + "x", "🦀🦀"[:1] + "xxx"])
    def test_a_password_with_fewer_or_more_bytes_is_refused(self, password: str) -> None:
        with pytest.raises(BadRequest, match="8 to 72 bytes") as refused:
            check_new_password(password)
        assert refused.value.field == "password"

    @pytest.mark.parametrize("password", ["secret\0secret", "secret\ud800secret"])
    def test_a_password_that_bcrypt_cannot_hash_is_refused(self, password: str) -> None:
        for check in (check_new_password, password_bytes):
            with pytest.raises(BadRequest) as refused:
                check(password)
            assert refused.value.field == "password"

    def test_it_does_not_matter_how_an_accent_is_composed(self) -> None:
        assert check_new_password("contrasen\u0303a") == check_new_password("contraseña") == "contraseña".encode()
        assert password_bytes("e\u0301") == password_bytes("é")
        # but full-width letters and letter case are different passwords
        assert password_bytes("\uff41na") != password_bytes("ana") != password_bytes("Ana")

    def test_the_length_is_that_of_the_composed_form(self) -> None:
        assert len(check_new_password("e\u0301" * 36)) == 72
        assert len(check_new_password("\u03b1\u0313\u0300\u0345" * 24)) == 72
        with pytest.raises(BadRequest, match="8 to 72 bytes"):
            check_new_password("e\u0301" * 3)

    def test_a_very_long_password_is_not_normalised(self) -> None:
        before = time.process_time()
        assert len(password_bytes("a" + "\u0301" * 20_000 + "\u0316" * 20_000)) > 72
        assert time.process_time() - before < 0.1

    @pytest.mark.parametrize("password", [" " * 8, "\u3000" * 3, "\t" * 9, "\u2800" * 5, " \u200b" * 4])
    def test_a_password_of_blanks_is_refused(self, password: str) -> None:
        with pytest.raises(BadRequest, match="visible"):
            check_new_password(password)

    @pytest.mark.parametrize("password", ["password", "PassWord", "12345678", "1q2w3e4r", "xxxxxxxx"])
    def test_a_common_password_is_refused(self, password: str) -> None:
        with pytest.raises(BadRequest, match="most common") as refused:
            check_new_password(password)
        assert refused.value.message == "password is one of the most common ones; choose another"
        assert password_bytes(password), "who has it already can log in"

    def test_the_list_of_common_passwords(self) -> None:
        lines = Path(common_passwords.__file__).with_suffix(".txt").read_text("utf-8").splitlines()
        listed = [line for line in lines if not line.startswith("#")]
        assert len(listed) == len(set(listed)) == 3000
        for each in listed:
            assert 8 <= len(each.encode()) <= 72 and each == each.lower() and common_passwords.is_common(each)

    @pytest.mark.parametrize("password", ["Straßenbahn", "STRASSENBAHN", "\uff33trassenbahn"])
    def test_the_username_is_no_password(self, password: str) -> None:
        with pytest.raises(BadRequest, match="must not be the username"):
            check_new_password(password, "strassenbahn")
        assert check_new_password(password + "1", "strassenbahn")


class TestNewUsernames:
    @pytest.mark.parametrize(
        "name",
        [
            *("ana", "José-María.2", "Анна", "Άννα 7", "\u02bbOkina", "李小龍", "山田さん", "カタカナひらがなー漢字"),
            *("अनीता", "עדי", "سارة", "ნინო", "Q̈a", "…", "42", "🦀", "\uff21na", "μ", "ㄅ注音", "々木", "김영희 金"),
        ],
    )
    def test_a_name_in_one_script(self, name: str) -> None:
        assert check_new_username(name) == normalize_username(name)

    @pytest.mark.parametrize(
        ("name", "scripts"),
        [
            ("p\u0430ypal", "Latin and Cyrillic"),
            ("\u0430dmin", "Cyrillic and Latin"),
            ("\u03bfscar", "Greek and Latin"),
            ("ana漢", "Latin and Han"),
            ("かな한", "Hiragana and Hangul"),
            ("ana-\u0561", "Latin and Armenian"),
            ("\u13a0na", "Cherokee and Latin"),
        ],
    )
    def test_a_name_that_mixes_scripts(self, name: str, scripts: str) -> None:
        with pytest.raises(BadRequest, match=f"^username mixes {scripts} letters") as refused:
            check_new_username(name)
        assert refused.value.field == "username"
        assert normalize_username(name), "who has it already can log in"

    def test_what_no_name_may_have(self) -> None:
        with pytest.raises(BadRequest, match="white space"):
            check_new_username(" ana")


class TestTaskTexts:
    @pytest.mark.parametrize(
        "text",
        ["", " ", "\u200b", "\u2800", "\u3164", "\u00a0\u2003", "\u200b \u2060\ufeff", "\u202e", "\x01\x7f", "\u00ad"],
    )
    def test_a_text_without_visible_characters_is_refused(self, text: str) -> None:
        with pytest.raises(BadRequest) as caught:
            check_task_text(text)
        assert caught.value.field == "task"

    @pytest.mark.parametrize("text", ["x", " x ", "line\nline\ttab", "ñ" * MAX_TASK_CHARS, "\u202ex", "🦀"])
    def test_a_text_is_kept_unchanged(self, text: str) -> None:
        assert check_task_text(text) == text

    @pytest.mark.parametrize("text", ["", " ", "\n\t\u3000", "a\0b", "a\ud800b"])
    def test_an_invalid_text_is_refused(self, text: str) -> None:
        with pytest.raises(BadRequest) as refused:
            check_task_text(text)
        assert refused.value.field == "task"

    def test_a_text_that_is_too_long_is_refused(self) -> None:
        with pytest.raises(TooLarge, match="4096") as refused:
            check_task_text("x" * (MAX_TASK_CHARS + 1))
        assert refused.value.field == "task"

    @pytest.mark.parametrize("kind", ["simulate", "a.b-c:D_9", "x" * MAX_KIND_CHARS, "-"])
    def test_valid_kinds_are_accepted(self, kind: str) -> None:
        assert check_kind(kind) == kind

    @pytest.mark.parametrize("kind", ["", "x" * (MAX_KIND_CHARS + 1), "a b", "a/b", "ñ", "a\n", "a\0", "٣"])
    def test_invalid_kinds_are_refused(self, kind: str) -> None:
        with pytest.raises(BadRequest) as refused:
            check_kind(kind)
        assert refused.value.field == "kind"


def nested(depth: int) -> Any:
    value: Any = 1
    for n in range(depth):
        value = [value] if n % 2 else {"a": value}
    return value


class TestJson:
    @pytest.mark.parametrize(
        ("value", "text"), [({"a": [1, 2.5, None]}, '{"a":[1,2.5,null]}'), ("ñ", '"ñ"'), (2**70, str(2**70))]
    )
    def test_text(self, value: Any, text: str) -> None:
        assert encode_json(value, 100, "result") == text

    def test_the_size_limit_counts_bytes(self) -> None:
        assert encode_json("ñ" * 4, 10, "result") == '"ññññ"'
        with pytest.raises(TooLarge, match="at most 9 bytes as JSON, not 10") as refused:
            encode_json("ñ" * 4, 9, "result")
        assert refused.value.field == "result"

    def test_deep_nesting_is_refused(self) -> None:
        assert encode_json(nested(MAX_JSON_DEPTH), 10_000, "payload")
        for depth in (MAX_JSON_DEPTH + 1, 900, 100_000):
            with pytest.raises(BadRequest, match="nested more than 100") as refused:
                encode_json(nested(depth), 10**7, "payload")
            assert refused.value.field == "payload"

    def test_many_brackets_side_by_side_are_not_deep(self) -> None:
        assert encode_json({"a": [[]] * 1000}, 10_000, "payload")
        assert encode_json("[" * 1000, 10_000, "payload")

    @pytest.mark.parametrize("value", [object(), {1j: 1}, "\ud800"])
    def test_a_value_that_is_not_json_is_refused(self, value: Any) -> None:
        with pytest.raises(BadRequest, match="cannot be written as JSON"):
            encode_json(value, 100, "result")


def task(state: State, **fields: Any) -> Task:
    return Task(1, 1, "t", "simulate", "tasks", state, NOON, fields.pop("run_at", NOON), **fields)


class TestStates:
    def test_every_state_has_a_status_and_moves(self) -> None:
        assert set(STATUS_OF) == set(MOVES) == set(State)
        assert set(STATUS_OF.values()) == set(STATUSES)
        assert {s.value for s in State} < set(SHOWN_STATES)

    def test_only_a_retry_leaves_a_terminal_state_and_every_other_state_can_be_cancelled(self) -> None:
        assert MOVES[State.COMPLETED] == frozenset()
        assert MOVES[State.FAILED] == MOVES[State.CANCELLED] == {State.WAITING}
        assert all(State.CANCELLED in MOVES[state] for state in State if state not in TERMINAL)

    @pytest.mark.parametrize("state", [s for s in State if s is not State.WAITING])
    def test_other_states_are_shown_unchanged(self, state: State) -> None:
        assert shown_state(task(state, attempt=1, run_at=NOON + timedelta(1)), NOON) == state.value

    @pytest.mark.parametrize(
        ("attempt", "delay", "shown"),
        [(0, 0, "waiting"), (0, -5, "waiting"), (0, 5, "scheduled"), (1, 0, "retrying"), (1, 5, "retrying")],
    )
    def test_waiting_is_shown_as_scheduled_or_retrying(self, attempt: int, delay: int, shown: str) -> None:
        one = task(State.WAITING, attempt=attempt, run_at=NOON + timedelta(seconds=delay))
        assert shown_state(one, NOON) == shown


class TestView:
    def test_a_list_leaves_out_payload_and_large_results(self) -> None:
        large = msgspec.json.encode("x" * LISTED_RESULT_BYTES).decode()
        one = task(State.COMPLETED, payload='{"a":1}', result=large)
        assert msgspec.json.decode(msgspec.json.encode(view(one, NOON)))["result_omitted"] is True
        short, full = view(one, NOON), view(one, NOON, failed=())
        assert (short.result, short.payload) == (None, msgspec.UNSET)
        assert full.result is not None and bytes(full.result).decode() == large
        assert full.payload is not msgspec.UNSET and bytes(full.payload) == b'{"a":1}'

    @pytest.mark.parametrize(
        ("result", "omitted"),
        [('"' + "x" * 4094 + '"', False), ('"' + "x" * 4095 + '"', True), ('"' + "ñ" * 2048 + '"', True)],
    )
    def test_the_size_of_a_result_counts_bytes(self, result: str, omitted: bool) -> None:
        assert (view(task(State.COMPLETED, result=result), NOON).result is None) == omitted

"""Items of the contract's checklist with the official Node package: files, uploads, chat, errors, repetitions.

The checks are in `node/`. On SQLite alone: what they ask for is tested on both databases with the Python package.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cut_connections import cut_connections
from node_sdk import NodeSdk, node_sdk  # noqa: F401
from server_process import running_server
from serving_models import register_tuned
from tunesmith.record.access import DEFAULT_PROJECT, Access, KeyLimits
from tunesmith.record.database import Database
from tunesmith.record.home import Home

#: Few, so that the next one is seconds away: a request that follows another at once comes in time on any machine.
PER_MINUTE = 20


@dataclass
class NodeServer:
    """A server with keys, a tiny model and one that is broken, for checks with the Node package."""

    sdk: NodeSdk
    url: str
    keys: dict[str, str]
    model: str
    broken_model: str

    def check(self, file: str, name: str, *, url: str | None = None, key: str = "plain", **facts: object) -> None:
        facts = {"model": self.model, "broken_model": self.broken_model, **facts}
        self.sdk.check(file, name, url or self.url, self.keys[key], **facts)


@pytest.fixture(scope="module")
def node(node_sdk, tiny_folder, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("node")
    home = Home(folder / "home")
    base = tiny_folder("qwen2")
    broken = register_tuned(base, home)
    (broken.folder / "adapter_model.safetensors").write_bytes(b"broken")
    database = Database(f"sqlite:///{home.root / 'record.db'}")
    database.migrate()
    access = Access(database)
    access.ensure_default_project()
    limits = {"plain": None, "hasty": KeyLimits(requests_per_minute=PER_MINUTE)}
    keys = {name: access.create_key(name, DEFAULT_PROJECT, limit)[1] for name, limit in limits.items()}
    database.close()
    models = [str(base), broken.name]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNESMITH_DATABASE_URL", raising=False)
        with running_server(folder / "log", home.root, models=models, dtype="float32") as server:
            yield NodeServer(node_sdk, f"{server.url}/v1", keys, base.name, broken.name)


def test_item_01_upload_from_a_buffer(node):
    node.check("files.mjs", "item_01")


def test_item_03_a_read_stream_without_a_length(node):
    node.check("files.mjs", "item_03")


def test_item_04_expires_after(node):
    node.check("files.mjs", "item_04")


def test_item_07_lists(node):
    node.check("files.mjs", "item_07")


def test_item_08_content_is_byte_identical(node):
    node.check("files.mjs", "item_08")


def test_item_09_delete(node):
    node.check("files.mjs", "item_09")


def test_item_11_parts_in_swapped_order(node):
    node.check("files.mjs", "item_11")


def test_item_12_wrong_total_or_md5(node):
    node.check("files.mjs", "item_12")


def test_item_13_no_part_after_the_end(node):
    node.check("files.mjs", "item_13")


def test_item_54_plain_answers(node):
    node.check("chat.mjs", "item_54")


def test_item_55_the_same_again(node):
    node.check("chat.mjs", "item_55")


def test_item_56_logprobs(node):
    node.check("chat.mjs", "item_56")


def test_item_57_zod_schemas_are_parsed(node):
    node.check("chat.mjs", "item_57")


def test_item_58_tool_choice(node):
    node.check("chat.mjs", "item_58")


def test_item_59_tools_there_and_back(node):
    node.check("chat.mjs", "item_59")


def test_item_60_a_stream_adds_up(node):
    node.check("chat.mjs", "item_60")


def test_item_61_the_stream_helper(node):
    node.check("chat.mjs", "item_61")


def test_item_62_usage_of_a_stream(node):
    node.check("chat.mjs", "item_62")


def test_item_63_a_client_that_leaves(node):
    node.check("chat.mjs", "item_63")


def test_item_69_errors_have_the_envelope(node):
    node.check("errors.mjs", "item_69")


def test_item_70_request_ids(node):
    node.check("errors.mjs", "item_70")


def test_item_71_a_429_is_repeated_twice(node):
    node.check("errors.mjs", "item_71_429", key="hasty", most_ms=60_000 / PER_MINUTE)


def test_item_71_a_500_that_says_so_is_not_repeated(node):
    node.check("errors.mjs", "item_71_500")


def test_item_72_lists_say_whether_more_follows(node):
    node.check("errors.mjs", "item_72")


def test_item_73_keys_and_headers(node):
    node.check("errors.mjs", "item_73")


def test_item_75_an_upload_whose_answer_was_lost(node):
    with cut_connections(node.url) as url:
        node.check("errors.mjs", "item_75", url=url)


def test_item_15_a_minimal_job(node):
    node.check("jobs.mjs", "item_15")


def test_item_16_seeds(node):
    node.check("jobs.mjs", "item_16")


def test_item_18_the_old_hyperparameters(node):
    node.check("jobs.mjs", "item_18")


def test_item_19_hyperparameters_out_of_range(node):
    node.check("jobs.mjs", "item_19")


def test_item_23_lists_and_metadata(node):
    node.check("jobs.mjs", "item_23")


def test_item_24_paging_by_itself(node):
    node.check("jobs.mjs", "item_24")


def test_item_25_an_unknown_job(node):
    node.check("jobs.mjs", "item_25")


def test_item_31_32_cancelled_once(node):
    node.check("jobs.mjs", "item_31_32")


def test_item_38_events(node):
    node.check("jobs.mjs", "item_38")


def test_item_64_stored_completions(node):
    node.check("stored.mjs", "item_64")

"""Everything around a training loop, for tests: a run's folder, a tiny model with an adapter, rows.

bench = Bench(folder, tiny_folder("smollm2"), dropout=0.2)
outcome = bench.loop().run()
"""

from __future__ import annotations

import torch

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation, Message
from tunesmith.learn.step import TreeModel
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.models.size import model_size
from tunesmith.record.events import EventLog
from tunesmith.record.home import Home
from tunesmith.record.metrics import MetricsLog
from tunesmith.record.observer import Observer
from tunesmith.specs.tune import TuneSpec
from tunesmith.train.checkpoints import CheckpointStore
from tunesmith.train.loop import Loop, Records, TrainingData
from tunesmith.train.row_losses import RowLossLog
from tunesmith.train.sft import encode

ROWS = [
    Conversation(
        (Message("system", "Count."), Message("user", f"say {n}"), Message("assistant", f"{n} " * (n % 4 + 1)))
    )
    for n in range(24)
]


class Bench:
    """One run's folder and everything around a loop."""

    def __init__(self, folder, tiny, dtype="float32", **settings):
        self.spec = TuneSpec.parse(
            {
                "base": str(tiny),
                "data": {"path": "rows"},
                "adapter": {"rank": 4, "dropout": settings.pop("dropout", 0.0), **settings.pop("adapter", {})},
                "optimisation": {
                    "learning_rate": 0.01, "batch_size": 5, "epochs": 3, "validate_every_steps": 4, "patience": 0,
                    **settings.pop("optimisation", {}),
                },
                "limits": {
                    "max_tokens": 256, "tokens_per_microbatch": settings.pop("part_tokens", 4096), "dtype": dtype,
                    **settings.pop("limits", {}),
                },
            }
        )  # fmt: skip
        self.size = model_size(tiny)
        self.observer = settings.pop("observer", Observer())
        self.loaded = load_base(resolve_base(str(tiny), Home(folder / "home")), dtype, "cpu")
        self.checkpoints = CheckpointStore(folder / "checkpoints")
        self.events = EventLog(folder / "events.jsonl")
        self.metrics = MetricsLog(folder / "metrics.jsonl")
        self.row_losses = RowLossLog(folder / "row_losses.jsonl")

    def loop(self, should_stop=lambda: False):
        torch.manual_seed(self.spec.seed)
        renderer = ChatRenderer(self.loaded.tokenizer)
        self.adapter = add_lora(self.loaded.model, self.spec.adapter)
        data = TrainingData(encode(ROWS[:18], renderer, 256), encode(ROWS[18:], renderer, 256))
        records = Records(self.events, self.metrics, self.checkpoints, self.observer, self.row_losses)
        return Loop(TreeModel.of(self.loaded.model), self.adapter, data, self.spec, records, should_stop)

    def weights(self):
        """Copies of what is trained, by name."""
        return {name: tensor.clone() for name, tensor in self.adapter.tensors().items()}

    def steps(self):
        """What each step learnt from and what it came to, without the time that it took."""
        names = ("step", "loss", "learning_rate", "validation_loss")
        losses = [{name: row[name] for name in names if name in row} for row in self.metrics.rows()]
        return losses, list(self.row_losses.rows())


def same(one, other):
    """Whether two sets of named tensors are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stop_after(steps):
    """A `should_stop` that says yes after so many steps."""
    calls = iter(range(1, 10_000))
    return lambda: next(calls) == steps

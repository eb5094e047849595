"""`optimisation.learning_rate: find`: the range test before the training, and the spec with what it found."""

from __future__ import annotations

from tunesmith.learn.passes import Passes
from tunesmith.learn.step import TreeModel
from tunesmith.models.adapters.adapter import Adapter
from tunesmith.runs.folder import RunFolder
from tunesmith.runs.workshop import Base
from tunesmith.specs.tune import TuneSpec
from tunesmith.train.loop import Records, TrainingData
from tunesmith.train.rate_finder import find_rate
from tunesmith.train.settings import usual_rate
from tunesmith.train.stepping import Stepper


def with_found_rate(
    spec: TuneSpec,
    base: Base,
    adapter: Adapter,
    data: TrainingData,
    passes: Passes,
    folder: RunFolder,
    records: Records,
) -> TuneSpec:
    """Return the spec with a number for its learning rate, found by trying if it says `find`.

    The number is written into the run's `spec.yaml`, so that a resumed or repeated run takes it. Weights and random
    state are as before. Steps are computed as `passes` say.

    Raises:
        RunError: memory ran out (`out_of_memory`).
    """
    if spec.optimisation.learning_rate != "find":
        return spec
    model = TreeModel.of(base.loaded.model)
    groups = adapter.parameter_groups()
    parameters = [parameter for group in groups for parameter in group.parameters]
    stepper = Stepper(model, parameters, passes, lambda *_: None, spec.method)
    hidden = base.loaded.model.config.get_text_config().hidden_size
    model.model.train()
    found = find_rate(
        stepper,
        groups,
        data.train,
        spec,
        usual_rate(spec, hidden),
        lambda done, total: records.observer.progress("looking for a learning rate", done, total),
    )
    model.model.eval()
    records.metrics.truncate_after(-1)  # a search that was cut off left its steps
    for rate, loss in zip(found.rates, found.losses, strict=True):
        records.metrics.add(0, tried_rate=rate, tried_loss=loss)
    records.metrics.sync()
    settled = spec.model_copy(
        update={"optimisation": spec.optimisation.model_copy(update={"learning_rate": found.rate})}
    )
    settled.write_yaml(folder.spec_file)
    records.events.add("learning_rate_found", found.reason, **found.to_json())
    return settled

"""Command-line options drawn from the specs: name, limits, default and explanation are stated once, in the field."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic.fields import FieldInfo

from tunesmith.errors import SpecError
from tunesmith.specs.base import Spec

Json = Annotated[
    bool, typer.Option("--json", help="End with one JSON object on standard output; all else goes to standard error.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but results and errors.")]

_SETTINGS = "settings"
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def takes_settings(
    spec: type[Spec], flags: Mapping[str, str], *, panel: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for each field; it gets those that the user gave as `settings`, by path.

    Args:
        spec: the spec that the fields belong to.
        flags: the option's name for each field's dotted path: `{"optimisation.epochs": "--epochs"}`.
        panel: heading of these options in the help.
    """
    options = {path: _parameter(option_field(spec, path), flag, panel) for path, flag in flags.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)

        @wraps(command)
        def with_settings(**given: Any) -> None:
            settings: dict[str, Any] = {}
            for path, option in options.items():
                value = given.pop(option.name)
                # An option that may be repeated and wasn't given is an empty list.
                if value is not None and value != []:
                    settings[path] = _value(value, field_at(spec, path), flags[path])
            command(**given, **{_SETTINGS: settings})

        kept = [parameter for name, parameter in own.parameters.items() if name != _SETTINGS]
        parameters = [*kept, *options.values()]
        with_settings.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_settings

    return decorate


def field_at(spec: type[Spec], path: str) -> FieldInfo:
    """Return the field of a dotted path.

    Raises:
        KeyError: there is no such field.
    """
    group, _, rest = path.partition(".")
    field = spec.model_fields[group]
    if not rest:
        return field
    for part in _groups(field):
        try:
            return field_at(part, rest)
        except KeyError:
            continue
    raise KeyError(path)


def option_field(spec: type[Spec], path: str) -> FieldInfo:
    """Return what an option shows: the field itself, or for the kind of a tagged choice all kinds that there are.

    Raises:
        KeyError: there is no such field.
    """
    name, _, last = path.rpartition(".")
    group = field_at(spec, name) if name else None
    if group is None or group.discriminator != last:
        return field_at(spec, path)
    kinds = tuple(_kind(part, last) for part in _groups(group))
    usual = group.get_default(call_default_factory=True, validated_data={})
    annotation: Any = Literal[kinds]
    return FieldInfo(annotation=annotation, default=getattr(usual, last), description=group.description)


def of_chosen_kinds(values: Mapping[str, Any], settings: Mapping[str, Any], spec: type[Spec]) -> dict[str, Any]:
    """Return a spec file's values without those that have no place beside a kind chosen now (`adapter.kind`)."""
    kept = dict(values)
    for path, kind in settings.items():
        name, _, last = path.rpartition(".")
        group = spec.model_fields.get(name)
        if group is None or group.discriminator != last or not isinstance(kept.get(name), Mapping):
            continue
        for part in _groups(group):
            if _kind(part, last) == kind:
                kept[name] = {key: value for key, value in kept[name].items() if key in part.model_fields}
    return kept


def setting_paths(spec: type[Spec], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field, groups included."""
    for name, field in spec.model_fields.items():
        yield f"{prefix}{name}"
        for part in _groups(field):
            yield from setting_paths(part, f"{prefix}{name}.")


def parse_assignments(assignments: Sequence[str], spec: type[Spec]) -> dict[str, Any]:
    """Read `path=value` settings; a value is read as YAML.

    Raises:
        SpecError: one isn't of this form, its value isn't YAML, or the spec has no such setting.
    """
    settings: dict[str, Any] = {}
    known = list(dict.fromkeys(setting_paths(spec)))
    for text in assignments:
        where = f"--set {text}"
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals:
            raise SpecError(
                "A setting is written path=value.", where=where, fix="For example: --set optimisation.epochs=2",
                code="invalid_setting",
            )  # fmt: skip
        if not _is_known(path, known, spec):
            raise SpecError(
                f"There is no setting called '{path}'.", where=where, fix=_nearest(path, known),
                code="unknown_setting", param=path,
            )  # fmt: skip
        settings[path] = _yaml(value, where)
    return settings


def parse_pairs(pairs: Sequence[str], option: str, names: Sequence[str]) -> dict[str, str]:
    """Read `name=column` pairs.

    Raises:
        SpecError: one isn't of this form, or its name isn't one of `names`.
    """
    found: dict[str, str] = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        if not equals or not value or name not in names:
            raise SpecError(
                f"{option} says which column is which: {', '.join(names)}.",
                where=f"{option} {text}",
                fix=f"For example: {option} input=question {option} output=answer",
                code="bad_mapping",
                param="data.mapping",
            )
        found[name] = value
    return found


def nested(settings: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return dotted settings as nested plain values, on top of `base`, which isn't changed."""
    result: dict[str, Any] = {
        key: nested({}, value) if isinstance(value, Mapping) else value for key, value in (base or {}).items()
    }
    for path, value in settings.items():
        *groups, name = path.split(".")
        here = result
        for group in groups:
            inner = here.get(group)
            here[group] = inner = dict(inner) if isinstance(inner, Mapping) else {}
            here = inner
        here[name] = value
    return result


def _groups(field: FieldInfo) -> list[type[Spec]]:
    """Return the specs that a field may hold."""
    kinds = get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    return [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, Spec)]


def _kind(part: type[Spec], tag: str) -> str:
    """Return what a member of a tagged choice is called."""
    return str(part.model_fields[tag].default)


def _parameter(field: FieldInfo, flag: str, panel: str | None) -> inspect.Parameter:
    """Return the typer parameter for a field."""
    kind = field.annotation
    name = flag.removeprefix("--").replace("-", "_")
    annotation: Any = str | None
    default: list[str] | None = None
    metavar: str | None = None
    if kind is bool:
        annotation, flag = bool | None, f"{flag}/--no-{flag.removeprefix('--')}"
    elif get_origin(kind) is tuple:
        annotation, default, metavar = list[str], [], "TEXT"
    else:
        metavar = _metavar(kind)
    option = typer.Option(flag, help=_help(field), metavar=metavar, show_default=False, rich_help_panel=panel)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


def _help(field: FieldInfo) -> str:
    """Return a field's explanation with its limits and default."""
    limits = _limits(field)
    facts = [limits] if limits else []
    if not field.is_required() and field.default not in (None, ()) and field.default_factory is None:
        facts.append(f"default {_shown(field.default)}")
    told = "; ".join(facts)
    return f"{field.description} ({told})" if told else field.description or ""


def _limits(field: FieldInfo) -> str:
    """Say a field's bounds: `from 1 to 64`, `more than 0`."""
    bounds = {
        name: value
        for item in (*field.metadata, *_inner_metadata(field.annotation))
        for name in ("ge", "gt", "le", "lt")
        if (value := getattr(item, name, None)) is not None
    }
    low, above, high, below = (_shown(bounds[name]) if name in bounds else "" for name in ("ge", "gt", "le", "lt"))
    least = f"more than {above}" if above else f"{'from' if high or below else 'at least'} {low}" if low else ""
    most = f"to {high}" if high else f"below {below}" if below else ""
    return " ".join(part for part in (least, most) if part)


def _inner_metadata(kind: Any) -> Iterator[Any]:
    """Yield the limits that stand inside a union, as in `auto` or a number of at least 1."""
    for part in get_args(kind) if _is_union(kind) else ():
        if get_origin(part) is Annotated:
            for item in part.__metadata__:
                yield from getattr(item, "metadata", ()) if isinstance(item, FieldInfo) else (item,)


def _metavar(kind: Any) -> str:
    """Return what stands for a value in the help: `auto|NUMBER`."""
    if get_origin(kind) is Annotated:
        return _metavar(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return "|".join(str(value) for value in get_args(kind))
    if _is_union(kind):
        return "|".join(dict.fromkeys(_metavar(part) for part in get_args(kind) if part is not type(None)))
    return {int: "INTEGER", float: "NUMBER", str: "TEXT"}.get(kind, "VALUE")


def _value(value: Any, field: FieldInfo, flag: str) -> Any:
    """Read an option's text: numbers and words as YAML, texts as they are."""
    kind = field.annotation
    if not isinstance(value, str) or kind is str or (_is_union(kind) and str in get_args(kind)):
        return value
    return _yaml(value, f"{flag} {value}")


def _yaml(text: str, where: str) -> Any:
    """Read one value.

    Raises:
        SpecError: it isn't YAML.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(
            "This value can't be read.", where=where, fix="Put texts with special signs in quotes.",
            code="invalid_setting",
        ) from error  # fmt: skip
    # YAML 1.1 takes 1e-3 for a text.
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _is_known(path: str, known: Sequence[str], spec: type[Spec]) -> bool:
    """Whether a path names a field, or a key of a field that holds keys of its own."""
    if path in known:
        return True
    owner = path.rpartition(".")[0]
    return owner in known and get_origin(field_at(spec, owner).annotation) is dict


def _nearest(path: str, known: Sequence[str]) -> str:
    """Say which setting may have been meant."""
    single = [name for name in known if not any(other.startswith(f"{name}.") for other in known)]
    names = dict.fromkeys(name.rpartition(".")[2] for name in single)
    # Whole paths look alike for their groups' sake; what people mistype, or put in the wrong group, is the last part.
    near = difflib.get_close_matches(path.rpartition(".")[2], names, n=2, cutoff=0.75)
    meant = [name for last in near for name in single if name.rpartition(".")[2] == last]
    if meant:
        return f"Did you mean {' or '.join(meant[:3])}?"
    return "docs/reference/spec.md lists every setting; `tunesmith tune --help` the most used."


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _shown(value: Any) -> str:
    """Return a number or a word as people write it: from five digits on with separators (a port has four)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_long = isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000
    return f"{value:,}" if is_long else str(value)

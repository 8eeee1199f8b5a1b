"""YAML -> frozen models. An unknown key is an error with a suggestion; `key=value` overrides a key by its dotted path.

People write YAML; the program writes the resolved config as JSON, so that the format says which of the two a file is.
The models are in `run_config.py` and `serve_config.py`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from winnow.errors import ConfigError, first_line

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
# At most eleven days: in milliseconds it still is a number that gRPC takes.
Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A part of a config: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Config = TypeVar("Config", bound=Section)


def load_config(
    path: str | Path | None, kind: type[Config], overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None
) -> Config:
    """Read a YAML config, if any; apply `key=value` overrides, and flags, whose values are taken as they are; check it.

    Raises ConfigError naming file, key and way out.
    """
    tree = {} if path is None else _read_yaml(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    if isinstance(tree, dict):
        tree.update(flags or {})
    return parse_config(tree, kind, "command line" if path is None else str(path))


def load_resolved(path: Path, kind: type[Config]) -> Config:
    """Read a config that `dump_config` wrote."""
    return parse_config(json.loads(path.read_text()), kind, str(path))


def dump_config(config: Section) -> str:
    """The resolved config as JSON, every default spelled out."""
    return config.model_dump_json(indent=2) + "\n"


def parse_config(tree: Any, kind: type[Config], origin: str) -> Config:
    """Check a tree of plain values against a config model; `origin` names it in errors."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: a config is a mapping of keys to values")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = _other_verb(tree, kind) or "; ".join(_problems(error, kind))
        raise ConfigError(f"{origin}: {problems}") from None


def differences(old: Section, new: Section) -> list[str]:
    """Lines `key: old -> new` for every key in which two configs differ."""
    before, after = dict(_leaves(old.model_dump(mode="json"))), dict(_leaves(new.model_dump(mode="json")))
    keys = sorted(before.keys() | after.keys())
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]


def key_rows(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each key of a config by its dotted path, with its meaning and its default."""
    for name, field in kind.model_fields.items():
        section = next(_sections_in(field.annotation), None)
        if section is not None:
            yield from key_rows(section, f"{prefix}{name}.")
            continue
        default = "" if field.is_required() or field.default is None else f"  [default: {field.default}]"
        yield f"{prefix}{name}", f"{field.description}{default}"


def _read_yaml(path: Path) -> Any:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"config {str(path)!r} cannot be read: {error.strerror}; give the path of a YAML file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    return {} if tree is None else tree


def _apply_override(tree: Any, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} should be key=value, like rounds.num_rounds=2")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {first_line(error)}") from None
    *parents, last = key.split(".")
    for name in parents:
        tree = _child(tree, name, override)
    if isinstance(tree, list):
        tree[_list_index(tree, last, override)] = parsed
    else:
        tree[last] = parsed


def _child(tree: Any, name: str, override: str) -> Any:
    if isinstance(tree, list):
        return tree[_list_index(tree, name, override)]
    child = tree.get(name)
    if child is None:
        child = tree[name] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"override {override!r}: {name} is a value, it has no keys")
    return child


def _list_index(items: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(items):
        raise ConfigError(f"override {override!r}: {name!r} should be an index below {len(items)}")
    return int(name)


def _other_verb(tree: dict[str, Any], kind: type[BaseModel]) -> str:
    """What to call instead, where the keys are those of another verb's config; else an empty text."""
    from winnow.run_config import RunConfig
    from winnow.serve_config import ServeConfig

    verbs: dict[type[BaseModel], str] = {RunConfig: "winnow run", ServeConfig: "winnow serve"}
    if kind not in verbs:
        return ""
    likely = max(verbs, key=lambda one: (len(tree.keys() & one.model_fields.keys()), one is kind))
    if likely is kind:
        return ""
    return f"this is a config of `{verbs[likely]}`; call that, or give a config of `{verbs[kind]}`"


def _problems(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    """What is wrong, key by key; at the end, once, the keys of each section that has one like none of them."""
    listed: dict[tuple[str | int, ...], list[str]] = {}
    for problem in error.errors():
        loc = problem["loc"]
        key = ".".join(str(part) for part in loc)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = sorted(_section_at(loc[:-1], kind).model_fields)
            close = difflib.get_close_matches(str(loc[-1]), known, n=1)
            if not close:
                listed[loc[:-1]] = known
            yield f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")
        elif problem["type"] == "missing":
            yield f"{key} is missing"
        else:
            yield f"{key}: {message}" if key else message
    for loc, known in listed.items():
        of = f" of {'.'.join(map(str, loc))}" if loc else ""
        yield f"known keys{of}: {', '.join(known)}"


def _section_at(loc: Sequence[str | int], kind: type[BaseModel]) -> type[BaseModel]:
    for part in loc:
        if isinstance(part, str) and part in kind.model_fields:
            kind = next(_sections_in(kind.model_fields[part].annotation), kind)
    return kind


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections_in(argument)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None or not tree:
        yield prefix, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))

"""YAML -> frozen models. An unknown key is an error with a suggestion; `key=value` overrides a key by its dotted path.

People write YAML, and winnow writes the resolved config as JSON: the format shows who wrote a file. The models are in
`run_config.py` and `serve_config.py`.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from winnow.errors import ConfigError, first_line

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
# At most eleven days: gRPC counts milliseconds in 32 bits.
Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def _check_folder_name(name: str) -> str:
    """Raise ValueError unless the name is that of one folder."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or name != name.strip():
        raise ValueError(f"{name!r} should be the name of one folder, without / and without spaces around it")
    return name


FolderName = Annotated[str, AfterValidator(_check_folder_name)]


class Section(BaseModel):
    """A section of a config: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Config = TypeVar("Config", bound=Section)


def load_config(
    path: str | Path | None, kind: type[Config], overrides: Sequence[str] = (), flags: Mapping[str, str] | None = None
) -> Config:
    """Return the config of a YAML file, or of no file, with `key=value` overrides and then flags applied.

    `flags` maps top-level keys to their values. Raises ConfigError with the file, the key and a remedy.
    """
    tree: Any = {}
    origin = "command line"
    if path is not None:
        tree = _read_yaml(Path(path))
        origin = str(path)
    for override in overrides:
        _apply_override(tree, override)
    if isinstance(tree, dict):
        tree.update(flags or {})
    return parse_config(tree, kind, origin)


def dump_config(config: Section) -> str:
    """Return the resolved config as JSON, with every default."""
    return config.model_dump_json(indent=2) + "\n"


def parse_config(tree: Any, kind: type[Config], origin: str) -> Config:
    """Check a tree of plain values against a config model; `origin` names the tree in errors. Raises ConfigError."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{origin}: a config is a mapping of keys to values")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = _wrong_verb(tree, kind) or "; ".join(_problems(error, kind))
        raise ConfigError(f"{origin}: {problems}") from None


def differences(old: Section, new: Section) -> list[str]:
    """Return a line `key: old -> new` for every key in which two configs differ."""
    old_values = dict(_leaves(old.model_dump(mode="json")))
    new_values = dict(_leaves(new.model_dump(mode="json")))
    lines = []
    for key in sorted(old_values.keys() | new_values.keys()):
        old_value = old_values.get(key)
        new_value = new_values.get(key)
        if old_value != new_value:
            lines.append(f"{key}: {old_value!r} -> {new_value!r}")
    return lines


def key_meanings(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key of a config by its dotted path, with its meaning and its default."""
    for name, field in kind.model_fields.items():
        section = next(_sections_in(field.annotation), None)
        if section is not None:
            yield from key_meanings(section, f"{prefix}{name}.")
            continue
        meaning = str(field.description)
        if not field.is_required() and field.default is not None:
            meaning = f"{meaning}  [default: {field.default}]"
        yield f"{prefix}{name}", meaning


def _read_yaml(path: Path) -> Any:
    """Return the value of a YAML file; for an empty file, an empty dict. Raises ConfigError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"config {str(path)!r} cannot be read: {error.strerror}; give the path of a YAML file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        origin = str(path)
        mark = getattr(error, "problem_mark", None)
        if mark is not None:
            origin = f"{path} line {mark.line + 1}"
        raise ConfigError(f"{origin}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if tree is None:
        return {}
    return tree


def _apply_override(tree: Any, override: str) -> None:
    """Set the key that `key=value` names; create the sections on its path. Raises ConfigError."""
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
        raise ConfigError(f"override {override!r}: {name} is a value and has no keys")
    return child


def _list_index(items: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(items):
        raise ConfigError(f"override {override!r}: {name!r} should be an index below {len(items)}")
    return int(name)


def _wrong_verb(tree: dict[str, Any], kind: type[BaseModel]) -> str:
    """Return a message that names the verb to call if the keys fit another verb's config better; else an empty text."""
    from winnow.run_config import RunConfig
    from winnow.serve_config import ServeConfig

    verbs: dict[type[BaseModel], str] = {RunConfig: "winnow run", ServeConfig: "winnow serve"}
    if kind not in verbs:
        return ""
    num_common_keys = {config: len(tree.keys() & config.model_fields.keys()) for config in verbs}
    likely = max(verbs, key=lambda config: num_common_keys[config])
    if num_common_keys[likely] <= num_common_keys[kind]:
        return ""
    return f"this is a config of `{verbs[likely]}`; call that, or give a config of `{verbs[kind]}`"


def _problems(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    """Yield each problem with its key; last, the known keys of each section with an unknown key that resembles none."""
    known_keys: dict[tuple[str | int, ...], list[str]] = {}
    for problem in error.errors():
        loc = problem["loc"]
        key = ".".join(str(part) for part in loc)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            section = loc[:-1]
            keys = sorted(_section_at(section, kind).model_fields)
            similar = difflib.get_close_matches(str(loc[-1]), keys, n=1)
            if similar:
                yield f"unknown key {key}; did you mean {similar[0]}?"
            else:
                known_keys[section] = keys
                yield f"unknown key {key}"
        elif problem["type"] == "missing":
            yield f"{key} is missing"
        elif key:
            yield f"{key}: {message}"
        else:
            yield message
    for section, keys in known_keys.items():
        heading = "known keys"
        if section:
            heading = f"known keys of {'.'.join(map(str, section))}"
        yield f"{heading}: {', '.join(keys)}"


def _section_at(loc: Sequence[str | int], kind: type[BaseModel]) -> type[BaseModel]:
    """Return the section of a config at a path of keys and list indices."""
    for part in loc:
        if isinstance(part, str) and part in kind.model_fields:
            kind = next(_sections_in(kind.model_fields[part].annotation), kind)
    return kind


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections of an annotation such as `TlsConfig | None` or `tuple[PhaseConfig, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections_in(argument)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each plain value, and each empty section or list, with its dotted path."""
    items: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    if not items:
        yield prefix, tree
    for key, value in items:
        path = str(key)
        if prefix:
            path = f"{prefix}.{key}"
        yield from _leaves(value, path)

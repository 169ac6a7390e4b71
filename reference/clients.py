"""Real clients against a real server: the `openai` packages of Python and npm, lm-evaluation-harness, and schemathesis, which
asks whatever the OpenAPI document allows, and much that it does not.

    pip install openai==3.57.0 schemathesis==4.32.5 'lm-eval[api]==0.4.13'
    wudao prepare corpus --out /tmp/data --preset tiny && wudao train --preset tiny --data /tmp/data --out /tmp/run --steps 20
    python reference/clients.py --wudao target/release/wudao --model /tmp/run [--skip npm] [--skip lm-eval] …

Starts `wudao serve` on a free port, asks as a user of each client would, and compares what can be compared: a stream with
the whole, lm-eval's likelihoods with those of the same tokens asked by hand. The texts themselves are nonsense, and that is all
right. Exit status 0 if everything held.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

KEY = "a key of the test"
NPM_PACKAGE = "openai@7.59.0"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTIONS = [
    {"context": "The opposite of hot is", "choices": [" cold", " warm", " a chair"], "label": 0},
    {"context": "床前明月光，", "choices": ["疑是地上霜", "举头望明月"], "label": 0},
    {"context": "Two and two are", "choices": [" four", " five"], "label": 0},
]
NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.BASE + "/v1", apiKey: process.env.KEY });
const [model] = (await client.models.list()).data;
const ask = { model: model.id, messages: [{ role: "user", content: "你好" }], max_completion_tokens: 16, seed: 1 };
const whole = await client.chat.completions.create(ask);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
}
if (text !== whole.choices[0].message.content) throw new Error("the stream is not the whole");
const response = await client.responses.create({ model: model.id, input: "hello", max_output_tokens: 8 });
if (response.output_text === undefined) throw new Error("no text");
const { data } = await client.embeddings.create({ model: model.id, input: ["a", "b"] });
if (data.length !== 2) throw new Error("not two vectors");
try {
    await client.completions.create({ model: "none", prompt: "a" });
    throw new Error("an unknown model answered");
} catch (error) {
    if (!(error instanceof OpenAI.NotFoundError)) throw error;
}
"""


@contextlib.contextmanager
def server(wudao, model, *more):
    """The address of a server that runs meanwhile."""
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write(hashlib.sha256(KEY.encode()).hexdigest() + " test\n")
        keys.flush()
        command = [wudao, "serve", f"tiny={model}", "--port", "0", "--api-keys", keys.name, *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            address = process.stdout.readline().strip()
            assert address.startswith("http"), f"the server did not start: {command}"
            yield address
        finally:
            process.terminate()
            assert process.wait(60) == 0, "the server did not end well"


def unit(vector):
    return math.isclose(sum(x * x for x in vector), 1.0, rel_tol=1e-5)


def python_client(address):
    import openai

    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    (model,) = client.models.list().data
    assert model.id == "tiny" and client.models.retrieve("tiny").id == "tiny"

    ask = dict(model="tiny", prompt="话说天下", max_tokens=24, seed=5, logprobs=2)
    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert len(whole.choices[0].logprobs.token_logprobs) == whole.usage.completion_tokens
    many = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"}]
    ask = dict(model="tiny", messages=messages, max_completion_tokens=24, seed=5, logprobs=True, top_logprobs=2)
    whole = client.chat.completions.create(**ask)
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    text, usage = "", None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content and usage.total_tokens == whole.usage.total_tokens, (text, usage)
    with client.chat.completions.stream(model="tiny", messages=messages, max_tokens=8, seed=1) as stream:
        assert any(event.type == "chunk" for event in stream)
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, tools=[TOOL], tool_choice="auto")

    response = client.responses.create(model="tiny", instructions="Be brief.", input="hello", max_output_tokens=12, temperature=0)
    with client.responses.stream(
        model="tiny", instructions="Be brief.", input="hello", max_output_tokens=12, temperature=0
    ) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert deltas == response.output_text, (deltas, response.output_text)

    floats = client.embeddings.create(model="tiny", input=["a", "床前明月光"], encoding_format="float").data
    coded = client.embeddings.create(model="tiny", input=["a", "床前明月光"], encoding_format="base64").data
    assert all(unit(item.embedding) for item in floats)
    for a, b in zip(floats, coded):
        count = len(a.embedding)
        assert len(base64.b64decode(b.embedding)) == 4 * count
        decoded = struct.unpack(f"<{count}f", base64.b64decode(b.embedding))
        assert all(math.isclose(x, y, rel_tol=1e-6, abs_tol=1e-9) for x, y in zip(a.embedding, decoded))

    for error, call in [
        (openai.NotFoundError, lambda: client.completions.create(model="none", prompt="a")),
        (openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="a", temperature=-1)),
        (openai.BadRequestError, lambda: client.completions.create(model="tiny", prompt="a " * 20_000)),
        (openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list()),
    ]:
        try:
            call()
        except error as raised:
            assert raised.body["message"] and raised.code, raised
        else:
            raise AssertionError(f"no {error.__name__}")


def likelihood(client, context, choice):
    """Of a choice after its context, cut into tokens as lm-eval does."""
    import requests

    def tokens(text):
        ask = {"prompt": text, "add_special_tokens": False}
        address = str(client.base_url).removesuffix("/v1/") + "/tokenize"
        return requests.post(address, json=ask, headers={"Authorization": f"Bearer {KEY}"}, timeout=30).json()["tokens"]

    whole, before = tokens(context + choice), len(tokens(context))
    echoed = client.completions.create(model="tiny", prompt=[whole], max_tokens=0, echo=True, logprobs=1)
    return sum(echoed.choices[0].logprobs.token_logprobs[before:])


def lm_eval(address):
    """Its likelihoods are those of the same tokens asked by hand."""
    import openai

    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        data = folder / "questions.jsonl"
        data.write_text("".join(json.dumps(question, ensure_ascii=False) + "\n" for question in QUESTIONS), encoding="utf-8")
        choice = {
            "task": "own_choice", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "choices",
            "doc_to_target": "label", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
        }
        writing = {
            "task": "own_writing", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{context}}",
            "doc_to_target": "{{choices[label]}}", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match"}],
        }
        (folder / "choice.yaml").write_text(json.dumps(choice), encoding="utf-8")
        (folder / "writing.yaml").write_text(json.dumps(writing), encoding="utf-8")
        environment = {**os.environ, "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder)}
        arguments = f"model=tiny,base_url={address}/v1/completions,tokenizer_backend=remote,auth_token={KEY},num_concurrent=2,max_length=64"
        command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--batch_size", "2"]
        command += ["--tasks", "own_choice,own_writing", "--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        (samples,) = (folder / "out").rglob("samples_own_choice_*.jsonl")
        theirs = {}
        for line in samples.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            theirs[sample["doc"]["context"]] = [float(response[0]) for response in sample["filtered_resps"]]
        for question in QUESTIONS:
            ours = [likelihood(client, question["context"], choice) for choice in question["choices"]]
            scores = theirs[question["context"]]
            assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(ours, scores, strict=True)), (ours, scores)
        assert list((folder / "out").rglob("samples_own_writing_*.jsonl"))


def npm_client(address):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", NPM_PACKAGE], cwd=folder, check=True)
        path = pathlib.Path(folder) / "test.mjs"
        path.write_text(NODE, encoding="utf-8")
        subprocess.run(["node", str(path)], cwd=folder, check=True, env={**os.environ, "BASE": address, "KEY": KEY})


def schemathesis(address):
    """Whatever is asked, no answer may say that the server is at fault, and none may take long."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {KEY}"]
        command += ["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--max-examples", "30", "--seed", "1"]
        command += ["--workers", "2", "--request-timeout", "60", "--generation-database", "none", "--warnings", "off", "--no-color"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
    # It is still there, and in its senses.
    python_client(address)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wudao", required=True, help="the program")
    parser.add_argument("--model", required=True, help="a checkpoint or a run, the smaller the better")
    parser.add_argument("--skip", action="append", default=[], choices=["python", "npm", "lm-eval", "schemathesis"])
    options = parser.parse_args()
    checks = {
        "python": python_client,
        "lm-eval": lm_eval,
        "npm": npm_client,
        "schemathesis": schemathesis,
    }
    with server(options.wudao, options.model) as address:
        for name, check in checks.items():
            if name not in options.skip:
                check(address)
                print(f"{name}: all held")


if __name__ == "__main__":
    main()

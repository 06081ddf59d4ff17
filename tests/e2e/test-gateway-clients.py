#!/usr/bin/env python3
"""Other people's clients, as they are: the openai package, llm, curl, wrk, schemathesis."""
import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor

from gatewayhttp import *
from steamd_e2e import *

# made by ./check from tests/e2e/clients.txt
CLIENTS = pathlib.Path(os.environ.get("STEAMD_CLIENTS", SRC / ".build" / "clients"))
for folder in CLIENTS.glob("lib/python3*/site-packages"):
    sys.path.insert(0, str(folder))
try:
    import openai
    from openai.types.responses import ResponseStreamEvent
    from pydantic import TypeAdapter
except ImportError:
    openai = None


def client_of(g, kind="OpenAI", **kwargs):
    if not openai:
        raise Skip(f"the openai package is not in {CLIENTS}; ./check puts it there")
    return getattr(openai, kind)(base_url=f"{g.url}/v1", api_key="any", max_retries=0, **kwargs)


def program(name):
    """A client's command, of those in CLIENTS or of the system."""
    found = CLIENTS / "bin" / name
    found = found if found.exists() else shutil.which(name)
    if not found:
        raise Skip(f"{name} is not installed")
    return str(found)


def openai_chats():
    with Daemon("air") as d, Gateway(d) as g:
        c = client_of(g)
        assert [m.id for m in c.models.list()] == ["air"] and c.models.retrieve("air").owned_by == "steamd"
        want = d.lines("ask", "--json", "--seed", 7, "-n", 8, "Hello there")[-1]
        kwargs = {"model": "air", "messages": HELLO, "max_completion_tokens": 8, "seed": 7}
        got = c.chat.completions.create(**kwargs)
        assert got.choices[0].message.content == want["content"] and got.choices[0].finish_reason == "length"
        assert got.usage.completion_tokens == 8 and got.usage.prompt_tokens_details.cached_tokens > 0
        chunks = list(c.chat.completions.create(stream=True, stream_options={"include_usage": True}, **kwargs))
        assert "".join(x.choices[0].delta.content or "" for x in chunks if x.choices) == want["content"]
        assert chunks[-1].usage.total_tokens == got.usage.total_tokens
        with c.chat.completions.stream(**kwargs) as stream:
            for _ in stream:
                pass
            final = stream.current_completion_snapshot
        assert final.choices[0].message.content == want["content"]
        got = c.chat.completions.create(n=3, logprobs=True, top_logprobs=2, **kwargs)
        assert len(got.choices) == 3 and len(got.choices[2].logprobs.content) == 8
        got = c.chat.completions.create(extra_body={"min_p": 0.2, "top_k": 5}, reasoning_effort="low", **kwargs)
        assert got.choices[0].message.content


def openai_calls_tools():
    tools = [{"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}]
    with Daemon("air", "ChatTemplate=glm45") as d, Gateway(d) as g:
        c = client_of(g)
        bias = {str(g.post("/tokenize", {"prompt": t}).json()["tokens"][0]): b
                for t, b in (("<tool_call>", 5), ("</tool_call>", 6))}
        kwargs = {"model": "air", "messages": HELLO, "max_tokens": 100, "logit_bias": bias, "tools": tools}
        for seed in range(50):
            message = c.chat.completions.create(seed=seed, **kwargs).choices[0].message
            if message.tool_calls:
                break
        assert message.tool_calls and isinstance(json.loads(message.tool_calls[0].function.arguments), dict)
        with c.chat.completions.stream(seed=seed, **kwargs) as stream:
            for _ in stream:
                pass
            streamed = stream.current_completion_snapshot.choices[0].message
        assert [(t.function.name, t.function.arguments) for t in streamed.tool_calls] == [
            (t.function.name, t.function.arguments) for t in message.tool_calls]
        answered = HELLO + [message.model_dump()] + [
            {"role": "tool", "tool_call_id": t.id, "content": "done"} for t in message.tool_calls]
        assert c.chat.completions.create(model="air", messages=answered, max_tokens=2, tools=tools).choices


def openai_completes_text():
    with Daemon("air") as d, Gateway(d) as g:
        c = client_of(g)
        want = d.lines("complete", "--json", "--seed", 3, "-n", 6, "--min-p", "0.3", "Once upon")[-1]["content"]
        kwargs = {"model": "air", "prompt": "Once upon", "max_tokens": 6, "seed": 3, "extra_body": {"min_p": 0.3}}
        assert c.completions.create(**kwargs).choices[0].text == want
        assert "".join(x.choices[0].text for x in c.completions.create(stream=True, **kwargs)) == want
        got = c.completions.create(model="air", prompt=["a", "b"], max_tokens=2, logprobs=2)
        assert len(got.choices) == 2 and len(got.choices[1].logprobs.tokens) == 2


def openai_responds():
    with Daemon("air", "ChatTemplate=glm47") as d, Gateway(d) as g:
        c = client_of(g)
        kwargs = {"model": "air", "max_output_tokens": 8, "reasoning": {"effort": "none"},
                  "extra_body": {"min_p": 0.05, "ignore_eos": True}}
        first = c.responses.create(input="Hello there", **kwargs)
        assert first.output_text and first.status == "incomplete" and first.usage.output_tokens == 8
        second = c.responses.create(input="And now?", previous_response_id=first.id, **kwargs)
        assert second.previous_response_id == first.id and second.usage.input_tokens_details.cached_tokens > 0
        assert c.responses.retrieve(first.id).output_text == first.output_text
        items = list(c.responses.input_items.list(second.id))
        assert [i.content[0].text for i in items] == ["And now?"]
        with c.responses.stream(input="Hello there", **kwargs) as stream:
            kinds = [event.type for event in stream]
        events = TypeAdapter(ResponseStreamEvent)
        with c.responses.create(input="Hello there", stream=True, **kwargs) as stream:
            for event in stream:  # the library takes what comes as it is: this looks whether it is what it declares
                events.validate_python(event.model_dump(warnings=False, exclude_unset=True))
        assert kinds[0] == "response.created" and kinds[-1] == "response.incomplete", kinds
        assert "response.output_text.delta" in kinds
        c.responses.delete(second.id)
        c.responses.delete(first.id)
        try:
            c.responses.retrieve(first.id)
            raise AssertionError("it is still there")
        except openai.NotFoundError as e:
            assert e.code == "no-such"


def openai_understands_refusals():
    with Daemon("air") as d, Gateway(d) as g:
        c = client_of(g)
        try:
            c.chat.completions.create(model="air", messages=HELLO, temperature=500)
            raise AssertionError("it was accepted")
        except openai.BadRequestError as e:
            assert e.param == "temperature" and e.code == "bad-request" and "0 to 100" in e.message
        try:
            c.chat.completions.create(model="other", messages=HELLO)
            raise AssertionError("it was accepted")
        except openai.NotFoundError as e:
            assert e.code == "no-such"


def openai_streams_many_at_once():
    async def one(c, seed):
        stream = await c.chat.completions.create(model="air", messages=HELLO, max_tokens=30, seed=seed, stream=True,
                                                 extra_body={"ignore_eos": True})
        return "".join([x.choices[0].delta.content or "" async for x in stream])

    async def all_of_them(g):
        async with client_of(g, "AsyncOpenAI") as c:
            return await asyncio.gather(*[one(c, seed) for seed in range(40)])

    with Daemon("air") as d, Gateway(d) as g:
        texts = asyncio.run(all_of_them(g))
        assert len(texts) == 40 and len(set(texts)) > 30
        alone = client_of(g).chat.completions.create(model="air", messages=HELLO, max_tokens=30, seed=5,
                                                     extra_body={"ignore_eos": True})
        assert texts[5] == alone.choices[0].message.content


def llm_asks():
    llm = program("llm")
    with Daemon("air") as d, Gateway(d) as g:
        home = d.dir / "llm"
        home.mkdir()
        (home / "extra-openai-models.yaml").write_text(
            f"- model_id: steamd\n  model_name: air\n  api_base: {g.url}/v1\n  api_key_name: none\n")
        env = dict(os.environ, LLM_USER_PATH=str(home))
        want = d.lines("ask", "--json", "--seed", 7, "-n", 8, "Hello there")[-1]["content"]
        for extra in ([], ["--no-stream"]):
            p = subprocess.run([llm, "--no-log", "--key", "x", "-m", "steamd", "-o", "seed", "7", "-o", "max_tokens", "8",
                                *extra, "Hello there"], env=env, capture_output=True, check=False)
            assert p.returncode == 0 and p.stdout.decode().rstrip("\n") == want.rstrip("\n"), (p, want)


def curl_streams():
    with Daemon("air") as d, Gateway(d) as g:
        body = json.dumps({"messages": HELLO, "max_tokens": 4, "stream": True})
        common = [program("curl"), "--silent", "--show-error", "--no-buffer", "-H", "Content-Type: application/json",
                  "-d", body]
        over_tcp = subprocess.run([*common, f"{g.url}/v1/chat/completions"], capture_output=True, check=True).stdout
        over_unix = subprocess.run([*common, "--unix-socket", str(g.socket_path),
                                    "http://localhost/v1/chat/completions"], capture_output=True, check=True).stdout
        for out in (over_tcp, over_unix):
            assert out.endswith(b"data: [DONE]\n\n") and out.count(b"data: ") >= 4, out
        big = json.dumps({"prompt": "word " * 4000 + "x" * 2000000, "max_tokens": 1}).encode()
        out = subprocess.run([program("curl"), "--silent", "-H", "Content-Type: application/json", "--data-binary", "@-",
                              f"{g.url}/v1/completions"], input=big, capture_output=True, check=True).stdout
        # a body that curl asks leave for; what it holds is told to be too long
        assert json.loads(out)["error"]["code"] == "too-long", out


def the_description_matches_the_routes():
    described = json.loads(subprocess.run([str(GATEWAY), "--openapi"], env=ENV, capture_output=True, check=True).stdout)
    routes = subprocess.run([str(GATEWAY), "--routes"], env=ENV, capture_output=True, check=True).stdout.decode()
    pairs = {f"{method.upper()} {path}" for path, methods in described["paths"].items() for method in methods}
    assert pairs == set(routes.splitlines()), pairs ^ set(routes.splitlines())
    with Daemon("air") as d, Gateway(d) as g:
        for pair in pairs:
            method, path = pair.split()
            got = g.send(method, path.replace("{id}", "none"), {} if method == "POST" else None)
            assert got.status != 405 and (got.status != 404 or "{id}" in path), (pair, got.status)


def a_fuzzer_finds_no_fault():
    st = program("schemathesis")
    with Daemon("air", "MaxTokens=4") as d, Gateway(d, "BodyTimeout=5") as g:
        described = d.dir / "openapi.json"
        described.write_bytes(subprocess.run([str(GATEWAY), "--openapi"], env=ENV, capture_output=True,
                                             check=True).stdout)
        p = subprocess.run([st, "run", str(described), "--url", g.url, "--max-examples", "5" if SANITIZED else "25", "--mode", "all",
                            "--phases", "examples,coverage,fuzzing", "--checks",
                            "not_a_server_error,content_type_conformance,response_schema_conformance",
                            "--generation-database", "none", "--seed", "1", "--no-color"],
                           capture_output=True, check=False, cwd=str(d.dir), timeout=300)
        out = p.stdout.decode(errors="replace")
        assert p.returncode == 0, out[-6000:]
        assert g.get("/health").status == 200


def wrk(g, seconds, *args):
    p = subprocess.run([program("wrk"), "--threads", "2", "--connections", "200", "--duration", f"{seconds}s",
                        "--timeout", "20s", *map(str, args)], capture_output=True, check=True, timeout=120)
    out = p.stdout.decode()
    assert "Socket errors" not in out and "Non-2xx" not in out, out
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])


def many_connections_make_no_error_and_no_growth():
    seconds = 3 if SANITIZED else 30
    with Daemon("air", "MaxRequestsPerConnection=300", "MaxRequestsPerUser=300") as d, Gateway(d) as g:
        script = d.dir / "chat.lua"
        script.write_text('wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
                          'wrk.body = \'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1}\'\n')
        for args in ((f"{g.url}/v1/models",), ("--script", script, f"{g.url}/v1/chat/completions")):
            wrk(g, 2, *args)
            with ThreadPoolExecutor(1) as pool:
                running, taken = pool.submit(wrk, g, seconds, *args), [g.memory()]
                for _ in range(3):
                    time.sleep(seconds / 3)
                    taken.append(g.memory())
                rate = running.result()
            # more at once than before is a step; what is lost with each request is lost in each third
            grown = min(b - a for a, b in zip(taken, taken[1:]))
            print(f"{rate:.0f} requests/s, {taken} KiB")
            # the sanitizers' allocator keeps what is freed
            assert SANITIZED or grown < 500, taken


run([
    openai_chats,
    openai_calls_tools,
    openai_completes_text,
    openai_responds,
    openai_understands_refusals,
    openai_streams_many_at_once,
    llm_asks,
    curl_streams,
    the_description_matches_the_routes,
    a_fuzzer_finds_no_fault,
    many_connections_make_no_error_and_no_growth,
])
